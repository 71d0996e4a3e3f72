import json

import pytest
import torch
from torch import nn

from dd3g.errors import UserError
from dd3g.training import SmallNetworkConfig, generator_for, loop


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def loss(model, generator, step):
    x = torch.randn(32, 4, generator=generator)
    target = torch.stack([x[:, 0] + x[:, 1], x[:, 2] - 0.5], -1)
    return (model(x) - target).square().mean()


def fit(model, loss, folder, steps, evaluate=None, learning_rate=1e-2, **options):
    publish = None if evaluate is None else lambda model, step: evaluate(model)
    return loop.fit(
        model, loss, None, SmallNetworkConfig.of(folder, steps, learning_rate, **options), publish
    )


def run(folder, steps, **options):
    return fit(network(), loss, folder, steps, lr_warmup_steps=5, checkpointing_steps=10, **options)


def equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


class Killed(Exception):
    pass


def killed_at(step):
    def dying(model, generator, now):
        if now == step:
            raise Killed
        return loss(model, generator, now)

    return dying


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, amsgrad):
    options = {"lr_warmup_steps": 5, "checkpointing_steps": 10, "logging_steps": 5, "adam_amsgrad": amsgrad}
    whole = fit(network(), loss, tmp_path / "whole", 40, **options)
    with pytest.raises(Killed):
        fit(network(), killed_at(27), tmp_path / "killed", 40, **options)
    resumed = fit(network(), loss, tmp_path / "killed", 40, resume=True, **options)
    assert equal(whole, resumed)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == list(range(5, 41, 5))


def test_training_learns_and_returns_the_average(tmp_path):
    model = network()
    options = {"learning_rate": 2e-2, "lr_warmup_steps": 10, "logging_steps": 20, "ema_decay": 0.98}
    average = fit(model, loss, tmp_path, 160, evaluate=lambda m: {"twice": 2.0}, **options)
    assert not average.training and not equal(model, average)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[7]["loss"] < 0.3 < 0.7 < lines[0]["loss"]
    assert lines[7]["lr"] < 1e-5 and lines[-1] == {"step": 160, "twice": 2.0}
    with torch.no_grad():
        assert loss(average, generator_for(1, 0), 0) < 0.15


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = network()
    torch.manual_seed(3)
    fit(model, loss, tmp_path, 3)
    assert torch.equal(torch.rand(2), expected)


def test_minutes_end_the_run_and_the_fall_of_the_learning_rate(tmp_path, monkeypatch):
    seconds = iter(range(10**6))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(seconds)))
    run(tmp_path, 10**9, minutes=4, logging_steps=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 20 < len(lines) < 240 and lines[-1]["lr"] < 1e-4 < 8e-3 < max(line["lr"] for line in lines)
    run(tmp_path, 10**9, minutes=4, resume=True)  # the minutes are spent: nothing is left to do
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(lines)


def test_clear_words_for_what_goes_wrong(tmp_path):
    run(tmp_path, 10)
    with pytest.raises(UserError, match="checkpoint-10 of another run.*--resume"):
        run(tmp_path, 10)
    with pytest.raises(UserError, match="another model"):
        same = {"lr_warmup_steps": 5, "checkpointing_steps": 10}
        fit(nn.Linear(4, 2), loss, tmp_path, 10, resume=True, **same)
    with pytest.raises(UserError, match=r"lr_warmup_steps 5 \(now 7\); repeat those, or choose another"):
        fit(network(), loss, tmp_path, 10, resume=True, lr_warmup_steps=7)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="earlier version"):
        run(tmp_path, 10, resume=True)


def test_a_loss_that_is_not_finite_leaves_the_last_step(tmp_path):
    model = network()
    kept = []

    def breaking(model, generator, step):
        value = loss(model, generator, step)
        if step == 3:
            kept.extend(p.detach().clone() for p in model.parameters())
            return value * float("nan")
        return value

    with pytest.raises(UserError, match="loss is nan at step 4"):
        fit(model, breaking, tmp_path, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))


def test_own_batches_are_drawn_by_one_process(tmp_path, monkeypatch):
    """Each of several would draw the same, take as long, and write the network over the others'."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start one, without torchrun"):
        run(tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()
