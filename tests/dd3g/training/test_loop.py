"""The loop of every trainer: its steps by brute force, precision, rates, and what ends it."""

from __future__ import annotations

import math

import accelerate.tracking
import pytest
import torch
from stand_ins.line import Line, Point, Points, fit_line, squared
from stand_ins.training_runs import metrics
from torch import nn

from dd3g.command.configuration import parse
from dd3g.errors import UserError
from dd3g.training import LoopConfig, checkpoints, loop, processes
from dd3g.training.optimizer import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")  # several threads would take longer here


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


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "is_wandb_available", lambda: False)
    with pytest.raises(UserError, match="'wandb' needs the package .*: pip install wandb, or take report_to"):
        fit_line(tmp_path, report_to="wandb")
    with pytest.raises(UserError, match="report_to 'paper' does not work here: give tensorboard"):
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
    # What a GPU does not have is emulated, slowly.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16
    )
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
