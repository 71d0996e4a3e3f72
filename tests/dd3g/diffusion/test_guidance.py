from __future__ import annotations

import pytest
import torch
from test_diffusion import COSINE, Net, normal

from dd3g.diffusion import Energy, Schedule, convert, descent, guide, predict, refine, sample


class Pull(Energy):
    """Squared distance to a point, per sample."""

    def __init__(self, target):
        self.target = target

    def __call__(self, x0):
        return (x0 - self.target).square().flatten(1).sum(1)


@pytest.mark.parametrize("t", [2, 50, 500])
def test_detached_guidance_is_the_closed_form_shift(t):
    schedule, net, x = Schedule.from_config(COSINE), Net(), normal(3, 2, 6)
    weight, target = 0.7, normal(3, 2, 6, seed=4)
    eps, x0 = predict(net, schedule, x, t, None)
    ab = schedule.ab(t)
    guided, shifted, energy = guide(
        schedule, lambda y: predict(net, schedule, y, t, None), x, t, weight * Pull(target)
    )
    gradient = 2 * (x0 - target)
    assert torch.allclose(shifted, x0 - weight * (1 - ab) / ab * gradient, atol=1e-12)
    assert torch.allclose(guided, eps + weight * ((1 - ab) / ab).sqrt() * gradient, atol=1e-12)
    assert torch.allclose(shifted, convert(schedule, guided, x, t, "eps", "x0"), atol=1e-10)
    assert torch.allclose(energy, weight * gradient.square().sum((1, 2)) / 4, atol=1e-12)
    if t == 50:
        assert ((1 - ab) / ab).item() == pytest.approx(0.00834, abs=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_through_the_network_is_the_whole_gradient(prediction):
    schedule, net, target, t = Schedule.from_config(COSINE), Net(prediction), normal(3, 6, seed=4), 300

    def energy(y):
        return Pull(target)(convert(schedule, net(y, torch.full((3,), t)), y, t, prediction, "x0")).sum()

    x = normal(3, 6)
    brute = torch.zeros_like(x)
    h = 1e-6
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype).index_fill_(0, torch.tensor(i), h).reshape_as(x)
        brute.view(-1)[i] = (energy(x + step) - energy(x - step)) / (2 * h)
    with torch.no_grad():
        eps, x0 = predict(net, schedule, x, t, None)
        guided, shifted, _ = guide(
            schedule, lambda y: predict(net, schedule, y, t, None), x, t, Pull(target), mode="through"
        )
    alpha, sigma = schedule.alpha_sigma(t, x)
    assert torch.allclose(guided - eps, sigma * brute, atol=1e-6)
    assert torch.allclose(shifted - x0, -(sigma**2) / alpha * brute, atol=1e-6)
    assert not guided.requires_grad and not x.requires_grad
    with pytest.raises(ValueError, match="mode"):
        guide(schedule, lambda y: (y, y), x, t, Pull(target), mode="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["detached", "through"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_zero_weight_is_unguided_bit_for_bit(mode, prediction):
    schedule, net, x = Schedule.from_config(COSINE), Net(prediction), normal(2, 3, 6, dtype=torch.float64)
    plan = schedule.plan(20)
    free = sample(net, schedule, x, plan)
    guided = sample(net, schedule, x, plan, objective=0.0 * Pull(normal(2, 3, 6)), mode=mode)
    assert torch.equal(free.x, guided.x) and torch.equal(free.x0, guided.x0)


def test_objectives_compose():
    a, b, x = normal(2, 6), normal(2, 6, seed=1), normal(2, 6, seed=2)
    total = 0.5 * Pull(a) + Pull(b) * 3 + (lambda x0: x0.sum(1))
    assert torch.allclose(total(x), 0.5 * Pull(a)(x) + 3 * Pull(b)(x) + x.sum(1))
    assert torch.allclose((2 * total)(x), 2 * total(x))
    assert torch.allclose(((lambda x0: x0.sum(1)) + Pull(a))(x), x.sum(1) + Pull(a)(x))


def test_guidance_lowers_the_energy_of_every_sample():
    schedule, net, target = Schedule.from_config(COSINE), Net(), normal(4, 6, seed=4)
    start, plan = normal(4, 6), descent(100, 10)
    result = refine(
        net, schedule, start, plan, objective=2.0 * Pull(target), rounds=3, record=lambda s: s.energy
    )
    assert (Pull(target)(result.x0) < 0.8 * Pull(target)(start)).all()
    assert len(result.trace) == 30 and result.trace[0].shape == (4,)
    assert (result.trace[-1] < result.trace[0]).all()


@pytest.mark.parametrize("tau,step,rounds,calls", [(50, 2, 10, 500), (100, 10, 2, 40)])
def test_network_calls_of_the_refinement_loop(tau, step, rounds, calls):
    schedule, net = Schedule.from_config(COSINE), Net()
    result = refine(
        net, schedule, normal(2, 6), descent(tau, step), objective=Pull(0.0), rounds=rounds,
        record=lambda s: (s.t, s.u),
    )  # fmt: skip
    assert net.calls == calls
    assert result.trace[-1] == (step, 0)


def test_a_sample_does_not_depend_on_its_batch():
    schedule, net = Schedule.from_config(COSINE), Net()
    x = normal(3, 6)
    together = sample(net, schedule, x, descent(900, 100), objective=Pull(1.0)).x
    for b in range(3):
        alone = sample(net, schedule, x[b : b + 1], descent(900, 100), objective=Pull(1.0)).x
        assert torch.allclose(together[b : b + 1], alone, atol=1e-12)


def test_a_side_optimiser_steps_with_every_guided_move_after_the_sample():
    schedule, net, start = Schedule.from_config(COSINE), Net(), normal(2, 6)
    offset = torch.full((2, 6), 3.0, dtype=torch.float64, requires_grad=True)
    side = torch.optim.SGD([offset], lr=0.25)
    seen = []

    def energy(x0):
        seen.append((x0.detach().clone(), offset.detach().clone()))
        return (x0 - offset).square().sum(1)

    plan = descent(50, 10)
    steps = sample(net, schedule, start, plan, objective=energy, auxiliary=side, record=lambda s: s).trace
    assert len(seen) == len(plan)
    for (x0, before), (_, after) in zip(seen[:-1], seen[1:], strict=True):
        assert torch.allclose(after, before + 0.5 * (x0 - before), atol=1e-12)
    # The sample follows the offset as it was before the step.
    x0, before = seen[0]
    ab = schedule.ab(50)
    assert torch.allclose(steps[0].x0, x0 - (1 - ab) / ab * 2 * (x0 - before), atol=1e-12)
