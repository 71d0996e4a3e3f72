"""`dd3g evaluate` from end to end, with a stand-in for the generator."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins.targets import Stub, ellipsoid, target_of, write_renders

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import write_shard
from dd3g.pepd import GeneratorConfig
from dd3g.picture import resize_rgba
from dd3g.rasterizer import rasterize
from distill.evaluation import compare as tool
from distill.evaluation.__main__ import main
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tables import (
    print_table,
)
from distill.evaluation.targets import Targets
from distill.quadruples import Quadruple, encode, noise_of


@pytest.mark.slow
def test_evaluate_writes_everything(tmp_path, monkeypatch):
    import dd3g.pepd

    write_renders(tmp_path / "renders")
    made = {"good": Stub(0.25), "none": Stub(0.01)}
    made["none"].config = replace(Stub.config, surface="off")
    monkeypatch.setattr(dd3g.pepd.Generator, "from_pretrained", lambda name, device="cpu": made[name])
    shape = (4, 4, 2, 2)
    rig = Cameras.default_rig(32)
    samples = []
    for i in range(3):
        image = target_of(ellipsoid((0.2, 0.2 + 0.2 * i, 0.7))).image
        noise = noise_of(shape, i)
        with torch.no_grad():
            ball = made["good"](noise[None], rig, resize_rgba(image, 16)[None])[0]
            drawn = rasterize(ball, rig, background=0.0, antialiased=True)
        views = torch.cat([drawn.rgb / drawn.alpha.clamp(min=1e-6), drawn.alpha], 1).clamp(0, 1)
        samples.append(encode(Quadruple(noise, rig, image, views), f"q{i}"))
    write_shard(tmp_path / "quadruples" / "q-00000.tar", samples)

    asked = Evaluation(
        generator=["mine=good", "tiny=none"], teacher="analytic", quadruples=tmp_path / "quadruples",
        device="cpu", sheet_objects=2,
    )  # fmt: skip
    report = tool.evaluate(tmp_path / "renders", tmp_path / "out", asked)
    rows = report["rows"]
    assert list(rows) == [
        "all white", "flat card", "mean-colour blob", "inflated silhouette", "true shape in our decoder",
        "teacher", "mine (raw)", "mine", "tiny",
    ]  # fmt: skip
    assert rows["true shape in our decoder"]["novel"]["iou"]["mean"] > 0.9
    assert rows["teacher"]["novel"] == {} and rows["teacher"]["rig"]["sides"]["psnr"]["mean"] > 5
    assert rows["mine"]["novel"]["iou"]["mean"] > 0.35 > 0.05 > rows["tiny"]["novel"]["iou"]["mean"]
    assert rows["mine"]["novel"]["psnr"]["mean"] > rows["all white"]["novel"]["psnr"]["mean"] + 1
    gain = rows["mine"]["psnr_over_flat_card"]["mean"]
    difference = rows["mine"]["novel"]["psnr"]["mean"] - rows["flat card"]["novel"]["psnr"]["mean"]
    assert gain == pytest.approx(difference, abs=1e-3)
    same = report["against_teacher"]["mine"]
    for view in ("front", "sides", "back"):
        assert same["same_noise"][view]["mean"] > 45 > 40 > same["other_noise"][view]["mean"]
    assert report["against_teacher"]["tiny"]["same_noise"]["front"]["mean"] < 20
    assert report["data"]["objects"] == 3 and report["commit"] and report["versions"]["torch"]

    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(report))
    with open(tmp_path / "out" / "objects.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 9 * 3 and {r["id"] for r in lines} == {"box0", "box1", "box2"}
    mine = [float(r["psnr"]) for r in lines if r["row"] == "mine"]
    assert np.mean(mine) == pytest.approx(rows["mine"]["novel"]["psnr"]["mean"], abs=1e-3)
    from PIL import Image

    assert Image.open(tmp_path / "out" / "sheet.png").size == (7 * 34 - 2, 2 * 6 * 34 - 2)
    assert not list((tmp_path / "out").glob(".*"))

    again = tool.evaluate(tmp_path / "renders", tmp_path / "again", replace(asked, sheet_objects=0))
    for label in rows:
        a, b = dict(again["rows"][label]), dict(rows[label])
        for measured in ("seconds_per_object", "latency", "peak_mb"):
            assert a.pop(measured) and b.pop(measured)
        assert a == b
    print_table(report)
    made["other"] = Stub()
    made["other"].config = GeneratorConfig(size=16, latent_shape=(4, 4, 4, 4))
    with pytest.raises(UserError, match=r"noise of \(4, 4, 2, 2\), and b takes \(4, 4, 4, 4\)"):
        other = Evaluation(generator=["b=other"], quadruples=tmp_path / "quadruples", device="cpu")
        tool.evaluate(tmp_path / "renders", tmp_path / "x", other)
    made["teacher"] = made["good"]
    with pytest.raises(UserError, match="'teacher' is the name of another row"):
        asked = Evaluation(generator=["teacher"], teacher="analytic", device="cpu")
        tool.evaluate(tmp_path / "renders", tmp_path / "x", asked)


def test_bad_calls_are_one_clear_line(tmp_path, capsys):
    with pytest.raises(UserError, match="two generators are called 'a'"):
        Evaluation(generator=["a=x", "a=y"]).generators
    named = Evaluation(generator=["nano", "b=out/x=1"]).generators
    assert named == {"nano": "nano", "b": "out/x=1"}
    assert main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    meta = {"variant": 1, "viewmats": torch.eye(4)[None].tolist(), "K": torch.eye(3).tolist(), "size": 8}
    meta |= {"id": "x", "azimuth": [0.0], "elevation": [10.0], "quads": [], "novel": [0]}
    item = {"__key__": "x-1", "json": json.dumps(meta), "rgba.png": b""}
    write_shard(tmp_path / "renders-00000.tar", [item])
    with pytest.raises(UserError, match="no plain variant"):
        Targets([tmp_path])


def test_wrong_rows_are_told_before_the_data_are_read(tmp_path, capsys):
    nowhere = [str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]
    assert main([*nowhere, "--no-baselines"]) == 2
    assert "there is nothing to evaluate: give --generator" in capsys.readouterr().err
    assert main([*nowhere, "--generator", "a=nano", "--generator", "a=small"]) == 2
    assert "two generators are called 'a'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    write_renders(tmp_path / "renders", 1)
    monkeypatch.setattr("distill.evaluation.work.score", lambda *_: pytest.fail("evaluated first"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder .*taken"):
        tool.evaluate(tmp_path / "renders", tmp_path / "taken", Evaluation(device="cpu"))


@pytest.mark.slow
def test_generators_see_the_finest_picture_and_make_two_rows(three_sizes, tmp_path, monkeypatch):
    import dd3g.pepd

    stub = Stub()
    monkeypatch.setattr(dd3g.pepd.Generator, "from_pretrained", lambda name, device="cpu": stub)
    folders = [three_sizes / name for name in ("32", "128", "256")]
    words = ["metrics=[]"]
    asked = Evaluation(generator=["mine=x"], limit=1, sheet_objects=1, changes=words, device="cpu")
    report = tool.evaluate(folders, tmp_path / "out", asked)
    assert stub.pictures == [(256, True)] * 2 + [(256, False)] * 2  # once to warm up
    assert report["rows"]["mine"]["novel"] == report["rows"]["mine (raw)"]["novel"]
    assert (report["data"]["size"], report["data"]["fine_size"], report["data"]["input_size"]) == (
        32,
        128,
        256,
    )
    with open(tmp_path / "out" / "objects.csv", newline="") as stream:
        lines = {line["row"]: line for line in csv.DictReader(stream)}
    assert float(lines["flat card"]["input_psnr_256"]) > 25 > float(lines["mine"]["input_psnr_256"])
    assert float(lines["all white"]["alpha_fuzz_128"]) == 0 < float(lines["mine"]["alpha_fuzz_128"])
    from PIL import Image

    assert Image.open(tmp_path / "out" / "sheet.png").size == (7 * 258 - 2, 4 * 258 - 2)
