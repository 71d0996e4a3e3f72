"""Two students at equal compute, with and without quadruples: trained once, and compared by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stand_ins.tiny_objects import write_quadruples, write_renders
from stand_ins.training_runs import in_this_process

from distill import claim
from distill.claim import BOTH, MESHES, compared, main

SMALL = (
    "generator.size=32 generator.latent_shape=[4,64,8,8] generator.width=32 generator.depth=1 "
    "generator.heads=2 generator.residual_hidden=8 generator.fine=8 generator.mid=16 generator.head_hidden=8 "
    "train_batch_size=2 checkpointing_steps=1 validation_steps=100 lr_warmup_steps=1 lr_decay_steps=1 "
    "quadruples_start=0 logging_steps=1 mixed_precision=no"
).split()


@pytest.mark.slow
def test_two_students_are_trained_and_compared(tmp_path, monkeypatch, capfd, one_thread):
    monkeypatch.setattr(claim, "run_stage", in_this_process)
    renders = write_renders(tmp_path / "renders", styles=("scan",))
    test = write_renders(tmp_path / "test", count=4, styles=("scan", "game"))
    quadruples = write_quadruples(tmp_path / "quadruples")
    train = [word for option in SMALL for word in ("--train", option)]
    words = ["--renders", str(renders), "--quadruples", str(quadruples), "--test", str(test)]
    words += ["--steps", "2", "-o", str(tmp_path / "out"), *train, "--json"]
    assert main(words) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])["differences"]
    assert {(d["kinds"], d["n"]) for d in found} == {("all", 4), ("seen", 2), ("unseen", 2)}
    assert {d["splats"] for d in found} == {"solid", "raw"}
    of = {(d["kinds"], d["splats"], d["metric"]): d["mean"] for d in found}
    assert of["all", "raw", "psnr"] == pytest.approx(
        (of["seen", "raw", "psnr"] + of["unseen", "raw", "psnr"]) / 2, abs=1e-5
    )
    assert of["all", "raw", "psnr"] != 0
    text = (tmp_path / "out" / "claim.md").read_text()
    assert "Two students of 2 steps" in text and f"{renders} (scan)" in text
    steps = {
        name: [json.loads(line)["step"] for line in (tmp_path / "out" / name / "metrics.jsonl").open()]
        for name in ("meshes", "both")
    }
    assert steps == {"meshes": [1, 2], "both": [1, 2]}

    assert main(words) == 0  # nothing is made twice
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["differences"] == found
    assert len((tmp_path / "out/both/metrics.jsonl").read_text().splitlines()) == 2


def test_differences_are_paired_by_object_and_kind():
    report = {
        "objects": [{"style": s} for s in ("a", "b", "a", "b")],
        "per_object": {
            MESHES: {"psnr": [10.0, 20.0, 30.0, None]},
            BOTH: {"psnr": [11.0, 18.0, 33.0, 5.0]},
            f"{MESHES} (raw)": {"iou": [0.5] * 4},
            f"{BOTH} (raw)": {"iou": [0.6, 0.5, 0.8, 0.1]},
        },
    }
    found = compared(report, {"a"})
    by_hand = [
        ("all", "psnr", (1 - 2 + 3) / 3, 3), ("all", "iou", (0.1 + 0 + 0.3 - 0.4) / 4, 4),
        ("seen", "psnr", 2.0, 2), ("seen", "iou", 0.2, 2),
        ("unseen", "psnr", -2.0, 1), ("unseen", "iou", -0.2, 2),
    ]  # fmt: skip
    assert [(d["kinds"], d["metric"], d["n"]) for d in found] == [(g, m, n) for g, m, _, n in by_hand]
    assert np.allclose([d["mean"] for d in found], [mean for *_, mean, _ in by_hand])
    assert [d["kinds"] for d in compared(report, {"a", "b"})] == ["all", "all"]
    del report["per_object"][f"{MESHES} (raw)"], report["per_object"][f"{BOTH} (raw)"]  # surface=off
    assert {d["splats"] for d in compared(report, {"a"})} == {"solid"}


def test_no_renders(tmp_path, capsys):
    words = ["--renders", str(tmp_path), "--quadruples", str(tmp_path), "--test", str(tmp_path)]
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
