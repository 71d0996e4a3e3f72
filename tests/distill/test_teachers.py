from __future__ import annotations

import json

import pytest
import torch

from dd3g.cameras import Cameras
from dd3g.diffusion import invert, predict, sample
from dd3g.errors import UserError
from distill.teachers import Teacher, load
from distill.teachers.analytic import AnalyticConfig, AnalyticTeacher, draw_ellipsoids


def ellipsoid(teacher, axes=((0.3, 0.4, 0.2),), colours=((0.8, 0.3, 0.1),)):
    """(B, 4, S, S) pictures from the rig's first camera."""
    views = draw_ellipsoids(torch.tensor(axes)[:, None], torch.tensor(colours)[:, None], teacher.rig)
    return views[:, 0, 0]


def normal(teacher, batch, seed=0):
    return torch.randn(batch, *teacher.latent_shape, generator=torch.Generator().manual_seed(seed))


def test_shapes_and_codec():
    teacher = load("analytic")
    V, C, h, w = teacher.latent_shape
    assert len(teacher.rig) == V == 4 and teacher.rig.width == 4 * h == 4 * w
    rgba = ellipsoid(teacher)
    latent = teacher.codec.encode(rgba)
    assert latent.shape == (1, C, h, w)
    back = teacher.codec.decode(latent)
    assert torch.allclose(back[:, 3], rgba[:, 3], atol=1e-6)
    assert torch.allclose(back[:, :3] * back[:, 3:], rgba[:, :3] * rgba[:, 3:], atol=1e-3)


def test_ellipsoids_by_hand():
    cameras = Cameras.orbit([0, 90, 180], 0, size=64)
    axes, colour = torch.tensor([[[0.4, 0.2, 0.1]]]), torch.tensor([[[0.5, 1.0, 0.0]]])
    front, side, back = draw_ellipsoids(axes, colour, cameras)[0, 0]
    widths = [(v[3, 31:33] > 0.5).sum(1).float().mean() for v in (front, side, back)]
    pixel = 1.5 / cameras.Ks[0, 0, 0]
    assert widths[0] * pixel == pytest.approx(0.8, abs=0.06) and widths[2] == widths[0]
    assert widths[1] * pixel == pytest.approx(0.2, abs=0.06)
    assert torch.allclose(front[:3, 32, 32], torch.tensor([0.5, 1.0, 0.0]), atol=0.01)
    assert torch.allclose(back[:3, 32, 32], 0.6 * torch.tensor([0.5, 1.0, 0.0]), atol=0.01)


def test_the_condition_is_consistent_with_the_picture():
    teacher = AnalyticTeacher(AnalyticConfig(size=64))
    rgba = ellipsoid(teacher, ((0.3, 0.5, 0.2), (0.5, 0.2, 0.4)), ((0.8, 0.3, 0.1), (0.1, 0.6, 0.9)))
    condition = teacher.condition(rgba)
    assert condition.means.shape == (2, 2, *teacher.latent_shape)
    views = teacher.codec.decode(condition.means)  # (B, K, V, 4, S, S)
    for k in range(2):
        a, b = views[:, k, 0, 3] > 0.5, rgba[:, 3] > 0.5
        iou = (a & b).sum((1, 2)) / (a | b).sum((1, 2))
        assert (iou > 0.85).all()
    side = (views[:, :, 1, 3] > 0.5).sum((-1, -2))
    assert (side[:, 0] < 0.85 * side[:, 1]).all()  # the modes differ in what the picture does not show
    given = teacher.condition(rgba, teacher.rig).means
    each = Cameras(teacher.rig.viewmats.repeat(2, 1, 1, 1), teacher.rig.Ks.repeat(2, 1, 1, 1), 64, 64)
    assert torch.equal(given, condition.means)
    assert torch.allclose(teacher.condition(rgba, each).means, given, atol=1e-6)


def test_eps_is_the_score_of_the_mixture():
    teacher = AnalyticTeacher(AnalyticConfig(size=4, modes=3))
    condition = teacher.condition(ellipsoid(teacher))
    means = condition.means.double()
    condition = type(condition)(means, condition.blank.double())
    t = 300
    alpha, sigma = teacher.schedule.alpha_sigma(t, means[:, 0])
    x = (alpha * means.mean(1) + 0.9 * sigma * normal(teacher, 1).double()).requires_grad_()
    variance = alpha**2 * teacher.config.spread**2 + sigma**2
    log_density = (-(x[:, None] - alpha * means).square().flatten(2).sum(-1) / (2 * variance)).logsumexp(1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    eps = teacher(x.detach(), torch.tensor([t]), condition)
    assert torch.allclose(eps, -sigma * score, atol=1e-9)


def solve(teacher, x, condition, t=999, u=-1):
    """Exact end of the ODE from level t to u, for one mode: (x - alpha mu) / sqrt(v) stays constant."""
    (mean,) = condition.means.unbind(1)
    for level, forward in ((t, False), (u, True)):
        alpha, sigma = teacher.schedule.alpha_sigma(level, x)
        deviation = (alpha**2 * teacher.config.spread**2 + sigma**2).sqrt()
        x = alpha * mean + deviation * x if forward else (x - alpha * mean) / deviation
    return x


def test_finite_ddim_and_its_limit_for_one_mode():
    teacher = AnalyticTeacher(AnalyticConfig(size=16, modes=1))
    condition = teacher.condition(ellipsoid(teacher))
    x, s2 = normal(teacher, 1), teacher.config.spread**2
    mean = condition.means[:, 0]
    for steps in (3, 10):
        plan = teacher.schedule.plan(steps, "trailing")
        factor = 1.0
        for t, u in plan:
            a_t, a_u = teacher.schedule.ab(t), teacher.schedule.ab(u)
            v = a_t * s2 + 1 - a_t
            factor *= ((a_t * a_u).sqrt() * s2 + ((1 - a_t) * (1 - a_u)).sqrt()) / v
        a_T, a_0 = teacher.schedule.ab(999), teacher.schedule.ab(-1)
        expected = a_0.sqrt() * mean + factor * (x - a_T.sqrt() * mean)
        ours = sample(teacher, teacher.schedule, x, plan, condition).x
        assert torch.allclose(ours, expected.float(), atol=2e-5)

    exact = solve(teacher, x, condition)
    errors = []
    for steps in (20, 100, 500):
        plan = teacher.schedule.plan(steps, "trailing")
        got = sample(teacher, teacher.schedule, x, plan, condition).x
        errors.append((got - exact).abs().max().item())
    # A first-order solver: five times the steps, a fifth of the error.
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.3 * errors[1] and errors[2] < 0.02
    assert torch.allclose(solve(teacher, exact, condition, -1, 999), x, atol=1e-4)
    back = invert(teacher, teacher.schedule, exact, teacher.schedule.plan(1000, "trailing"), condition)
    assert (back - x).abs().mean() < 0.05


def test_the_noise_chooses_the_mode():
    teacher = load("analytic")
    condition = teacher.condition(ellipsoid(teacher).expand(12, -1, -1, -1))
    plan = teacher.schedule.plan(10, "trailing")
    x = normal(teacher, 12)
    ends = sample(teacher, teacher.schedule, x, plan, condition).x
    distance = (ends[:, None] - condition.means).flatten(2).norm(dim=-1)  # (12, K)
    assert set(distance.argmin(1).tolist()) == {0, 1}
    assert torch.equal(ends, sample(teacher, teacher.schedule, x, plan, condition).x)


def test_guidance_of_one_mode_moves_its_mean():
    teacher = AnalyticTeacher(AnalyticConfig(size=8, modes=1))
    condition = teacher.condition(ellipsoid(teacher))
    white = teacher.codec.decode(condition.blank)
    assert white[..., 3, :, :].abs().max() == 0
    moved = type(condition)(condition.blank + 2.5 * (condition.means - condition.blank), condition.blank)
    x, t = normal(teacher, 1), 500
    guided = predict(teacher.denoiser(condition, 2.5), teacher.schedule, x, t, condition)
    direct = predict(teacher, teacher.schedule, x, t, moved)
    assert torch.allclose(guided[0], direct[0], atol=1e-5)
    assert teacher.denoiser(condition) is teacher


def test_a_teacher_lacks_nothing():
    """What its class does not define is told when it is made, not at the first picture."""

    class Unfinished(Teacher):
        fingerprint = "none"

    with pytest.raises(TypeError, match="condition"):
        Unfinished()


def test_load(tmp_path):
    config = {"kind": "teacher", "teacher": "analytic", "size": 16, "modes": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    teacher = load(tmp_path)
    assert teacher.rig.width == 16 and teacher.config.modes == 1
    assert teacher.fingerprint == load(tmp_path).fingerprint != load("analytic").fingerprint
    for wrong, message in (
        ({"teacher": "unheard"}, "analytic, compact"),
        ({"size": 15}, "multiple of 4"),
        ({"kind": "generator"}, "not a dd3g teacher"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    with pytest.raises(UserError, match="no such teacher.*zero123plus-white., a folder in its layout, or"):
        load(tmp_path / "nowhere")
