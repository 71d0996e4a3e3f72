"""From objects on disk to tables, a page and comparisons; stopped and gone on with."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins.headless_chromium import CHROMIUM, Page

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from distill.evaluation import compare as tool
from distill.evaluation import packing, paired, tables, work
from distill.evaluation.__main__ import main
from distill.evaluation.options import Evaluation
from distill.evaluation.packing import from_png, packed, png, unpacked
from distill.evaluation.predictors import Drawing, Prediction, Target
from distill.evaluation.rows import KINDS, Settings
from distill.evaluation.scores import BANDS

SMALL = ("sizes=[16]", "test_rings=[[10,3,60]]", "supersample=1", "metrics=[]", "rig=false")
ASKED: list[tuple[str, str]] = []


def tinted(value: str, settings: Settings) -> dict:
    """NAME=LEVEL: the truth, but as bright as the level; seeds add noise."""
    name, _, level = value.partition("=")

    def predict(target: Target) -> Drawing:
        ASKED.append((name, target.id))
        g = torch.Generator().manual_seed(settings.seed)

        def draw(at: Target, views: list[int]) -> Prediction:
            size = at.rgba.shape[-1]
            rgb = torch.full((len(views), 3, size, size), float(level))
            rgb = rgb + 0.02 * torch.randn(rgb.shape, generator=g) * (settings.seed > 0)
            alpha = torch.ones(len(views), 1, size, size)
            return Prediction(views, rgb, alpha, 1.5 * alpha)

        return draw

    return {name: predict}


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setitem(KINDS, "tinted", tinted)
    ASKED.clear()


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> Path:
    import trimesh

    folder = tmp_path_factory.mktemp("boxes")
    for i in range(3):
        trimesh.creation.box((1, 1 + i, 1)).export(folder / f"box{i}.glb")
    return folder


def run(boxes: Path, out: Path, words: list[str], changes=SMALL, **more) -> dict:
    more = {"page": False, "sheet_objects": 0, "device": "cpu"} | more
    return tool.evaluate(boxes, out, Evaluation(row=words, changes=changes, baselines=False, **more))


GREY, WHITE, DARK = "tinted=grey=0.5", "tinted=bright=1.0", "tinted=dark=0.1"


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


def test_differences_are_paired_within_styles_and_bands():
    def row(style: str, psnr: float, **bands: float) -> dict:
        by = {name.strip("b").replace("_", "-"): {"psnr": value} for name, value in bands.items()}
        return {"style": style, "novel": {"psnr": psnr}, "bands": by}

    first = [row("pbr", 10, b60_90=9), row("scan", 20, b60_90=8, b0_30=5), row("scan", 30)]
    second = [row("pbr", 10, b60_90=11), row("scan", 22, b60_90=10, b0_30=7), row("scan", 34)]
    found = tool.grouped_differences({"a": first, "b": second, "c": [{"style": "pbr"}] * 3}, 0)
    assert [(d["a"], d["b"], d["group"], d["mean"], d["n"], d["p"]) for d in found] == [
        ("b", "a", "pbr", 0.0, 1, 1.0),
        ("b", "a", "scan", 3.0, 2, 0.5),
        ("b", "a", "0-30", 2.0, 1, 1.0),
        ("b", "a", "60-90", 2.0, 2, 0.5),
    ]
    alone = tool.grouped_differences({"a": first[1:], "b": second[1:]}, 0)
    assert "scan" not in [d["group"] for d in alone]  # one style is all objects


def test_seeds_show_diversity_and_the_best_of_them(tmp_path, boxes, rows):
    report = run(boxes, tmp_path, [GREY], seeds=3, limit=1)
    found = {k: v["mean"] for k, v in report["rows"]["grey"]["seeds"].items()}
    assert found["psnr_best"] >= found["psnr_mean"]
    # Seed 0 is plain; two noises of deviation 0.02 are 0.02 * sqrt 2 apart.
    apart = [10 * np.log10(1 / v) for v in (0.0004, 0.0004, 0.0008)]
    assert found["psnr_apart"] == pytest.approx(np.mean(apart), abs=0.4)


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
    with pytest.raises(UserError, match="theirs is pictures, which cannot be moved in space"):
        run(boxes, tmp_path / "a", words, [*SMALL, "alignment=input"])
    report = run(boxes, tmp_path / "b", [GREY], [*SMALL, "alignment=input"])
    assert set(report["rows"]["grey"]["alignment"]) == {"scale", "shift", "residual"}
    assert run(boxes, tmp_path / "c", words)["rows"]["theirs"]["novel"]["psnr"]["mean"] > 1
    with pytest.raises(UserError, match="theirs: .* has nothing of 1 of 3 objects: box0"):
        (folder / "box0").rename(folder / "away")
        run(boxes, tmp_path / "d", words)


@pytest.mark.slow
def test_processes_give_the_same(tmp_path, boxes):
    words = ["baseline=flat card", "baseline=all white"]
    one = run(boxes, tmp_path / "one", words, processes=1)
    two = run(boxes, tmp_path / "two", words, processes=2)
    assert one["per_object"] == two["per_object"] and two["data"]["processes"] == 2


def test_the_page_holds_everything(tmp_path, boxes, rows):
    report = run(boxes, tmp_path, [GREY, WHITE], page=True, sheet_objects=1)
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r"\{\{\w+\}\}|https?://", page)  # all is filled in, and nothing comes from elsewhere
    assert page.count("<details") == 3 and page.count("class=turn") == 6
    assert page.count("data:image/webp;base64,") == 3 + 6 + 6  # strips of truth and rows, and turns
    assert "class=sortable" in page and report["protocol"]["hash"] in page and "bright − grey" in page
    psnr = report["rows"]["grey"]["novel"]["psnr"]  # the interval below the mean, not broken into two
    assert f"{psnr['mean']:.2f}<br><small>[{psnr['low']:.2f}, {psnr['high']:.2f}]</small>" in page
    assert report["sheets"] == ["sheet.png"]
    from PIL import Image

    assert Image.open(tmp_path / "sheet.png").size == (7 * 18 - 2, 3 * 18 - 2)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_sorts_and_turns_in_a_browser(tmp_path, boxes, rows):
    run(boxes, tmp_path / "out", [GREY, WHITE, DARK], page=True)
    page = Page(tmp_path / "profile", 1200)
    try:
        page.call("Page.navigate", url=(tmp_path / "out" / "index.html").as_uri() + "#o1")
        page.wait("document.readyState === 'complete' && document.querySelectorAll('.turn').length === 9")
        assert page.eval("document.querySelector('details[open]').id") == "o1"

        def column(number: int) -> list[str]:
            return page.eval(
                "[...document.querySelector('.sortable').tBodies[0].rows]"
                f".map(row => row.cells[{number}].dataset.value ?? row.cells[{number}].textContent)"
            )

        for number in (1, 0):  # numbers and words
            for state in ("descending", "ascending"):
                page.eval(f"document.querySelectorAll('.sortable th')[{number}].click()")
                found = column(number)
                order = sorted(found, key=float if number else str, reverse=state == "descending")
                assert found == order and len(set(found)) == 3
                shown = "[...document.querySelectorAll('[aria-sort]')].map(h => [h.cellIndex, h.ariaSort])"
                assert page.eval(shown) == [[number, state]]
        turn = "document.querySelector('#o1 .turn')"
        page.eval(f"{turn}.scrollIntoView({{block: 'center'}})")
        x, y = page.eval(f"(b => [b.x + 48, b.y + 48])({turn}.getBoundingClientRect())")
        assert page.eval(f"{turn}.style.backgroundPositionX") == ""
        for kind, at in (("mousePressed", x), ("mouseMoved", x - 24), ("mouseReleased", x - 24)):
            page.mouse(kind, at, y, button="left", clickCount=1)
        assert page.eval(f"{turn}.style.backgroundPositionX") == "-288px"  # three frames of 96 pixels on
        page.mouse("mouseMoved", x + 40, y)
        assert page.eval(f"{turn}.style.backgroundPositionX") == "-288px"
        assert page.errors == [] and all(not r.startswith("http") for r in page.requests)
    finally:
        page.close()


def test_features_and_tiles_survive_json():
    x = torch.randn(3, 5)
    assert np.allclose(unpacked(packed(x)), x, atol=2e-3)
    tiles = (torch.rand(6, 3, 8, 8) * 255).round() / 255
    assert torch.equal(from_png(png(tiles)), tiles)


def test_the_first_frame_of_a_turn_is_the_input(boxes):
    from distill.evaluation.protocol import load_protocol
    from distill.evaluation.targets import open_targets

    targets, _ = open_targets(boxes, load_protocol("grm", ["sizes=[16]", "supersample=1"]))
    asked = []

    def draw(at: Target, views: list[int]) -> Prediction:
        asked.append(at.cameras)
        return Prediction(views, torch.ones(len(views), 3, 96, 96), None)

    target = targets[0]
    packing.turn(target, draw)
    torch.testing.assert_close(asked[0].viewmats[0], target.cameras.viewmats[0], atol=1e-4, rtol=0)
    first = target.cameras[0].resized(96)
    torch.testing.assert_close(asked[0].Ks[0], first.Ks, atol=1e-3, rtol=0)
    assert isinstance(asked[0], Cameras) and replace(target, hash="").hash == ""


# ---- dd3g evaluate compare -------------------------------------------------------------------------------


def test_two_runs_of_one_protocol_share_a_table(tmp_path, boxes, rows, capsys):
    run(boxes, tmp_path / "a", [GREY, WHITE])
    run(boxes, tmp_path / "b", [GREY, DARK])
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "evaluation.json")]) == 0
    out = capsys.readouterr().out
    assert [line.split(" |")[0] for line in out.splitlines()[2:5]] == ["| grey", "| bright", "| dark"]
    assert re.search(r"dark - bright: psnr [+-]\d+\.\d+ \[.*\], p 0\.\d+, n 3", out)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--metric", "iou", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert {(d["a"], d["b"]) for d in found} == {("dark", "grey"), ("dark", "bright")}


def test_rows_of_one_label_get_the_names_of_their_runs(tmp_path, boxes, rows):
    run(boxes, tmp_path / "a", ["tinted=mine=0.5"])
    run(boxes, tmp_path / "b", ["tinted=mine=0.6"])
    reports = paired.load_reports([tmp_path / "a", tmp_path / "b"])
    joined = paired.join(reports, ["a", "b"])
    assert list(joined["rows"]) == ["mine (a)", "mine (b)"]
    (pair,) = paired.between(joined, "psnr", 0)
    x, y = (np.array(joined["per_object"][k]["psnr"]) for k in ("mine (b)", "mine (a)"))
    assert pair["mean"] == pytest.approx((x - y).mean(), abs=1e-4)
    with pytest.raises(UserError, match="no metric 'fid' in these results: choose from"):
        paired.between(joined, "fid", 0)


def test_other_protocols_and_objects_refuse_to_share_a_table(tmp_path, boxes, rows, capsys):
    run(boxes, tmp_path / "a", [GREY])
    run(boxes, tmp_path / "b", [GREY], [*SMALL, "fovy=50"])
    run(boxes, tmp_path / "c", [GREY], limit=2)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    err = capsys.readouterr().err
    assert "their numbers do not compare (different: fovy); evaluate both by one protocol" in err
    assert err.count("\n") == 1
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "saw other objects (3 and 2; different: box2)" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a")]) == 2
    (tmp_path / "x.json").write_text("{}")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "x.json")]) == 2
    assert "x.json is not an evaluation.json of this version" in capsys.readouterr().err


def test_other_weights_of_a_metric_refuse_to_share_a_table(tmp_path, boxes, rows):
    """One protocol, but LPIPS of other weights; one that was not measured is no hindrance."""
    net = {"library": "torchmetrics 1.0", "net": "LPIPS vgg", "weights": "0" * 16}
    for name, about in (("a", net), ("b", net | {"weights": "1" * 16}), ("c", {"missing": "no weights"})):
        run(boxes, tmp_path / name, [f"tinted={name}=0.5"])
        path = tmp_path / name / "evaluation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"lpips-vgg": about}}))
    with pytest.raises(UserError, match="measured lpips-vgg with LPIPS vgg 0{16}, .*/b with LPIPS vgg 1{16}"):
        paired.load_reports([tmp_path / "a", tmp_path / "b"])
    reports = paired.load_reports([tmp_path / "c", tmp_path / "a"])
    assert paired.join(reports, ["c", "a"])["metrics"] == {"lpips-vgg": net}


def test_keys_of_the_table_have_headings():
    assert tables.heading("st_lpips_128") == "ST-LPIPS 128" and tables.heading("f_0.1") == "F 0.1"
    assert tables.heading("psnr") == "PSNR" and tables._start("holes_eroded") == ""
    assert tables._tex("a_b & 50 %") == r"a\_b \& 50 \%"


def test_distances_of_sets_are_over_all_views_of_all_objects(tmp_path, boxes, rows, monkeypatch):
    from distill.evaluation import learned
    from distill.evaluation.metrics import on_white
    from distill.evaluation.protocol import load_protocol
    from distill.evaluation.targets import open_targets

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
    assert report["metrics"]["fid"]["net"] == "mean colour" and "FID" in (tmp_path / "table.md").read_text()


def test_the_peak_is_that_of_the_work_within():
    with work.peak_memory("cpu") as before:
        pass
    if before() is None:
        pytest.skip("this system does not tell the peak of a process")
    with work.peak_memory("cpu") as peak:
        large = np.ones(25_000_000)
        del large
    with work.peak_memory("cpu") as after:
        pass
    assert peak() - before() > 150 and after() < peak() - 100
