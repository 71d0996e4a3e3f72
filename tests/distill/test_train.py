"""`dd3g train` and `dd3g train-teacher`: what they learn from, ablations, cards, and the first step."""

from __future__ import annotations

import json
import math

import pytest
import torch
from stand_ins.distilled import TEACHER, distil, words
from stand_ins.training_runs import fresh, metrics

from dd3g import rasterizer
from dd3g.command.configuration import launch
from dd3g.pepd import Generator
from dd3g.rasterizer import get_ready
from distill.train_teacher import TeacherConfig
from distill.train_teacher import run as run_teacher

# The same as the subprocesses have: another number may round differently.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_everything_at_once(data, tmp_path, capsys):
    """Renders, quadruples, verification, sheets, TensorBoard, bfloat16; then the same folder again."""
    renders, quadruples = data
    options = {
        "quadruples": f"[{quadruples}]", "quadruples_start": 0.25, "validation_steps": 2,
        "validation_renders": renders,
        "report_to": "tensorboard", "mixed_precision": "bf16", "objective.implicit": 0.05,
        "pretrained_teacher_model": "analytic", "objective.bootstrap": 0.3,
    }  # fmt: skip
    assert distil(renders, tmp_path, **options) == 0
    assert capsys.readouterr().out.strip().endswith(f"wrote {tmp_path}/model")
    lines = metrics(tmp_path)
    assert len(lines) == 4 and "color" not in lines[0] and {"color", "implicit", "structure"} <= set(lines[3])
    for line in lines:
        parts = [v for k, v in line.items() if k not in {"step", "loss", "grad_norm", "lr"}]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-4)
    assert list(tmp_path.glob("logs/**/events.out.tfevents*"))
    assert sorted(p.name for p in tmp_path.glob("sheet-*.png")) == ["sheet-000002.png", "sheet-000004.png"]
    generator = Generator.from_pretrained(tmp_path / "model")
    assert generator.generate(torch.rand(4, 32, 32)).means.isfinite().all()
    assert distil(renders, tmp_path, **options) == 2 and "--resume latest" in capsys.readouterr().err
    assert distil(renders, tmp_path / "next", init_from=tmp_path / "model", max_train_steps=1) == 0


def test_unpacked_renders_train_alike(data, tmp_path):
    assert distil(data[0], tmp_path / "a") == 0
    assert distil(data[0], tmp_path / "b", unpacked_dir=tmp_path / "disk") == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") and list((tmp_path / "disk").glob("*.bin"))


ABLATIONS = {
    "phase 1 off": {"generator.depth": 0},
    "one-shot decoding": {"generator.order": "one_shot"},
    "order swapped": {"generator.order": "swapped"},
    "no copied tokens": {"generator.copy_tokens": "false"},
    "no noise": {"generator.use_noise": "false"},
    "explicit supervision only": {"objective.implicit": 0},
    "literal verification": {"objective.implicit_form": "literal"},
    "score verification": {"objective.implicit_form": "score"},
    "constant weight": {"objective.ramp": "constant"},
}


@pytest.mark.slow
def test_each_ablation_is_one_switch(data, tmp_path):
    renders, quadruples = data
    options = {
        "quadruples": f"[{quadruples}]", "quadruples_start": 0, "objective.bootstrap": 0,
        "max_train_steps": 1, "objective.implicit": 0.05, "pretrained_teacher_model": "analytic",
    }  # fmt: skip
    losses = []
    for name, switch in {"whole": {}, **ABLATIONS}.items():
        assert distil(renders, tmp_path / name, **options | switch) == 0, name
        (line,) = metrics(tmp_path / name)
        assert ("implicit" in line) == ("objective.implicit" not in switch), name
        losses.append(line["loss"])
    assert all(map(math.isfinite, losses)) and len(set(losses)) == len(losses)


def test_the_teacher_trains(data, tmp_path):
    fresh()
    line = words(data[0], tmp_path, "teacher", TEACHER, validation_steps=4, validation_renders=data[0])
    assert launch(run_teacher, TeacherConfig, line) == 0
    assert len(metrics(tmp_path)) == 4 and (tmp_path / "sheet-000004.png").exists()
    assert (tmp_path / "model/model.safetensors").exists()


def test_kernels_are_built_before_the_first_step(data, tmp_path, capsys, monkeypatch):
    """Not when the bootstrap ends; where that cannot be done, nothing has been spent yet."""
    drawn = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rasterizer, "get_ready", lambda device: drawn.append(device.index) or 1 / 0)
    for rank, gpus in (("0", 1), ("3", 8), ("3", 1)):  # the last one is shown only its own
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with pytest.raises(ZeroDivisionError):
            distil(data[0], tmp_path)
    assert drawn == [0, 3, 0] and not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.setattr(rasterizer, "get_ready", lambda device: get_ready(torch.device("cpu")))
    monkeypatch.setattr(rasterizer, "rasterize", lambda *_: 1 / 0)
    assert distil(data[0], tmp_path) == 2
    assert "train with --device cpu" in capsys.readouterr().err


def test_a_model_card_says_what_it_was_trained_on(data, tmp_path):
    assert distil(data[0], tmp_path, quadruples=f"[{data[1]}]", max_train_steps=1) == 0
    card = (tmp_path / "model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: dd3g\n") and "Step 1 of 1 of `dd3g train`" in card
    assert f"- quadruples: `{data[1]}`\n- renders: `{data[0]}`\n\nThe licences" in card
    options = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert options["generator"]["width"] == 32 and options["max_train_steps"] == 1


def test_the_result_is_uploaded_when_asked_for(data, tmp_path, capsys, monkeypatch):
    assert distil(data[0], tmp_path / "a", push_to_hub="true") == 2
    assert "push_to_hub needs hub_model_id=OWNER/NAME" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(Generator, "push_to_hub", lambda self, repo: asked.append(repo) or f"hub/{repo}")
    options = {"push_to_hub": "true", "hub_model_id": "ann/chair", "max_train_steps": 1}
    assert distil(data[0], tmp_path / "b", **options) == 0
    assert asked == ["ann/chair"] and "uploaded to hub/ann/chair" in capsys.readouterr().out
