"""From objects on disk to tables; stopped and gone on with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from stand_ins.tinted_rows import ASKED, GREY, SMALL, WHITE, run

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from distill.evaluation import compare, work
from distill.evaluation.__main__ import main
from distill.evaluation.scores import BANDS


def test_a_stopped_run_goes_on_and_more_rows_are_only_added(tmp_path, boxes, rows, monkeypatch):
    real = work.score

    def stop_at_box1(target, *rest):
        if target.id == "box1":
            raise KeyboardInterrupt
        return real(target, *rest)

    monkeypatch.setattr(work, "score", stop_at_box1)
    with pytest.raises(KeyboardInterrupt):
        run(boxes, tmp_path, [GREY])
    assert [p.name for p in sorted((tmp_path / "objects").iterdir())] == ["box0.json"]
    monkeypatch.setattr(work, "score", real)
    ASKED.clear()
    report = run(boxes, tmp_path, [GREY])
    assert ("grey", "box0") not in ASKED and {id for _, id in ASKED} == {"box1", "box2"}
    ASKED.clear()
    assert run(boxes, tmp_path, [GREY])["rows"] == report["rows"] and ASKED == []
    both = run(boxes, tmp_path, [GREY, WHITE])
    assert {name for name, _ in ASKED} == {"bright"} and list(both["rows"]) == ["grey", "bright"]
    assert both["rows"]["grey"] == report["rows"]["grey"]
    # A torn file, another protocol, other seeds: computed again.
    (tmp_path / "objects" / "box2.json").write_text("{")
    ASKED.clear()
    run(boxes, tmp_path, [GREY])
    assert {id for _, id in ASKED} == {"box2"}
    ASKED.clear()
    run(boxes, tmp_path, [GREY], [*SMALL, "fovy=50"])
    assert {id for _, id in ASKED} == {"box0", "box1", "box2"}
    # Weights of a metric that were not there before.
    monkeypatch.setattr(work, "load_metrics", lambda names: ([], {"st-lpips": {"weights": "others"}}))
    ASKED.clear()
    run(boxes, tmp_path, [GREY])
    assert {id for _, id in ASKED} == {"box0", "box1", "box2"}


def test_what_changed_on_disk_is_computed_again(tmp_path, boxes, rows):
    """A mesh of the data, or a file of a row, options behind the folder or none."""
    import shutil

    import trimesh

    data, theirs, out = tmp_path / "data", tmp_path / "theirs", tmp_path / "out"
    shutil.copytree(boxes, data)
    theirs.mkdir()
    for k in range(3):
        trimesh.creation.box((0.3, 0.3 + 0.3 * k, 0.3)).export(theirs / f"box{k}.glb")
    for options in ("", ",axes=opengl,elevation=0"):
        words = [GREY, f"predictions=theirs={theirs}{options}"]
        before = run(data, out, words)["per_object"]["theirs"]["iou"]
        assert run(data, out, words)["per_object"]["theirs"]["iou"] == before
        kept = (theirs / "box1.glb").read_bytes()
        (theirs / "box1.glb").write_bytes((theirs / "box2.glb").read_bytes())
        after = run(data, out, words)["per_object"]["theirs"]["iou"]
        assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
        (theirs / "box1.glb").write_bytes(kept)
    # An elevation that is estimated is read out of weights, too.
    reads = {path.parent.name for path in work._read_by("elevation=mine=nano", "box0")}
    assert reads == {"nano", "elevation"}
    hashes = [o["hash"] for o in run(data, out, [GREY])["objects"]]
    ASKED.clear()
    (data / "box0.glb").write_bytes((boxes / "box2.glb").read_bytes())
    assert [o["hash"] for o in run(data, out, [GREY])["objects"]] == [hashes[2], *hashes[1:]]
    assert {id for _, id in ASKED} == {"box0"}


def test_other_tools_get_the_input_and_its_cameras(tmp_path, boxes, rows):
    from PIL import Image

    from distill.evaluation.protocol import load_protocol
    from distill.evaluation.targets import open_targets

    words = ["sizes=[16,32]", "test_rings=[[20,4,10]]", "metrics=[]", "supersample=1"]
    run(boxes, tmp_path, [GREY], words, protocol="grm")
    targets, _ = open_targets(boxes, load_protocol("grm", words))
    for target in targets:
        picture = np.asarray(Image.open(tmp_path / "inputs" / f"{target.id}.png"))
        wanted = (target.finest.image * 255).round().byte().movedim(0, -1).numpy()
        assert picture.shape == (32, 32, 4) and (picture == wanted).all()
        cameras = json.loads((tmp_path / "inputs" / f"{target.id}.json").read_text())
        assert cameras["fovy"] == pytest.approx(50, abs=1e-3) and len(cameras["test"]) == 4
        assert np.allclose(cameras["input"], target.cameras.viewmats[target.rig[0]])
        assert np.allclose(cameras["test"], target.cameras.viewmats[target.novel])


def test_one_object_without_a_picture_is_left_out_and_named(tmp_path, rows):
    from PIL import Image

    rig = Cameras.orbit([0.0, 90.0, 180.0], 10.0, 16)
    for name in ("whole", "partial"):
        home = tmp_path / "data" / name
        home.mkdir(parents=True)
        for k in range(3):
            pixels = np.zeros((16, 16, 4), np.uint8)
            pixels[4:12, 4:12] = (200, 30, 30, 255)
            Image.fromarray(pixels).save(home / f"{k}.png")
        meta = {"fovy": 49.1, "viewmats": rig.viewmats.tolist(), "pictures": [f"{k}.png" for k in range(3)]}
        (home / "cameras.json").write_text(json.dumps(meta))
    (tmp_path / "data" / "partial" / "2.png").unlink()
    report = run(tmp_path / "data", tmp_path / "out", [GREY])
    assert [o["id"] for o in report["objects"]] == ["whole"]
    assert "2.png" in report["data"]["failed"]["partial"]


def test_the_report_says_what_was_measured(tmp_path, boxes, rows):
    report = run(boxes, tmp_path, [GREY, WHITE], [*SMALL, "metrics=[lpips-vgg]"])
    assert report["protocol"]["name"] == "house" and len(report["protocol"]["hash"]) == 16
    assert [o["id"] for o in report["objects"]] == ["box0", "box1", "box2"]
    assert (tmp_path / "objects.txt").read_text().split() == [
        x for o in report["objects"] for x in (o["id"], o["hash"])
    ]
    assert "missing" in report["metrics"]["lpips-vgg"]
    grey, bright = (np.array(report["per_object"][k]["psnr"]) for k in ("grey", "bright"))
    (pair,) = [d for d in report["differences"] if d["metric"] == "psnr"]
    assert (pair["a"], pair["b"]) == ("bright", "grey")
    assert pair["mean"] == pytest.approx((bright - grey).mean(), abs=1e-4) and pair["p"] >= 0.25
    grouped = {d["group"]: d["mean"] for d in report["grouped_differences"]}
    assert grouped and set(grouped) <= set(BANDS)  # boxes have one style
    row = report["rows"]["grey"]
    assert row["novel"]["psnr"]["mean"] == pytest.approx(grey.mean(), abs=1e-4)
    assert set(row["latency"]) == {"p50", "p95"} and row["peak_mb"] is None or row["peak_mb"] > 50
    text = (tmp_path / "table.md").read_text()
    assert text.splitlines()[0].startswith("|  | PSNR | fg PSNR | SSIM | IoU")
    assert f"Protocol house ({report['protocol']['hash']}), 3 objects" in text
    assert "lpips-vgg not measured: its weights are not here" in text
    tex = (tmp_path / "table.tex").read_text()
    best = max(("grey", grey.mean()), ("bright", bright.mean()), key=lambda x: x[1])
    line = next(x for x in tex.splitlines() if x.startswith(best[0]))
    assert line.startswith(rf"{best[0]} & \textbf{{{best[1]:.2f}}}") and r"PSNR$\uparrow$" in tex


def test_a_pinned_object_must_be_that_one(tmp_path, boxes, rows):
    hashes = [line.split() for line in _pinned(tmp_path / "a", boxes)]
    words = [*SMALL, f"objects=[{hashes[0][0]} {hashes[0][1]}]"]
    assert run(boxes, tmp_path / "b", [GREY], words)["data"]["objects"] == 1
    with pytest.raises(UserError, match=r"box1 is not the object that the protocol means: its hash is"):
        run(boxes, tmp_path / "c", [GREY], [*SMALL, f"objects=[box1 {hashes[0][1]}]"])
    with pytest.raises(UserError, match="lacks 1 of 2 objects of the list: sofa"):
        run(boxes, tmp_path / "d", [GREY], [*SMALL, "objects=[box1, sofa]"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "my box.glb").write_bytes((boxes / "box0.glb").read_bytes())
    for line in ("my box", f"my box {hashes[0][1]}"):
        assert run(tmp_path / "in", tmp_path / "e", [GREY], [*SMALL, f"objects=['{line}']"])["data"][
            "objects"
        ]
    with pytest.raises(UserError, match="my box is not the object that the protocol means"):
        run(tmp_path / "in", tmp_path / "f", [GREY], [*SMALL, f"objects=['my box {hashes[1][1]}']"])


def _pinned(out: Path, boxes: Path) -> list[str]:
    run(boxes, out, [GREY])
    return (out / "objects.txt").read_text().splitlines()


def test_meshes_that_cannot_be_drawn_are_left_out_and_named(tmp_path, boxes, rows, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "fine.glb").write_bytes((boxes / "box0.glb").read_bytes())
    (tmp_path / "in" / "torn.glb").write_bytes(b"glTF")
    report = run(tmp_path / "in", tmp_path / "out", [GREY])
    assert report["data"]["objects"] == 1 and list(report["data"]["failed"]) == ["torn"]
    words = ["--no-baselines", "--row", GREY, "--no-page", "--sheet-objects", "0"]
    words += [w for change in SMALL for w in ("--set", change)]
    assert main([str(tmp_path / "in"), "-o", str(tmp_path / "out"), *words]) == 1
    assert re.search(r"^left out torn: \S", capsys.readouterr().err, re.MULTILINE)
    (tmp_path / "in" / "fine.glb").unlink()
    with pytest.raises(UserError, match="no object could be drawn: torn: "):
        run(tmp_path / "in", tmp_path / "out", [GREY])


def test_alignment_is_on_for_all_rows_or_off(tmp_path, boxes, rows):
    folder = tmp_path / "theirs"
    from PIL import Image

    for k in range(3):
        for v in range(3):
            path = folder / f"box{k}" / f"{v}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (16, 16), (9, 9, 9, 128)).save(path)
    words = [GREY, f"predictions=theirs={folder}"]
    with pytest.raises(UserError, match="theirs consists of pictures, which cannot be moved in space"):
        run(boxes, tmp_path / "a", words, [*SMALL, "alignment=input"])
    report = run(boxes, tmp_path / "b", [GREY], [*SMALL, "alignment=input"])
    assert set(report["rows"]["grey"]["alignment"]) == {"scale", "shift", "residual"}
    assert run(boxes, tmp_path / "c", words)["rows"]["theirs"]["novel"]["psnr"]["mean"] > 1
    with pytest.raises(UserError, match="theirs: .* lacks 1 of 3 objects: box0"):
        (folder / "box0").rename(folder / "away")
        run(boxes, tmp_path / "d", words)


@pytest.mark.slow
def test_processes_give_the_same(tmp_path, boxes, forked_workers):
    words = ["baseline=flat card", "baseline=all white"]
    one = run(boxes, tmp_path / "one", words, processes=1)
    two = run(boxes, tmp_path / "two", words, processes=2)
    assert one["per_object"] == two["per_object"] and two["data"]["processes"] == 2


def test_distances_of_sets_are_over_all_views_of_all_objects(tmp_path, boxes, rows, monkeypatch):
    from distill.evaluation import learned
    from distill.evaluation.protocol import load_protocol
    from distill.evaluation.targets import open_targets
    from distill.pictures import on_white

    about = {"library": "none", "net": "mean colour", "weights": "none"}
    for key in ("fid", "kid"):
        metric = learned.Metric(key, about, lambda rgb: rgb.mean((2, 3)))
        monkeypatch.setitem(learned.METRICS, key, lambda metric=metric: metric)
    words = [*SMALL, "metrics=[fid, kid]"]
    report = run(boxes, tmp_path, [GREY], words)
    targets, _ = open_targets(boxes, load_protocol("house", words))
    true = np.concatenate([on_white(t.rgba[t.novel]).mean((2, 3)).numpy() for t in targets])
    mine = np.full_like(true, 0.5)
    found = report["rows"]["grey"]["sets"]
    assert found["fid"] == pytest.approx(learned.frechet_distance(mine, true), abs=2e-3)
    assert found["kid"] == pytest.approx(learned.kernel_distance(mine, true), abs=5e-3)
    alone = {"truth": {key: work.packed(true[:1]) for key in ("fid", "kid")}}
    single = compare._sets([alone], [{"sets": alone["truth"]}])
    assert single == {"fid": None, "kid": None}  # a single view has no spread
    assert report["metrics"]["fid"]["net"] == "mean colour" and "FID" in (tmp_path / "table.md").read_text()


def test_the_peak_is_that_of_the_work_within():
    before = work.peak_memory("cpu")()
    if before is None:
        pytest.skip("this system does not tell the peak of a process")
    peak = work.peak_memory("cpu")
    large = np.ones(25_000_000)
    del large
    highest, after = peak(), work.peak_memory("cpu")()
    assert highest - before > 150 and after < highest - 100
