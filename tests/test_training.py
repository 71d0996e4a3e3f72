import json

import pytest
import torch
from torch import nn

from dd3g import training
from dd3g.errors import UserError
from dd3g.training import fit, generator_for


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def loss(model, step, generator):
    x = torch.randn(32, 4, generator=generator)
    target = torch.stack([x[:, 0] + x[:, 1], x[:, 2] - 0.5], -1)
    return (model(x) - target).square().mean()


def run(folder, steps, **options):
    return fit(network(), loss, folder, steps, learning_rate=1e-2, warmup=5, checkpoint_every=10, **options)


def equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


class Killed(Exception):
    pass


def killed_at(step):
    def dying(model, now, generator):
        if now == step:
            raise Killed
        return loss(model, now, generator)

    return dying


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, amsgrad):
    options = {"learning_rate": 1e-2, "warmup": 5, "checkpoint_every": 10, "log_every": 5, "amsgrad": amsgrad}
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
    options = {"learning_rate": 2e-2, "warmup": 10, "log_every": 20, "ema": 0.98}
    average = fit(model, loss, tmp_path, 160, evaluate=lambda m: {"twice": 2.0}, **options)
    assert not average.training and not equal(model, average)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[7]["loss"] < 0.3 < 0.7 < lines[0]["loss"]
    assert lines[7]["lr"] < 1e-5 and lines[-1] == {"step": 160, "twice": 2.0}
    with torch.no_grad():
        assert loss(average, 0, generator_for(1, 0)) < 0.15


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = network()
    torch.manual_seed(3)
    fit(model, loss, tmp_path, 3)
    assert torch.equal(torch.rand(2), expected)


def test_minutes_end_the_run_and_the_fall_of_the_learning_rate(tmp_path, monkeypatch):
    seconds = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(seconds)))
    run(tmp_path, 10**9, minutes=1, log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 20 < len(lines) < 60 and lines[-1]["lr"] < 1e-4 < 8e-3 < max(line["lr"] for line in lines)
    run(tmp_path, 10**9, minutes=1, resume=True)  # the minute is spent: nothing is left to do
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(lines)


def test_clear_words_for_what_goes_wrong(tmp_path):
    run(tmp_path, 10)
    with pytest.raises(UserError, match="holds a run"):
        run(tmp_path, 10)
    with pytest.raises(UserError, match="another model"):
        fit(nn.Linear(4, 2), loss, tmp_path, 10, resume=True)
    whole = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(whole[:-9])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        run(tmp_path, 10, resume=True)


def test_a_loss_that_is_not_finite_leaves_the_last_step(tmp_path):
    model = network()
    kept = []

    def breaking(model, step, generator):
        value = loss(model, step, generator)
        if step == 3:
            kept.extend(p.detach().clone() for p in model.parameters())
            return value * float("nan")
        return value

    with pytest.raises(UserError, match="step 4: loss nan"):
        fit(model, breaking, tmp_path, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))
