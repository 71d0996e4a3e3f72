from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from stand_ins.tiny_objects import write_renders
from torch import nn

from dd3g.cameras import Cameras
from dd3g.diffusion import Schedule
from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.rasterizer import rasterize
from dd3g.training import normal_for
from distill.objective import Objective, ObjectiveConfig, Verifier, direct_terms
from distill.samples.render_samples import RenderDataset, Sample
from distill.samples.renders import RenderedObjects
from distill.teachers.compact import SpaceToDepth

SIZE, NOISE = 32, (4, 64, 8, 8)
TINY = GeneratorConfig(
    size=SIZE,
    latent_shape=NOISE,
    width=32,
    depth=1,
    heads=2,
    residual_hidden=8,
    fine=8,
    mid=16,
    head_hidden=8,
)
DIRECT = ("direct_alpha", "direct_depth", "direct_color")


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    objects = RenderedObjects(write_renders(tmp_path_factory.mktemp("renders")), cached=True)
    dataset = RenderDataset(objects, 0, NOISE)
    return Sample.collate([dataset[i] for i in range(2)])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Generator(TINY)


def explicit_inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    alpha, target = torch.rand(2, 3, 1, 8, 8, generator=g), torch.rand(2, 3, 4, 8, 8, generator=g)
    rgb = torch.rand(2, 3, 3, 8, 8, generator=g) * alpha
    known = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    return rgb, alpha, target, torch.rand(2, 3, 3, generator=g), known


def test_explicit_terms_by_brute_force():
    config = ObjectiveConfig(
        color=3.0, color_l1=2.0, alpha=5.0, hole_weight=4.0, cover=9.0, structure=0.7, input_weight=2.5
    )
    rgb, alpha, target, background, known = explicit_inputs()
    found = Objective(config, 10).explicit(rgb, alpha, target, background, known)
    wanted = dict.fromkeys(("color", "color_l1", "alpha", "cover", "structure"), 0.0)
    for b in range(2):
        for v in range(3):
            weight = (2.5 if v == 0 else 1.0) / 4.5 / 2
            bg, mask, a = background[b, v, :, None, None], target[b, v, 3], alpha[b, v, 0]
            error = rgb[b, v] + (1 - a) * bg - (target[b, v, :3] * mask + (1 - mask) * bg)
            wanted["color"] += weight * 3 * float((error**2).mean())
            wanted["color_l1"] += weight * 2 * float(error.abs().mean())
            hole = torch.where(mask > 0, 1 + 3 * mask, torch.ones(()))
            told = float(known[b, v])  # of a view without alpha only the colour counts
            wanted["alpha"] += told * weight * 5 * float(((a - mask) ** 2 * hole).mean())
            lack = torch.where(a < mask, torch.minimum(mask, torch.tensor(0.65)) - a, 0.0)
            wanted["cover"] += told * weight * 9 * float((lack * (lack > 0)).square().mean())
            both = torch.cat([error, told * (a - mask)[None]])
            for scale in (1, 2, 4):
                small = F.avg_pool2d(both, scale)
                wanted["structure"] += weight * 0.7 * float((small[:, :, 1:] - small[:, :, :-1]).abs().mean())
                wanted["structure"] += weight * 0.7 * float((small[:, 1:] - small[:, :-1]).abs().mean())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name


class Squares(nn.Module):
    def forward(self, a, b):
        return (a - b).square().mean((1, 2, 3))


def test_perceptual_term_weighs_views_like_the_others():
    config = ObjectiveConfig(color=1.0, perceptual=1.0)
    terms = Objective(config, 10, perceptual=Squares()).explicit(*explicit_inputs())
    assert float(terms["perceptual"]) == pytest.approx(float(terms["color"]), rel=1e-5)


def test_a_perfect_render_costs_nothing():
    target = explicit_inputs()[2]
    mask = target[:, :, 3:]
    terms = Objective(ObjectiveConfig(cover=1.0), 10).explicit(
        target[:, :, :3] * mask, mask, target, torch.rand(2, 3, 3), torch.ones(2, 3)
    )
    assert all(float(t) == pytest.approx(0, abs=1e-9) for t in terms.values())


def test_direct_terms_by_brute_force(batch, model):
    batch = replace(batch, views_known=torch.tensor([[1.0, 1, 0, 1], [1, 0, 0, 1]]))
    with torch.no_grad():
        frames = model(batch.noise, batch.rig, batch.image, apart=True)
    gaussians = Gaussians.cat(frames)
    found = direct_terms(frames, batch)
    alpha_sum, alpha_count, depth, color = 0.0, 0, [], []
    start = 0
    for views, side, copied in ((4, 16, False), (1, 32, True)):
        ratio = SIZE // side
        for b in range(2):
            d_error = d_count = c_error = c_count = 0.0
            for v in range(views):
                target = batch.image[b] if copied else batch.views[b, v]
                for y in range(side):
                    for x in range(side):
                        n = start + (v * side + y) * side + x
                        patch = target[:, y * ratio : (y + 1) * ratio, x * ratio : (x + 1) * ratio]
                        mask = float(patch[3].mean())
                        rgb = (patch[:3] * patch[3]).mean((1, 2)) / max(mask, 1e-4)
                        z = batch.depth[b, v, y * ratio : (y + 1) * ratio, x * ratio : (x + 1) * ratio]
                        if (z > 0).float().mean() > 0.5:
                            point = batch.rig.viewmats[b, v, 2] @ F.pad(
                                gaussians.means[b, n], (0, 1), value=1.0
                            )
                            d_error += abs(float(point - z[z > 0].mean()))
                            d_count += 1
                        c_error += float((gaussians.colors[b, n] - rgb).abs().mean()) * mask
                        c_count += mask
                        if not copied and batch.views_known[b, v]:
                            o = min(max(float(gaussians.opacities[b, n]), 1e-4), 1 - 1e-4)
                            alpha_sum -= mask * math.log(o) + (1 - mask) * math.log(1 - o)
                            alpha_count += 1
            depth.append(d_error / (d_count + 1))
            color.append(c_error / (c_count + 1))
        start += views * side * side
    assert float(found["direct_alpha"]) == pytest.approx(alpha_sum / alpha_count, rel=1e-4)
    assert float(found["direct_depth"]) == pytest.approx(sum(depth) / 4, rel=1e-4)
    assert float(found["direct_color"]) == pytest.approx(sum(color) / 4, rel=1e-3)


def test_unknown_depth_is_not_trained(batch, model):
    blind = replace(batch, has_depth=torch.zeros(2))
    with torch.no_grad():
        frames = model(batch.noise, batch.rig, batch.image, apart=True)
    assert float(direct_terms(frames, blind)["direct_depth"]) == 0


def test_direct_terms_are_exact_under_autocast(batch, model):
    with torch.no_grad():
        frames = model(batch.noise, batch.rig, batch.image, apart=True)
    wanted = direct_terms(frames, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = direct_terms(frames, batch)
    assert torch.equal(found["direct_depth"], wanted["direct_depth"])


def test_bootstrap_then_images_with_lasting_direct_terms(batch, model):
    config = ObjectiveConfig(
        bootstrap=0.2, direct_floor=0.1, direct_alpha=0.5, direct_depth=4.0, direct_color=1.0
    )
    objective = Objective(config, 100)
    with torch.no_grad():
        frames = model(batch.noise, batch.rig, batch.image, apart=True)
    bare = direct_terms(frames, batch)
    for step, fade in ((0, 1.0), (19, 1.0), (20, 1.0), (35, 0.5), (44, 0.2), (50, 0.1), (99, 0.1)):
        loss, terms = objective(model, batch, step)
        assert set(terms) == (
            {*DIRECT} if step < 20 else {*DIRECT, "color", "color_l1", "alpha", "structure"}
        )
        for name in DIRECT:
            assert float(terms[name]) == pytest.approx(
                fade * getattr(config, name) * float(bare[name]), rel=1e-4
            )
        assert loss.item() == pytest.approx(sum(float(t) for t in terms.values()), rel=1e-5)
        assert loss.requires_grad and not any(t.requires_grad for t in terms.values())


@pytest.mark.parametrize("antialiased", [True, False])
def test_images_are_rendered_at_the_targets(batch, model, antialiased):
    objective = Objective(ObjectiveConfig(bootstrap=0.0, antialiased=antialiased), 100)
    _, terms = objective(model, batch, 0)
    gaussians = model(batch.noise, batch.rig, batch.image)
    render = rasterize(gaussians, batch.target_cameras, background=0.0, antialiased=antialiased)
    told = batch.targets, batch.background, batch.targets_known
    wanted = objective.explicit(render.rgb, render.alpha, *told)
    assert all(torch.allclose(terms[k], wanted[k], rtol=1e-4) for k in wanted)


@pytest.mark.parametrize("detach", [False, True])
def test_every_parameter_has_a_gradient_at_every_step(batch, detach):
    torch.manual_seed(0)
    fresh = Generator(replace(TINY, detach_taps=detach))
    for step in (0, 60):
        fresh.zero_grad(set_to_none=True)
        Objective(ObjectiveConfig(), 100)(fresh, batch, step)[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in fresh.parameters())


def test_ramp():
    objective = Objective(ObjectiveConfig(ramp_center=0.3, ramp_width=0.05), 1000)
    assert objective.ramp(300) == pytest.approx(0.5)
    assert objective.ramp(350) == pytest.approx(1 / (1 + math.exp(-1)))
    assert objective.ramp(0) == pytest.approx(1 / (1 + math.exp(6)))
    assert objective.ramp(999) > 0.999 and objective.ramp(100) == pytest.approx(1 - objective.ramp(500))
    assert Objective(ObjectiveConfig(ramp="constant"), 1000).ramp(0) == 1
    at_once = Objective(ObjectiveConfig(ramp_center=0.3, ramp_width=0), 1000)
    assert [at_once.ramp(k) for k in (0, 299, 301, 999)] == [0, 0, 1, 1]


class TinyTeacher(nn.Module):
    """A teacher of 8 pixels whose network is one matrix, with any parametrisation."""

    follows_elevation = False

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction
        self.codec = SpaceToDepth()
        self.schedule = Schedule.from_config({"beta_schedule": "squaredcos_cap_v2"})
        self.rig = Cameras.default_rig(8)
        self.mix = nn.Linear(64, 64)
        self.seen = {}

    def condition(self, rgba, cameras=None):
        self.seen["cameras"] = cameras
        return rgba

    def denoiser(self, condition, guidance_scale=None):
        self.seen["guidance"] = guidance_scale
        return self

    def forward(self, x_t, t, condition):
        self.seen |= {"x_t": x_t.detach(), "t": t}
        return self.mix(x_t.movedim(2, -1)).tanh().movedim(-1, 2)


def scene(seed=0, n=40):
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(2, n, 3, generator=g) - 0.5).requires_grad_()
    quats = F.normalize(torch.randn(2, n, 4, generator=g), dim=-1)
    scales = 0.05 + 0.1 * torch.rand(2, n, 3, generator=g)
    return Gaussians(
        means, quats, scales, torch.rand(2, n, generator=g) * 0.9, torch.rand(2, n, 3, generator=g)
    )


def verified(form, prediction="x0"):
    torch.manual_seed(0)
    teacher = TinyTeacher(prediction)
    gaussians, image = scene(), torch.rand(2, 4, 8, 8)
    azimuth, level, index = torch.tensor([0.3, 2.0]), torch.tensor([0.2, 0.7]), torch.tensor([5, 9])
    value = Verifier(teacher, form, seed=3, guidance_scale=1.5)(gaussians, image, azimuth, level, index)
    (gradient,) = torch.autograd.grad(value, gaussians.means)
    return teacher, gaussians, azimuth, level, index, value, gradient


def latents_of(teacher, gaussians, azimuth):
    """z with its graph, from renders made one object at a time."""
    parts = []
    for b in range(2):
        cameras = Cameras.orbit([90.0 * v + math.degrees(float(azimuth[b])) for v in range(4)], 10.0, 8)
        # Over white, as the codec wants it.
        render = rasterize(gaussians[b], cameras, background=1.0, antialiased=True)
        parts.append(F.pixel_unshuffle(2 * torch.cat([render.rgb, render.alpha], 1) - 1, 4))
    return torch.stack(parts)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("form", ["literal", "score", "x0"])
def test_verification_forms_by_autograd(form, prediction):
    teacher, gaussians, azimuth, level, index, value, gradient = verified(form, prediction)
    z = latents_of(teacher, gaussians, azimuth)
    eps = normal_for(5, index, z.shape[1:])
    t = (1000 * (0.02 + 0.96 * level)).long()
    assert teacher.seen["t"].tolist() == t.tolist() == [212, 692] and teacher.seen["guidance"] == 1.5
    ab = teacher.schedule.alpha_bar[t].float()[:, None, None, None, None]
    alpha, sigma = ab.sqrt(), (1 - ab).sqrt()
    x_t = alpha * z + sigma * eps
    assert torch.allclose(teacher.seen["x_t"], x_t.detach(), atol=1e-4)
    output = teacher(x_t, t, None)  # with its graph: the Jacobian of the network is in it
    eps_hat = {"x0": (x_t - alpha * output) / sigma, "eps": output, "v": alpha * output + sigma * x_t}[
        prediction
    ]
    if form == "literal":
        wanted_value = (sigma**2 * (eps_hat - eps).square()).mean()
        (wanted,) = torch.autograd.grad(wanted_value, gaussians.means)
    elif form == "score":
        direction = (sigma**2 * (eps_hat - eps)).detach()
        (wanted,) = torch.autograd.grad(z, gaussians.means, direction / z.numel())
        wanted_value = 0.5 * direction.square().mean()
    else:
        x0 = ((x_t - sigma * eps_hat) / alpha).detach()
        wanted_value = (z - x0).square().mean()
        (wanted,) = torch.autograd.grad(wanted_value, gaussians.means)
    assert value.item() == pytest.approx(wanted_value.item(), rel=1e-3)
    assert gradient.abs().max() > 0
    assert torch.allclose(gradient, wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()))


def test_the_teacher_stays_frozen_and_sees_turned_cameras():
    teacher, _, azimuth, *_ = verified("literal")
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    seen = teacher.seen["cameras"].azimuths
    wanted = azimuth[:, None] + torch.deg2rad(torch.tensor([0.0, 90, 180, 270]))
    assert torch.allclose((seen - wanted).cos(), torch.ones(2, 4), atol=1e-5)


def test_a_teacher_that_follows_elevations_verifies_at_those_of_the_pictures():
    """ImageDream's clean picture has no camera of its own: it stands where the others do."""
    teacher, heights = TinyTeacher("x0"), [-10.0, 35.0]
    front = Cameras.stack([Cameras.orbit([0.0], e, 8)[0] for e in heights])
    azimuth, level, index = torch.tensor([0.3, 2.0]), torch.tensor([0.2, 0.7]), torch.tensor([5, 9])
    for follows, elevations in ((True, heights), (False, [10.0, 10.0])):
        teacher.follows_elevation = follows
        Verifier(teacher, "x0", 0)(scene(), torch.rand(2, 4, 8, 8), azimuth, level, index, front)
        for b, seen in enumerate(teacher.seen["cameras"]):
            turns = [90.0 * v + math.degrees(float(azimuth[b])) for v in range(4)]
            wanted = Cameras.orbit(turns, elevations[b], 8)
            assert torch.allclose(seen.viewmats, wanted.viewmats, atol=1e-5)
            assert torch.equal(seen.Ks, wanted.Ks)


def test_verification_noise_belongs_to_the_sample():
    teacher = TinyTeacher("x0")
    verifier = Verifier(teacher, "x0", seed=0)
    gaussians, image = scene(), torch.rand(2, 4, 8, 8)
    azimuth, level, index = torch.tensor([0.3, 2.0]), torch.tensor([0.2, 0.7]), torch.tensor([5, 9])
    both = verifier(gaussians, image, azimuth, level, index)
    single = [
        verifier(
            gaussians[i : i + 1], image[i : i + 1], azimuth[i : i + 1], level[i : i + 1], index[i : i + 1]
        )
        for i in range(2)
    ]
    assert both.item() == pytest.approx(sum(x.item() for x in single) / 2, rel=1e-5)
    assert verifier(gaussians, image, azimuth, level, index + 1).item() != both.item()


def test_verification_enters_with_weight_ramp_and_rhythm(batch, model):
    calls = []

    def verifier(gaussians, image, azimuth, level, index, front):
        assert torch.equal(front.viewmats, batch.target_cameras.viewmats[:, 0])
        calls.append((azimuth, level, index))
        return gaussians.means.sum() * 0 + 2.0

    config = ObjectiveConfig(implicit=0.1, implicit_every=3, bootstrap=0.0)
    objective = Objective(config, 10, verifier)
    for step in range(7):
        _, terms = objective(model, batch, step)
        assert ("implicit" in terms) == (step % 3 == 0)
        if step % 3 == 0:
            assert float(terms["implicit"]) == pytest.approx(0.1 * objective.ramp(step) * 2)
    azimuth, level, index = calls[0]
    assert torch.equal(index, batch.index) and torch.equal(level, batch.uniform[:, 3])
    assert (azimuth >= 0).all() and (azimuth < 2 * math.pi).all()
