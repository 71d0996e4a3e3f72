from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dd3g.diffusion import (
    ClassifierFree,
    Schedule,
    convert,
    ddim_move,
    descent,
    invert,
    inverted,
    refine,
    sample,
)

COSINE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
LATENT = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


class Net(nn.Module):
    """A small smooth network over the last dimension that counts its calls."""

    def __init__(self, prediction="eps"):
        super().__init__()
        self.prediction = prediction
        self.a, self.b = normal(2, 6, 6, seed=3) / 6**0.5
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor, condition=None) -> Tensor:
        assert t.shape == (len(x_t),) and t.dtype == torch.int64 and (t >= 0).all()
        self.calls += 1
        shift = (t.to(x_t) / 1000).reshape(-1, *[1] * (x_t.dim() - 1))
        shift = shift if condition is None else shift + condition
        return torch.tanh(x_t @ self.a + shift) @ self.b


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_cosine_alpha_bar_is_pinned():
    schedule = Schedule.from_config(COSINE)
    expected = {0: 0.9999587, 2: 0.9998616, 50: 0.9917247, 100: 0.9715757, 500: 0.4922852}
    for t, value in expected.items():
        assert schedule.ab(t).item() == pytest.approx(value, abs=3e-7)
    assert schedule.ab(0).dtype == torch.float64
    assert schedule.ab(-1) == 1
    assert torch.equal(schedule.ab(torch.tensor([50, -1])), torch.stack([schedule.ab(50), schedule.ab(-1)]))
    for t in (-2, 1000, torch.tensor([3, 1000])):
        with pytest.raises(IndexError, match="-1..999"):
            schedule.ab(t)


def test_table_and_clean_end_are_those_of_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(LATENT)
    schedule = Schedule.from_config(LATENT)
    assert torch.equal(schedule.alpha_bar[:-1], scheduler.alphas_cumprod.double())
    assert schedule.ab(-1) == schedule.ab(0) == pytest.approx(1 - 0.00085)
    again = Schedule.from_config(schedule.config)
    assert torch.equal(again.alpha_bar, schedule.alpha_bar)


@pytest.mark.parametrize("said", [True, False])
def test_a_file_of_another_scheduler_is_read_as_diffusers_reads_it(said):
    """What that one leaves to its defaults is left to those of DDIM, where the file says so."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    config = dict(EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085).config)
    assert config["timestep_spacing"] == "linspace" and "timestep_spacing" in config["_use_default_values"]
    if not said:
        del config["_use_default_values"]
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(7)
    schedule = Schedule.from_config(config)
    assert torch.equal(schedule.alpha_bar[:-1], scheduler.alphas_cumprod.double())
    assert [t for t, _ in schedule.plan(7)] == scheduler.timesteps.tolist()
    assert (schedule.plan(7)[0][0] == 999) != said


@pytest.mark.parametrize("shape", [(3, 6), (3, 4, 2, 5, 6)])
def test_add_noise_broadcasts_over_the_batch_only(shape):
    from diffusers import DDIMScheduler

    schedule, t = Schedule.from_config(LATENT), torch.tensor([0, 400, 999])
    x0, eps = normal(*shape), normal(*shape, seed=1)
    noisy = schedule.add_noise(x0, eps, t)
    assert torch.allclose(noisy, DDIMScheduler.from_config(LATENT).add_noise(x0, eps, t), atol=1e-6)
    for b in range(3):
        assert torch.allclose(noisy[b : b + 1], schedule.add_noise(x0[b : b + 1], eps[b : b + 1], int(t[b])))
    assert torch.equal(schedule.add_noise(x0, eps, -1), schedule.add_noise(x0, eps, 0))
    assert torch.equal(Schedule.from_config(COSINE).add_noise(x0, eps, -1), x0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 10, 50, 1000])
def test_plans_visit_the_levels_of_diffusers(spacing, steps):
    from diffusers import DDIMScheduler

    plan = Schedule.from_config(COSINE).plan(steps, spacing)
    scheduler = DDIMScheduler.from_config(COSINE | {"timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    assert [t for t, _ in plan] == scheduler.timesteps.tolist()
    assert [u for _, u in plan] == [t for t, _ in plan][1:] + [-1]


def test_plans_by_hand():
    schedule = Schedule.from_config(COSINE)
    assert schedule.plan(4, "trailing") == [(999, 749), (749, 499), (499, 249), (249, -1)]
    assert schedule.plan(4) == [(750, 500), (500, 250), (250, 0), (0, -1)]
    assert Schedule.from_config(LATENT).plan(2) == [(501, 1), (1, -1)]
    assert max(t for t, _ in Schedule.from_config(LATENT).plan(1000)) == 999
    assert descent(6, 2) == [(6, 4), (4, 2), (2, 0)]
    assert descent(50, 10, 30) == [(50, 40), (40, 30)]
    assert inverted(descent(6, 2)) == [(0, 2), (2, 4), (4, 6)]
    for bad in (0, 1001):
        with pytest.raises(ValueError, match="1..1000"):
            schedule.plan(bad)
    with pytest.raises(ValueError, match="divide"):
        descent(50, 3)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    "config,steps", [(COSINE, 500), (COSINE | {"timestep_spacing": "trailing"}, 10), (LATENT, 50)]
)
def test_every_step_is_that_of_diffusers(config, steps, prediction):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(config | {"prediction_type": PREDICTION[prediction]})
    # In float32 the coefficients at the noisy end alone cost more than the tolerance.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    schedule, net = Schedule.from_config(config), Net(prediction)
    theirs = []
    with torch.no_grad():
        x = normal(2, 3, 6)
        for t in scheduler.timesteps:
            out = scheduler.step(net(x, t.expand(2)), t, x, eta=0)
            theirs.append((x, out.pred_original_sample))
            x = out.prev_sample
    ours = sample(net, schedule, normal(2, 3, 6), schedule.plan(steps), record=lambda s: s)
    assert len(ours.trace) == steps
    for step, (x_t, x0) in zip(ours.trace, theirs, strict=True):
        scale = max(1.0, x0.abs().max().item())
        assert (step.x_t - x_t).abs().max() <= 1e-6 * scale and (step.x0 - x0).abs().max() <= 1e-6 * scale
    assert (ours.x - x).abs().max() <= 1e-6


def test_leading_500_is_the_pair_t_to_t_minus_2_in_float32():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(COSINE)
    scheduler.set_timesteps(500)
    schedule = Schedule.from_config(COSINE)
    for t in range(2, 952, 2):
        x, eps = normal(4, 6, seed=t, dtype=torch.float32), normal(4, 6, seed=t + 1, dtype=torch.float32)
        x_u, x0 = ddim_move(schedule, x, eps, t, t - 2)
        theirs = scheduler.step(eps, t, x, eta=0)
        scale = max(1.0, x0.abs().max().item())
        assert (x_u - theirs.prev_sample).abs().max() <= 1e-6 * scale
        assert (x0 - theirs.pred_original_sample).abs().max() <= 1e-6 * scale


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_and_clipping_are_those_of_diffusers(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(COSINE | {"clip_sample": True, "clip_sample_range": 0.8})
    scheduler.set_timesteps(20)
    schedule, net = Schedule.from_config(COSINE), Net()
    x = normal(3, 6)
    plan = schedule.plan(20)[2:]
    # The first draw of a fresh generator is the noise of the first move.
    ours = sample(net, schedule, x, plan[:1], eta=eta, clip=0.8, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(5)).double()
    t = plan[0][0]
    theirs = scheduler.step(net(x, torch.full((3,), t)), t, x, eta=eta, variance_noise=noise)
    assert torch.allclose(ours.x, theirs.prev_sample, atol=1e-6)
    assert ours.x0.abs().max() <= 0.8
    with pytest.raises(ValueError, match="generator"):
        sample(net, schedule, x, plan, eta=eta)
    with pytest.raises(ValueError, match="move down"):
        ddim_move(schedule, x, x, 10, 20, eta=eta, noise=noise)


def test_inversion_is_that_of_diffusers():
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler.from_config(COSINE)
    scheduler.set_timesteps(500)
    schedule, net = Schedule.from_config(COSINE), Net()
    start = normal(3, 6)
    steps = sample(net, schedule, start, inverted(descent(50, 2)), record=lambda s: s)
    x = start
    for step in steps.trace:
        assert (step.x_t - x).abs().max() <= 1e-6
        # Its timestep argument is the level to go to; the network sees the lower one.
        x = scheduler.step(net(x, torch.full((3,), step.t)), step.u, x).prev_sample
    assert (steps.x - x).abs().max() <= 1e-6
    assert torch.equal(invert(net, schedule, start, descent(50, 2)), steps.x)


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 3, 2, 6)])
def test_inversion_then_sampling_returns_the_input(shape):
    schedule, net = Schedule.from_config(COSINE), Net()
    start, plan = normal(*shape), descent(50, 2)
    noisy = invert(net, schedule, start, plan)
    assert (noisy - start).abs().max() > 0.05
    assert (sample(net, schedule, noisy, plan).x - start).abs().max() < 1e-3
    assert (refine(net, schedule, start, plan, rounds=2).x - start).abs().max() < 1e-3


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_whole_plan_inverts_through_the_clean_end(prediction):
    schedule, net = Schedule.from_config(LATENT), Net(prediction)
    plan = schedule.plan(1000, "trailing")[-200:]
    start = 0.1 * normal(2, 6)
    noisy = invert(net, schedule, start, plan)
    assert noisy.isfinite().all()
    if prediction == "eps":
        assert (sample(net, schedule, noisy, plan).x - start).abs().max() < 1e-2


def test_move_with_the_true_noise_lands_on_every_level():
    schedule = Schedule.from_config(COSINE)
    levels = torch.randint(-1, 990, (300, 2), generator=torch.Generator().manual_seed(0))
    x0, eps = normal(300, 6), normal(300, 6, seed=1)
    for t, u in levels[:60].tolist():
        x_u, clean = ddim_move(schedule, schedule.add_noise(x0, eps, t), eps, t, u)
        assert torch.allclose(x_u, schedule.add_noise(x0, eps, u), atol=1e-9)
        assert torch.allclose(clean, x0, atol=1e-9)
    t, u = levels.T
    x_t = schedule.add_noise(x0, eps, t)
    x_u, _ = ddim_move(schedule, x_t, eps, t, u)
    assert torch.allclose(x_u, schedule.add_noise(x0, eps, u), atol=1e-9)
    back, _ = ddim_move(schedule, x_u, eps, u, t)
    assert torch.allclose(back, x_t, atol=1e-9)
    stay, _ = ddim_move(schedule, x_t, normal(300, 6, seed=2), t, t)
    assert torch.allclose(stay, x_t, atol=1e-9)


def test_eta_one_has_the_variance_of_the_forward_process():
    schedule = Schedule.from_config(COSINE)
    x0 = torch.zeros(200_000, 1, dtype=torch.float64)
    eps, noise = normal(200_000, 1), normal(200_000, 1, seed=1)
    for t, u in [(900, 400), (400, 399), (50, -1)]:
        x_u, _ = ddim_move(schedule, schedule.add_noise(x0, eps, t), eps, t, u, eta=1.0, noise=noise)
        assert x_u.var().item() == pytest.approx(1 - schedule.ab(u).item(), abs=0.01)


@pytest.mark.parametrize("source", ["eps", "x0", "v"])
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_parametrisations_round_trip(source, target):
    schedule, t = Schedule.from_config(COSINE), torch.tensor([1, 300, 900])
    x0, eps = normal(3, 2, 6), normal(3, 2, 6, seed=1)
    x_t = schedule.add_noise(x0, eps, t)
    alpha, sigma = schedule.alpha_sigma(t, x_t)
    truth = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}
    assert torch.allclose(convert(schedule, truth[source], x_t, t, source, target), truth[target], atol=1e-9)


def test_classifier_free_algebra():
    schedule, net, x = Schedule.from_config(COSINE), Net(), normal(3, 6)
    t, condition, null = torch.full((3,), 300), normal(3, 1, seed=1), torch.zeros(3, 1, dtype=torch.float64)
    c, u = net(x, t, condition), net(x, t, null)
    assert torch.equal(ClassifierFree(net, null, 1.0)(x, t, condition), c)
    assert torch.equal(ClassifierFree(net, null, 0.0)(x, t, condition), u)
    guided = ClassifierFree(net, null, 2.5)(x, t, condition)
    assert torch.allclose(guided, -1.5 * u + 2.5 * c, atol=1e-12)
    # Guiding x0 or v outputs is guiding eps.
    for kind in ("x0", "v"):
        mixed = [convert(schedule, e, x, 300, "eps", kind) for e in (u, c)]
        mixed = mixed[0] + 2.5 * (mixed[1] - mixed[0])
        assert torch.allclose(convert(schedule, mixed, x, 300, kind, "eps"), guided, atol=1e-9)
    net.calls = 0
    ClassifierFree(net, null, 1.0)(x, t, condition)
    assert net.calls == 1
    assert ClassifierFree(Net("v"), null, 2.0).prediction == "v"


def test_the_last_x0_is_the_state_at_the_clean_end():
    schedule, net = Schedule.from_config(COSINE), Net("x0")
    result = sample(net, schedule, normal(2, 4, 6), schedule.plan(10, "trailing"))
    assert torch.equal(result.x, result.x0) and not result.x.requires_grad
