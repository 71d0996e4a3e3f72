"""The generator's phases: switches, bounds, tokens, and what depends on what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from stand_ins.tiny_generator import FIELDS, TINY, generator, inputs, same

from dd3g.cameras import Cameras
from dd3g.gaussians import quaternion_to_matrix
from dd3g.nn.blocks import correspond_rgba
from dd3g.pepd import Generator
from dd3g.pepd.config import Bounds
from dd3g.pepd.frustum import resize
from dd3g.pepd.progressive_decoding import CHANNELS, Frame, activate, interval, to_grids, to_tokens

VARIANTS = {
    "default": {},
    "phase 1 off": {"depth": 0},
    "swapped": {"order": "swapped"},
    "one shot": {"order": "one_shot"},
    "no noise": {"use_noise": False},
    "no copied tokens": {"copy_tokens": False},
    "detached taps": {"detach_taps": True},
    "knn": {"pt_mode": "knn", "neighbours": 5},
    "latents at the token grid": {"latent_shape": (4, 8, 4, 4)},
    "fewer Gaussians": {"expansion": 4, "copy_expansion": 4, "blocks": (2, 0, 1)},
}


def expanded(rig, batch=2):
    return replace(rig, viewmats=rig.viewmats.expand(batch, -1, 4, 4), Ks=rig.Ks.expand(batch, -1, 3, 3))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_switch_trains(changes):
    model = generator(**changes)
    c = model.config
    gaussians = model(*inputs(c))
    count = 4 * (4 * c.expansion) ** 2 + ((4 * c.copy_expansion) ** 2 if c.copy_tokens else 0)
    assert gaussians.means.shape == (2, count, 3)
    weights = torch.Generator().manual_seed(1)
    loss = sum(
        (getattr(gaussians, f) * torch.randn(getattr(gaussians, f).shape, generator=weights)).sum()
        for f in FIELDS
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    optimizer.step()
    with torch.no_grad():
        after = model(*inputs(c))
    assert all(getattr(after, f).isfinite().all() for f in FIELDS) and not same(after, gaussians)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_bounds_hold(scale):
    model = generator()
    with torch.no_grad():
        for heads in model.decoding.heads:
            for head in heads:
                head.out.weight *= scale
        noise, rig, image = inputs()
        imagined, copied = model(noise, rig, image, apart=True)
    b = Bounds()
    for part, cameras in ((imagined, rig), (copied, rig[:1])):
        V = len(cameras)
        means = part.means.unflatten(1, (V, -1))  # (B, V, S*S, 3)
        side = int(means.shape[2] ** 0.5)
        origins, directions = cameras.resized(side).rays()
        d = directions.flatten(1, 2)  # (V, S*S, 3)
        depth = (cameras.viewmats[:, 2, :3][:, None] * means).sum(-1) + cameras.viewmats[:, 2, 3, None]
        assert (depth > b.depth_near - b.offset * 3**0.5).all() and (depth < b.depth_far + 0.14).all()
        # The nearest point of the ray is within the offset's cube.
        away = means - origins[:, 0]
        along = (away * d).sum(-1, keepdim=True) / d.square().sum(-1, keepdim=True) * d
        assert ((away - along).norm(dim=-1) <= b.offset * 3**0.5 + 1e-5).all()
        assert (part.scales >= b.scale_min).all() and (part.scales <= b.scale_max).all()
        assert torch.allclose(part.quats.norm(dim=-1), torch.ones(()), atol=1e-5)
        assert ((part.opacities >= 0) & (part.opacities <= 1)).all()
        assert ((part.colors >= 0) & (part.colors <= 1)).all()
    alpha = image[:, 3].flatten(1)
    assert (copied.opacities[alpha == 0] == 0).all() and (copied.opacities[alpha == 1]).max() > 0.5


def test_zero_channels_mean_the_prior():
    _, rig, image = inputs()
    cameras = expanded(rig)
    prior = correspond_rgba(resize(image, 8), cameras.azimuths)
    frame = Frame(torch.zeros(2, 4, 16, 4, 4), prior, cameras)
    raw = {name: torch.zeros(8, n, 8, 8) for name, n in CHANNELS.items()}
    g = activate(raw, frame, Bounds(), 0.02)
    assert torch.allclose(g.scales, torch.tensor([0.02, 0.02, 0.05]).expand_as(g.scales), atol=1e-7)
    for v in range(4):  # the long axis is the one that the camera looks along
        R = quaternion_to_matrix(g.quats[0].unflatten(0, (4, -1))[v])
        assert torch.allclose(R, cameras.viewmats[0, v, :3, :3].T.expand_as(R), atol=1e-6)
    v, y, x = 2, 5, 3
    n = (v * 8 + y) * 8 + x
    origins, directions = cameras.resized(8).rays()
    assert torch.allclose(g.means[1, n], origins[1, v, 0, 0] + 1.3 * directions[1, v, y, x], atol=1e-5)
    pixel = prior[1, v, :, y, x]
    assert torch.allclose(g.colors[1, n], pixel[:3].clamp(0.02, 0.98), atol=1e-5)
    assert g.opacities[1, n].item() == pytest.approx(1 / (1 + math.exp(3 - 6 * pixel[3])), abs=1e-5)
    gated = activate(raw, replace(frame, gated=True), Bounds(), 0.02)
    assert torch.allclose(gated.opacities, g.opacities * prior[:, :, 3].flatten(1), atol=1e-6)
    raw["position"][:, 3] = 100.0  # as far as it goes along the third axis of the camera: away from it
    away = activate(raw, frame, Bounds(), 0.02).means - g.means
    forward = cameras.viewmats[:, :, None, 2, :3].expand(2, 4, 64, 3).flatten(1, 2)
    assert torch.allclose(away, 0.08 * forward, atol=1e-6)


def test_untrained_copies_show_the_picture_at_their_pixels():
    torch.manual_seed(0)
    model = Generator(TINY)
    noise, rig, image = inputs()
    with torch.no_grad():
        copied = model(noise, rig, image).select(slice(4 * 16 * 16, None))
    wanted = image[:, :3].clamp(0.02, 0.98).flatten(2).transpose(1, 2)
    assert (copied.colors - wanted).abs().mean() < 0.01
    assert len(copied) == 32 * 32


def test_interval():
    x = torch.tensor([-1e4, 0.0, 1e4])
    assert torch.allclose(interval(x, 0.2, 0.6, 0.3), torch.tensor([0.2, 0.3, 0.6]))


def test_tokens_and_grids_are_inverse():
    grids = [torch.randn(2, 3, 5, 4, 4), torch.randn(2, 1, 5, 2, 2)]
    tokens = to_tokens(grids)
    assert tokens.shape == (2, 3 * 16 + 4, 5)
    assert torch.equal(tokens[1, 16 + 4 * 2 + 3], grids[0][1, 1, :, 2, 3])
    assert all(torch.equal(a, b) for a, b in zip(to_grids(tokens, grids), grids, strict=True))


ORDER = {
    "progressive": ["means", "scales", "opacities"],
    "swapped": ["opacities", "scales", "means"],
}


@pytest.mark.parametrize("tap", range(3))
@pytest.mark.parametrize(
    ("order", "pt_mode"), [("progressive", "plain"), ("progressive", "knn"), ("swapped", "plain")]
)
def test_later_taps_are_conditioned_on_earlier_ones(order, tap, pt_mode):
    model = generator(order=order, pt_mode=pt_mode)
    with torch.no_grad():
        before = model(*inputs())
        for head in model.decoding.heads[tap]:
            head.out.bias += 0.3
        after = model(*inputs())
    for g, name in enumerate(ORDER[order]):
        moved = (getattr(after, name) - getattr(before, name)).abs().amax()
        assert moved == 0 if g < tap else moved > 1e-4, name


def test_detached_taps_stop_the_gradient():
    for detach, wanted in ((False, True), (True, False)):
        model = generator(detach_taps=detach)
        model(*inputs()).colors.square().sum().backward()
        gradient = model.decoding.heads[0][0].out.weight.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == wanted


def test_knn_changes_the_blocks_behind_the_positions_only():
    model = generator(pt_mode="knn")
    kinds = [type(blocks[0]).__name__ for blocks in model.decoding.blocks]
    assert kinds == ["MultiViewTransformer", "PointTransformer", "PointTransformer"]
    with pytest.raises(ValueError, match="progressive"):
        generator(pt_mode="knn", order="swapped")


def test_token_positions_are_the_mean_of_their_gaussians():
    model = generator(pt_mode="knn", copy_tokens=False)
    cameras = expanded(Cameras.default_rig(32))
    frame = Frame(torch.zeros(2, 4, 32, 4, 4), torch.rand(2, 4, 4, 16, 16), cameras)
    raw = {n: torch.randn(8, c, 16, 16) for n, c in CHANNELS.items()}
    positions = model.decoding.token_positions([raw], [frame])
    means = (
        activate(raw, frame, Bounds(), 0.02).means.reshape(2, 4, 4, 4, 4, 4, 3).mean((3, 5))
    )  # (B, V, h, w, 3)
    assert torch.allclose(positions, means.flatten(1, 3), atol=1e-5)


def test_noise_matters_where_it_is_used():
    noise, rig, image = inputs()
    with torch.no_grad():
        used, unused = generator(), generator(use_noise=False)
        assert not same(used(noise, rig, image), used(-noise, rig, image), 1e-4)
        assert same(unused(noise, rig, image), unused(-noise, rig, image))


def test_cameras_matter():
    noise, rig, image = inputs()
    with torch.no_grad():
        model = generator()
        assert not same(
            model(noise, rig, image), model(noise, Cameras.orbit([0, 90, 180, 270], 40, 32), image), 1e-3
        )


def test_items_of_a_batch_do_not_see_each_other():
    noise, rig, image = inputs(batch=3)
    with torch.no_grad():
        model = generator()
        together = model(noise, rig, image)
        for i in range(3):
            alone = model(noise[i : i + 1], rig, image[i : i + 1])[0]
            assert same(together[i], alone, 1e-5)
