from __future__ import annotations

import errno
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import accelerate.tracking
import pytest
import torch
from stand_ins.training_runs import files, metrics
from torch import Tensor, nn

from dd3g.command import guarded
from dd3g.configuration import parse
from dd3g.errors import UserError
from dd3g.training import Batch, LoopConfig, checkpoints, fit, generator_for, loop, processes, stopping
from dd3g.training.optimizer import learning_rate
from dd3g.training.stopping import Stopped


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Several threads would take longer here."""


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)


@dataclass(frozen=True)
class Point(Batch):
    x: Tensor
    y: Tensor


class Points:
    """Samples of a line; from `broken` on there are none."""

    def __init__(self, broken=1 << 60, error=None):
        self.broken, self.error = broken, error

    def __getitem__(self, index):
        if index >= self.broken:
            raise self.error
        x = torch.randn(3, generator=generator_for(0, index))
        return Point(x, x.sum()[None])


def squared(model, batch, step):
    error = (model(batch.x) - batch.y).square().mean()
    return error, {"root": error.detach().sqrt()}


def fit_line(folder, points=None, loss=squared, **options):
    torch.manual_seed(0)
    settings = {
        "max_train_steps": 8, "checkpointing_steps": 3, "validation_steps": 4, "train_batch_size": 4,
        "learning_rate": 0.05, "lr_warmup_steps": 2, "lr_decay_steps": 2, "report_to": "none",
        "mixed_precision": "no",
    }  # fmt: skip
    config = LoopConfig(output_dir=str(folder), **(settings | options))
    seen = []

    def publish(model, step):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        (folder / "model").mkdir(parents=True, exist_ok=True)
        torch.save(seen[-1], folder / "model/line.pt")

    model = Line()
    fit(model, loss, points or Points(), config, publish)
    return model, seen


def test_the_loop_by_brute_force(tmp_path):
    """AdamW, clipping, schedule and average against a plain loop."""
    trained, saved = fit_line(tmp_path, max_grad_norm=0.5)
    torch.manual_seed(0)
    model, points = Line(), Points()
    average = [p.detach().clone() for p in model.parameters()]
    config = LoopConfig(learning_rate=0.05, max_train_steps=8, lr_warmup_steps=2, lr_decay_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(8):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        batch = Point.collate([points[4 * step + i] for i in range(4)])
        error = (model(batch.x) - batch.y).square().mean()
        optimizer.zero_grad()
        error.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        line = metrics(tmp_path)[step]
        assert line["step"] == step + 1 and line["loss"] == pytest.approx(error.item(), rel=1e-5)
        assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert line["root"] == pytest.approx(math.sqrt(line["loss"]), rel=1e-5)
        optimizer.step()
        decay = min(0.998, max(0.0, 1 - (1 + step) ** -0.75))
        for a, p in zip(average, model.parameters(), strict=True):
            a.lerp_(p.detach(), 1 - decay)
    for a, p in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.allclose(a, p, atol=1e-6)  # the raw weights are back after the average was saved
    for a, p in zip(average, saved[-1].values(), strict=True):
        assert torch.allclose(a, p, atol=1e-6)
    assert len(saved) == 2


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_batches_equal_large_ones(tmp_path, accumulation):
    whole, _ = fit_line(tmp_path / "whole")
    split, _ = fit_line(
        tmp_path / "split", gradient_accumulation_steps=accumulation, train_batch_size=4 // accumulation
    )
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "split"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-4
        )


def asked_at(step, *signals):
    """The loss, during whose call at this step the process gets signals."""

    def loss(model, batch, now):
        if now == step:
            for name in signals:
                os.kill(os.getpid(), getattr(signal, name))
        return squared(model, batch, now)

    return loss


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 0)]
)
def test_a_signal_ends_the_run_with_a_checkpoint_of_its_step(tmp_path, name, code):
    whole, _ = fit_line(tmp_path / "whole")
    handler = signal.getsignal(getattr(signal, name))
    assert guarded(lambda: fit_line(tmp_path / "cut", loss=asked_at(4, name)) and None) == code
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "cut")] == ["checkpoint-3", "checkpoint-5"]
    assert [line["step"] for line in metrics(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    assert signal.getsignal(getattr(signal, name)) == handler
    again, _ = fit_line(tmp_path / "cut", resume_from_checkpoint="latest")
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_second_signal_does_not_wait_for_the_step(tmp_path):
    with pytest.raises(Stopped, match="SIGINT"):
        fit_line(tmp_path, loss=asked_at(4, "SIGTERM", "SIGINT"))
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-3"]


@pytest.mark.parametrize(
    "names", [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGTERM", "SIGUSR1", "SIGTERM")], ids="-".join
)
def test_an_echo_waits_for_the_step(tmp_path, names):
    """A scheduler signals all processes of a job, and the launcher among them hands it on to the others."""
    with pytest.raises(Stopped, match=names[0]):
        fit_line(tmp_path, loss=asked_at(4, *names))
    assert checkpoints.checkpoints(tmp_path)[-1].name == "checkpoint-5"


def test_the_same_signal_from_an_impatient_user(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "ECHO", 0.0)
    with pytest.raises(Stopped, match="SIGINT"):
        fit_line(tmp_path, loss=asked_at(4, "SIGINT", "SIGINT"))
    assert checkpoints.checkpoints(tmp_path)[-1].name == "checkpoint-3"


def test_the_time_is_up_is_no_reason_for_haste(tmp_path, monkeypatch):
    """Whenever it is said again."""
    monkeypatch.setattr(stopping, "ECHO", 0.0)
    with pytest.raises(Stopped) as stopped:
        fit_line(tmp_path, loss=asked_at(4, "SIGUSR1", "SIGUSR1", "SIGUSR1"))
    assert stopped.value.code == 0 and checkpoints.checkpoints(tmp_path)[-1].name == "checkpoint-5"


def test_nohup_is_respected(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit_line(tmp_path, loss=asked_at(4, "SIGHUP"))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(metrics(tmp_path)) == 8


def test_a_signal_in_the_last_step_leaves_a_finished_run(tmp_path):
    fit_line(tmp_path, loss=asked_at(7, "SIGTERM"))
    assert (tmp_path / "model/line.pt").is_file() and len(metrics(tmp_path)) == 8


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


def test_max_minutes_stops_with_a_checkpoint(tmp_path):
    fit_line(tmp_path, max_minutes=1e-6, max_train_steps=1000)
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-1"]
    assert (tmp_path / "model/line.pt").exists()


def broken_loss(model, batch, step):
    value, terms = squared(model, batch, step)
    return value * (math.nan if step == 4 else 1), terms


def broken_gradient(model, batch, step):
    value, terms = squared(model, batch, step)
    if step == 4:
        value = value + (0 * model.layer.weight.sum()).sqrt()  # finite, with a slope of 0 * inf
    return value, terms


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_before_it_touches_anything(tmp_path, what):
    good, _ = fit_line(tmp_path / "good", max_train_steps=4, lr_scheduler="constant", checkpointing_steps=4)
    options = {"loss": broken_loss if what == "loss" else broken_gradient}
    torch.manual_seed(0)
    kept = []
    original = Line.forward

    def spy(self, x):
        kept.append((self, {n: p.detach().clone() for n, p in self.named_parameters()}))
        return original(self, x)

    Line.forward = spy
    try:
        with pytest.raises(
            UserError,
            match=rf"the {'loss' if what == 'loss' else 'grad_norm'} is nan at step 5;.*"
            r"checkpoint-3: resume from it with a lower learning_rate",
        ):
            fit_line(tmp_path / "bad", lr_scheduler="constant", **options)
    finally:
        Line.forward = original
    model, before = kept[-1]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(model.layer.weight, good.layer.weight)
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "bad")] == ["checkpoint-3"]
    assert [m["step"] for m in metrics(tmp_path / "bad")] == [1, 2, 3, 4]
    fit_line(tmp_path / "bad", lr_scheduler="constant", resume_from_checkpoint="latest")
    assert len(metrics(tmp_path / "bad")) == 8


def test_nan_before_the_first_checkpoint(tmp_path):
    with pytest.raises(UserError, match="at step 1; nothing of this step was kept, start again with"):
        fit_line(tmp_path, loss=lambda model, batch, step: squared(model, batch, step)[0] * math.nan)


def test_what_is_not_a_checkpoint(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "checkpoint-9"):
        with pytest.raises(UserError, match="not a checkpoint folder; give 'latest'"):
            fit_line(tmp_path / "run", resume_from_checkpoint=str(tmp_path / name))


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


@pytest.mark.parametrize(("signals", "kept"), [(["SIGTERM"], 6), (["SIGTERM", "SIGHUP"], 3)])
def test_a_signal_in_the_middle_of_a_checkpoint(tmp_path, monkeypatch, signals, kept):
    """One is noted, and the checkpoint is finished first; a second one leaves the last whole checkpoint."""
    whole, _ = fit_line(tmp_path / "whole")
    save = checkpoints.save_file

    def interrupted(tensors, path, metadata):
        save(tensors, path, metadata)
        if path.name == "model.safetensors" and checkpoints.checkpoints(path.parent.parent):
            for name in signals:
                os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", interrupted)
        with pytest.raises(Stopped):
            fit_line(tmp_path / "cut")
    assert checkpoints.checkpoints(tmp_path / "cut")[-1].name == f"checkpoint-{kept}"
    again, _ = fit_line(tmp_path / "cut", resume_from_checkpoint="latest")
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    assert not (tmp_path / "cut" / checkpoints.SCRATCH).exists()


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


def test_the_others_do_not_wait_for_a_main_process_that_fails(tmp_path, monkeypatch):
    """What is broadcast, and what each of two processes raises."""
    sent = []

    class Two:
        num_processes = 2

        def __init__(self, main):
            self.is_main_process = main

    monkeypatch.setattr(processes, "broadcast_object_list", lambda found: sent.append(found) or sent[0])
    monkeypatch.setattr(processes, "PartialState", lambda: Two(True))
    with pytest.raises(ZeroDivisionError):
        processes.on_main(lambda: 1 / 0)
    monkeypatch.setattr(processes, "PartialState", lambda: Two(False))
    with pytest.raises(UserError, match=r"the main process failed \(division by zero\)"):
        processes.on_main(lambda: 1 / 0)


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


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "is_wandb_available", lambda: False)
    with pytest.raises(UserError, match="report_to 'wandb' needs a package that is not installed"):
        fit_line(tmp_path, report_to="wandb")
    with pytest.raises(UserError, match="report_to 'paper' does not work here"):
        fit_line(tmp_path, report_to="paper")


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write output_dir"):
        fit_line(tmp_path / "file" / "run")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_errors_of_samples_are_one_line(tmp_path, workers):
    points = Points(broken=4, error=UserError("shard x.tar is damaged: delete it"))
    message = r"^shard x.tar is damaged: delete it \(16 samples in a row are damaged\)$"
    with pytest.raises(UserError, match=message):
        fit_line(tmp_path, points, dataloader_num_workers=workers)
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-1"]  # on the way out


def test_precisions(tmp_path):
    names = {"auto": "auto", "no": "no", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    assert all(LoopConfig(mixed_precision=k).mixed_precision == v for k, v in names.items())
    (tmp_path / "a.yaml").write_text("mixed_precision: no\n")
    assert parse(["--config", str(tmp_path / "a.yaml")], LoopConfig).mixed_precision == "no"
    types = []

    def spy(model, batch, step):
        hooked = model.layer.register_forward_hook(lambda m, i, o: types.append(o.dtype))
        value = squared(model, batch, step)
        hooked.remove()
        types.append(value[0].dtype)
        types.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return value

    fit_line(tmp_path / "run", mixed_precision="bf16", loss=spy, max_train_steps=1)
    # Only the network is rounded; what is computed from its outputs is not.
    assert types == [torch.bfloat16, torch.float32, torch.float32]
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="mixed_precision 'fp16' needs a CUDA device"):
            fit_line(tmp_path / "half", mixed_precision="fp16")


@pytest.mark.parametrize(
    ("cuda", "bf16", "amx", "use_cpu", "precision"),
    [
        (False, True, False, False, "no"),
        (False, True, True, False, "bf16"),
        (True, True, False, False, "bf16"),
        (True, False, True, False, "no"),
        (True, True, False, True, "no"),
        (True, False, True, True, "bf16"),
    ],
)
def test_precision_suits_the_machine(monkeypatch, cuda, bf16, amx, use_cpu, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert LoopConfig(use_cpu=use_cpu).precision == precision
    assert LoopConfig(mixed_precision="fp16", use_cpu=use_cpu).precision == "fp16"


def test_schedules():
    def rates(scheduler, steps, minutes=0.0, **options):
        settings = {"max_train_steps": 100, "lr_warmup_steps": 10, "lr_decay_steps": 20} | options
        config = LoopConfig(learning_rate=1.0, lr_scheduler=scheduler, **settings)
        return pytest.approx([learning_rate(config, k, minutes) for k in steps], abs=1e-6)

    assert [0.1, 0.5, 1, 1, 1, 0.5, 0] == rates("warmup_stable_decay", (0, 4, 9, 50, 80, 90, 100))
    assert [0.1, 1, 0.5, 0] == rates("cosine", (0, 10, 55, 100))
    assert [0.1, 1, 0.5, 0] == rates("linear", (0, 10, 55, 100))
    assert [1, 0.75, 0.25] == rates("linear", (10, 32.5, 77.5))
    assert [0.1, 0.5, 0] == rates("timed_cosine", (0, 50, 100))
    assert [0.5, 0.5, 0.1464466] == rates("timed_cosine", (9, 50, 75), minutes=3, max_minutes=6)
    for name in ("constant", "constant_with_warmup"):
        assert [0.1, 1, 1] == rates(name, (0, 10, 100))
    with pytest.raises(ValueError, match="'polynomial' is not one of warmup_stable_decay, linear, cosine"):
        LoopConfig(lr_scheduler="polynomial")


class Scaled:
    """An accelerator with fp16's loss scaler."""

    def __init__(self, scale):
        self.scaler = self
        self.scale = scale

    def get_scale(self):
        return self.scale


def test_fp16_overflows_are_skipped_until_no_scale_is_left(tmp_path):
    numbers = {"loss": 1.0, "grad_norm": math.inf}
    loop._check_finite(Scaled(1024.0), numbers, 5, tmp_path)
    with pytest.raises(UserError, match="the gradient overflows at every loss scale at step 5"):
        loop._check_finite(Scaled(1e-6), numbers, 5, tmp_path)
    with pytest.raises(UserError, match="the loss is inf"):
        loop._check_finite(Scaled(1024.0), {"loss": math.inf, "grad_norm": 1.0}, 5, tmp_path)
