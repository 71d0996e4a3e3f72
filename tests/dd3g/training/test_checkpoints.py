"""Checkpoints: pruned, resumed, and whole whatever happens to the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from stand_ins.line import fit_line
from stand_ins.training_runs import files, metrics

from dd3g.errors import UserError
from dd3g.training import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")  # several threads would take longer here


def test_resuming_with_another_accumulation_still_steps_once(tmp_path):
    before, _ = fit_line(tmp_path, max_train_steps=4, gradient_accumulation_steps=2)  # 8 = 2 modulo 3
    changed = {"resume_from_checkpoint": "latest", "allow_changed": True}
    model, _ = fit_line(tmp_path, max_train_steps=5, gradient_accumulation_steps=3, **changed)
    assert [m["step"] for m in metrics(tmp_path)] == list(range(1, 6))
    assert not torch.equal(model.layer.weight, before.layer.weight)


def test_resuming_with_another_learning_rate_follows_it_at_once(tmp_path):
    before, _ = fit_line(tmp_path, max_train_steps=4)
    resume = {"max_train_steps": 6, "lr_decay_steps": 1, "resume_from_checkpoint": "latest"}
    resume["allow_changed"] = True
    model, _ = fit_line(tmp_path, learning_rate=0.02, **resume)
    assert [m["lr"] for m in metrics(tmp_path)] == [0.025, 0.05, 0.05, 0.025, 0.02, 0.02]
    assert (model.layer.weight - before.layer.weight).abs().max() > 0.01


@pytest.mark.slow
def test_checkpoints_are_pruned_and_resumed(tmp_path):
    whole, _ = fit_line(tmp_path / "whole", checkpointing_steps=1, checkpoints_total_limit=3)
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "whole")] == [
        f"checkpoint-{i}" for i in (6, 7, 8)
    ]
    fit_line(tmp_path / "cut", max_train_steps=5, lr_scheduler="constant")
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "cut")] == ["checkpoint-3", "checkpoint-5"]
    (tmp_path / "cut/metrics.jsonl").open("a").write('{"step": 6, "loss"')  # torn by a kill
    (tmp_path / "cut/checkpoint-saving").mkdir()
    again, averaged = fit_line(tmp_path / "cut", lr_scheduler="constant", resume_from_checkpoint="latest")
    straight, wanted = fit_line(tmp_path / "straight", lr_scheduler="constant")
    assert torch.equal(again.layer.weight, straight.layer.weight)
    assert all(torch.equal(averaged[-1][n], average) for n, average in wanted[-1].items())
    assert (
        files(tmp_path / "cut")[Path("metrics.jsonl")] == files(tmp_path / "straight")[Path("metrics.jsonl")]
    )
    chosen, _ = fit_line(
        tmp_path / "other", lr_scheduler="constant", resume_from_checkpoint=str(tmp_path / "cut/checkpoint-6")
    )
    assert torch.equal(chosen.layer.weight, straight.layer.weight)
    assert not (tmp_path / "cut/checkpoint-saving").exists()


def test_a_finished_run_only_writes_its_model_again(tmp_path):
    fit_line(tmp_path)
    (tmp_path / "model/line.pt").unlink()
    before = files(tmp_path)
    fit_line(tmp_path, resume_from_checkpoint="latest")
    after = files(tmp_path)
    assert after.pop(Path("model/line.pt")) and after == before


def test_latest_without_a_checkpoint_starts_at_0(tmp_path):
    fit_line(tmp_path, resume_from_checkpoint="latest", max_train_steps=2)
    assert len(metrics(tmp_path)) == 2


def test_a_fresh_run_does_not_mix_with_an_old_one(tmp_path):
    fit_line(tmp_path)
    before = files(tmp_path)
    for resume in ("", str(tmp_path / "checkpoint-6")):
        with pytest.raises(UserError, match="checkpoint-8 of another run.*--resume latest"):
            fit_line(tmp_path, resume_from_checkpoint=resume)
    assert files(tmp_path) == before


def test_what_is_not_a_checkpoint(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "checkpoint-9"):
        with pytest.raises(UserError, match="not a checkpoint folder; give 'latest'"):
            fit_line(tmp_path / "run", resume_from_checkpoint=str(tmp_path / name))


def test_a_checkpoint_by_its_name_in_the_output_folder(tmp_path):
    whole, _ = fit_line(tmp_path)
    again, _ = fit_line(tmp_path, resume_from_checkpoint="checkpoint-8")
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    fit_line(tmp_path, max_train_steps=3)
    before = files(tmp_path / "checkpoint-3")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="cannot write a checkpoint .*No space left.*--resume latest"):
        fit_line(tmp_path, resume_from_checkpoint="latest")
    assert files(tmp_path / "checkpoint-3") == before
    assert [p.name for p in tmp_path.glob("checkpoint*")] == ["checkpoint-3"]


def test_an_old_checkpoint_that_cannot_be_deleted(tmp_path, monkeypatch, capsys):
    remove = checkpoints.shutil.rmtree

    def busy(path, *words, **options):
        if Path(path).name == "checkpoint-3":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        remove(path, *words, **options)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", busy)
    fit_line(tmp_path, checkpoints_total_limit=1)
    assert len(metrics(tmp_path)) == 8
    assert "checkpoint-3 cannot be deleted (Device or resource busy)" in capsys.readouterr().err


def test_a_full_disk_keeps_the_metrics(tmp_path, monkeypatch):
    fit_line(tmp_path, max_train_steps=3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write = Path.write_text

    def full(self, text):
        write(self, text[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl: the disk is full"):
            fit_line(tmp_path, resume_from_checkpoint="latest")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    fit_line(tmp_path, resume_from_checkpoint="latest")
    assert [m["step"] for m in metrics(tmp_path)] == list(range(1, 9))
