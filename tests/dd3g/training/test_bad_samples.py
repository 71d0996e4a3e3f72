"""Damaged samples cost themselves, not the run."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from stand_ins import line_run
from stand_ins.line_run import LINE, Points
from stand_ins.training_runs import fresh, metrics

from dd3g.cameras import Cameras
from dd3g.command.configuration import launch
from dd3g.errors import UserError
from dd3g.training import Batch, LoopConfig, data
from dd3g.training.checkpoints import checkpoints
from dd3g.training.stopping import SIGNALS


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Several threads would take longer here."""


@dataclass(frozen=True)
class Seen(Batch):
    rig: Cameras
    alpha: torch.Tensor


class Damaged(Points):
    """Samples 9 and 21 cannot be decoded, 14 holds an infinite number."""

    def __getitem__(self, index):
        point = super().__getitem__(index)
        if index in (9, 21):
            raise UserError(f"sample-{index} in shard x.tar is damaged")
        return replace(point, x=point.x / 0) if index == 14 else point


def line(folder, monkeypatch, samples=Damaged, **options):
    monkeypatch.setattr(line_run, "Points", samples)
    fresh()
    settings = LINE | {"output_dir": folder} | options
    return launch(line_run.run, LoopConfig, [f"{k}={v}" for k, v in settings.items()])


def seen(folder):
    return [int(row.split()[1]) for row in (folder / "seen-0.txt").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_they_are_named_and_replaced(tmp_path, monkeypatch, capsys, forked_workers, workers):
    if workers:  # which find their class again by its name
        monkeypatch.setattr(line_run, "Damaged", Damaged, raising=False)
    assert line(tmp_path, monkeypatch, dataloader_num_workers=workers) == 0
    error = capsys.readouterr().err
    for message in (
        "warning: skipped a sample: sample-9 in shard x.tar is damaged",
        "warning: skipped a sample: sample 14 of the run has x that is not finite",
        "warning: skipped a sample: sample-21 in shard x.tar is damaged",
    ):
        assert error.count(message) == 1
    assert seen(tmp_path) == [i + data.SPARE * (i in (9, 14, 21)) for i in range(32)]
    # Another sample, not the same one under another number.
    assert not torch.equal(Points()[9].x, Points()[9 + data.SPARE].x)
    assert len(metrics(tmp_path)) == 8


def test_more_than_the_budget_end_the_run_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    assert line(tmp_path, monkeypatch, max_bad_samples=1) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "sample 14 of the run has x that is not finite (more than max_bad_samples=1" in error
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-3"] and len(metrics(tmp_path)) == 3
    assert line(tmp_path, monkeypatch, resume_from_checkpoint="latest") == 0
    assert len(metrics(tmp_path)) == 8


def test_a_resumed_run_replaces_them_alike(tmp_path, monkeypatch):
    assert line(tmp_path / "whole", monkeypatch) == 0
    assert line(tmp_path / "cut", monkeypatch, max_train_steps=2, lr_scheduler="constant") == 0
    again = {"resume_from_checkpoint": "latest", "allow_changed": True}
    assert line(tmp_path / "cut", monkeypatch, **again) == 0
    assert seen(tmp_path / "cut") == seen(tmp_path / "whole")


def test_a_set_that_is_damaged_throughout(tmp_path, monkeypatch, capsys):
    class Gone(Points):
        def __getitem__(self, index):
            raise UserError("shard y.tar is not there")

    assert line(tmp_path, monkeypatch, Gone) == 2
    assert "shard y.tar is not there (16 samples in a row are damaged)" in capsys.readouterr().err


def test_other_faults_are_not_taken_for_damage(tmp_path, monkeypatch):
    class Wrong(Points):
        def __getitem__(self, index):
            return super().__getitem__(index), torch.zeros(1) @ torch.zeros(2)

    with pytest.raises(RuntimeError, match="inconsistent"):
        line(tmp_path, monkeypatch, Wrong)


def test_what_a_sample_is_made_of_is_looked_at_too(tmp_path):
    cameras = Cameras.default_rig(8)
    broken = replace(cameras, viewmats=cameras.viewmats * torch.tensor(float("nan")))
    for rig, message in (
        (cameras, None),
        (broken, "sample 5 of the run has rig.viewmats that is not finite"),
    ):
        if message is None:
            assert data._finite(Seen(rig, torch.ones(2)), 5)
        else:
            with pytest.raises(UserError, match=message):
                data._finite(Seen(rig, torch.ones(2)), 5)


class Group(Points):
    """Sample 13 sends a signal: to its own process, or to all processes of its session."""

    name = "SIGTERM"

    def __getitem__(self, index):
        if index == 13 and torch.utils.data.get_worker_info() is not None:
            if self.name == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                for process in (os.getpid(), os.getppid()):
                    os.kill(process, getattr(signal, self.name))
        return super().__getitem__(index)


class Killed(Group):
    name = "SIGKILL"


class Warned(Group):
    name = "SIGUSR1"


class Early(Points):
    """A worker that is made with it gets all signals before it knows what to do with them."""

    def __reduce__(self):
        return early, ()


def early():
    for name in SIGNALS:
        os.kill(os.getpid(), getattr(signal, name))
    return Points()


@pytest.mark.slow
def test_signals_to_workers_that_are_starting(tmp_path, monkeypatch):
    assert line(tmp_path, monkeypatch, Early, dataloader_num_workers=1) == 0
    assert seen(tmp_path) == list(range(32))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "code"), [(Group, 143), (Warned, 0), (Killed, 2)])
def test_signals_to_workers(tmp_path, monkeypatch, capsys, samples, code):
    """A signal to the whole group leaves workers alone; one that is killed ends the run with a checkpoint."""
    monkeypatch.setattr(line_run, samples.__name__, samples, raising=False)
    options = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 1, "checkpointing_steps": 100}
    assert line(tmp_path, monkeypatch, samples, **options) == code
    error = capsys.readouterr().err
    (kept,) = checkpoints(tmp_path)
    step = int(kept.name.removeprefix("checkpoint-"))
    assert 1 <= step <= 4 and len(metrics(tmp_path)) == step
    assert ("a data loader's process ended (DataLoader worker" in error) == (samples is Killed)
    monkeypatch.setattr(samples, "__getitem__", Points.__getitem__)
    assert line(tmp_path, monkeypatch, resume_from_checkpoint="latest", samples=Points) == 0
    assert seen(tmp_path) == list(range(32))
