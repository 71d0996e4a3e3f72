"""Curves of a run that was cut and resumed, with its settings and pictures, under one name."""

from __future__ import annotations

import json
import math

import accelerate.tracking
import pytest
import torch
from accelerate.utils import LoggerType
from PIL import Image
from stand_ins import line_run
from stand_ins.line_run import LINE
from stand_ins.training_runs import fresh, metrics

from dd3g.command.configuration import launch
from dd3g.training import LoopConfig, records


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Several threads would take longer here."""


def line(folder, *words):
    fresh()
    settings = [f"{k}={v}" for k, v in LINE.items()]
    return launch(line_run.run, LoopConfig, [*settings, f"output_dir={folder}", *words])


@pytest.fixture
def wandb(monkeypatch):
    """Records what would go to Weights & Biases."""
    told = []

    class Tracker(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False

        def __init__(self, project, **options):
            super().__init__()
            told.append(("project", project, options))

        def start(self):
            pass

        @property
        def tracker(self):
            return None

        def store_init_configuration(self, values):
            told.append(("config", values))

        def log(self, values, step=None, **options):
            told.append(("log", step, values))

        def log_images(self, values, step=None, **options):
            told.append(("images", step, {k: v.shape for k, v in values.items()}))

        def finish(self):
            pass

    monkeypatch.setattr(accelerate.tracking, "is_wandb_available", lambda: True)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    return told


def test_a_gradient_that_overflows_is_null(tmp_path):
    """As float16's does at the first steps: JSON has no infinity, and other readers refuse the line."""
    kept = records.Metrics(tmp_path / "metrics.jsonl", 0)
    kept.add(1, {"loss": 0.5, "grad_norm": math.inf, "lr": 0.1})
    kept.write(2, {"score": math.nan})
    kept.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": 0.5, "grad_norm": null, "lr": 0.1}\n{"step": 2, "score": null}\n'
    )


def test_what_waits_for_a_full_line_is_written_at_the_end(tmp_path):
    kept = records.Metrics(tmp_path / "metrics.jsonl", 0, every=2)
    for step in (1, 2, 3):
        kept.add(step, {"loss": float(step), "lr": step / 10})
    kept.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines == [{"step": 2, "loss": 1.5, "lr": 0.2}, {"step": 3, "loss": 3.0, "lr": 0.3}]


def test_wandb_goes_on_with_the_same_run_inside_the_output_folder(tmp_path, wandb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["report_to=wandb", "tracker_project_name=lines", "validation_steps=4"]
    out = tmp_path / "run"
    out.mkdir()
    Image.new("RGB", (6, 4)).save(out / "sheet-000004.png")
    assert line(out, *words, "max_train_steps=3") == 0
    assert line(out, *words, "resume_from_checkpoint=latest") == 0
    run = json.loads((out / "run.json").read_text())["run"]
    projects = [t for t in wandb if t[0] == "project"]
    expected = {"id": run, "resume": "allow", "dir": str(out / "logs")}
    assert projects == [("project", "lines", expected)] * 2
    configs = [t[1] for t in wandb if t[0] == "config"]
    assert configs[0]["learning_rate"] == 0.05 and configs[1]["max_train_steps"] == 8
    logged = [t for t in wandb if t[0] == "log"]
    assert [t[1] for t in logged] == list(range(1, 9)) and {"loss", "grad_norm", "lr"} <= set(logged[0][2])
    assert ("images", 4, {"sheet": (1, 4, 6, 3)}) in wandb
    assert not (tmp_path / "wandb").exists()


def test_nothing_is_tracked_unasked(tmp_path, wandb):
    assert line(tmp_path) == 0
    assert LoopConfig().report_to == "tensorboard" and not wandb


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ["report_to=tensorboard", "checkpointing_steps=3"]

    calls, forward = [], line_run.Line.forward

    def dying(self, x):
        calls.append(1 / (len(calls) < 5))  # steps 4 and 5 are told already, and lost
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_run.Line, "forward", dying)
        with pytest.raises(ZeroDivisionError):
            line(tmp_path, *words)
    assert line(tmp_path, *words, "resume_from_checkpoint=latest") == 0
    found = events.EventAccumulator(str(tmp_path / "logs/dd3g"))
    found.Reload()
    assert [s.step for s in found.Scalars("loss")] == list(range(1, 9))
    hparams = list((tmp_path / "logs").rglob("hparams.yml"))
    assert len(hparams) == 2 and "learning_rate: 0.05" in hparams[0].read_text()
    assert torch.tensor([s.value for s in found.Scalars("loss")]).isfinite().all()


def test_metrics_that_hold_what_is_no_text(tmp_path):
    """As after a node lost power."""
    assert line(tmp_path, "max_train_steps=4") == 0
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\0\xff{\n")
    assert line(tmp_path, "resume_from_checkpoint=latest") == 0
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 9))


def test_curves_in_another_folder(tmp_path):
    pytest.importorskip("tensorboard")
    assert line(tmp_path / "run", "report_to=tensorboard", f"logging_dir={tmp_path / 'curves'}") == 0
    assert list((tmp_path / "curves").rglob("events.out.tfevents*"))
    assert not (tmp_path / "run/logs").exists()


def test_what_cannot_be_shown_costs_curves_and_not_the_run(tmp_path, wandb, monkeypatch, capsys):
    """A full disk, or a service that is gone; said once."""
    tracker = accelerate.tracking.LOGGER_TYPE_TO_CLASS["wandb"]

    def fail(self, *args, **options):
        raise OSError(28, "No space left on device")

    for name in ("log", "log_images", "finish"):
        monkeypatch.setattr(tracker, name, fail)
    tmp_path.joinpath("run").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "run/sheet-000004.png")
    records._warn.cache_clear()
    assert line(tmp_path / "run", "report_to=wandb", "validation_steps=4") == 0
    assert capsys.readouterr().err.count("No space left on device): its curves have a gap") == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 8


def test_a_tracker_that_does_not_start_costs_curves_and_not_the_run(tmp_path, wandb, monkeypatch, capsys):
    """Nobody is logged in, or the node has no way out."""
    tracker = accelerate.tracking.LOGGER_TYPE_TO_CLASS["wandb"]

    def fail(self):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(tracker, "start", fail)
    records._warn.cache_clear()
    assert line(tmp_path / "run", "report_to=wandb") == 0
    error = capsys.readouterr().err
    assert "the tracker does not start (No API key configured." in error and error.count("tracker") == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 8 and len(wandb) == 1


def test_curves_that_cannot_be_written(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    records._warn.cache_clear()
    assert line(tmp_path / "run", "report_to=tensorboard", f"logging_dir={tmp_path / 'file/curves'}") == 0
    assert "the tracker does not start" in capsys.readouterr().err
