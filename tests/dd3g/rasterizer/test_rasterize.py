"""Pictures and gradients of the rasteriser against its slow twin, in easy and hard scenes."""

import math
from dataclasses import replace

import pytest
import torch
from dense_reference import dense_render
from stand_ins.balls import FIELDS, SCENES, assert_close, ball, gradients, leaves, parts, rig

from dd3g.benchmark.rasterize import tile_render
from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import Render, rasterize


def dense(g: Gaussians, cameras: Cameras, antialiased=False) -> Render:
    views = [
        dense_render(g, V, K, cameras, antialiased) for V, K in zip(cameras.viewmats, cameras.Ks, strict=True)
    ]
    rgb, alpha, depth = (torch.stack(x) for x in zip(*views, strict=True))
    return Render(rgb, alpha[:, None], depth[:, None])


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("scene", SCENES)
def test_equals_the_dense_reference(scene, antialiased):
    g, cameras = SCENES[scene]
    ours = rasterize(g, cameras, background=0.0, antialiased=antialiased)
    reference = dense(g, cameras, antialiased)
    for a, b, name in zip(ours, reference, Render._fields, strict=True):
        assert a.shape == b.shape, name
        if a.numel():
            assert (a - b).abs().max() <= 1e-12, name
    assert reference.alpha.max() > 0.005
    assert_close(gradients(ours, parts(g)), gradients(reference, parts(g)), 1e-10, FIELDS)


@pytest.mark.slow
def test_gradcheck():
    g = ball(7, size=0.15, opacity=(0.3, 0.8), channels=2, seed=3)
    cameras = rig(9, 6, (0.0, 100.0))
    cameras.Ks[..., :2, :2] *= 0.15
    viewmats = cameras.viewmats.clone().requires_grad_()

    def draw(antialiased, viewmats, *values):
        return tuple(
            rasterize(Gaussians(*values), replace(cameras, viewmats=viewmats), 0.3, antialiased=antialiased)
        )

    for antialiased in (False, True):
        for V in (cameras.viewmats, viewmats):
            assert torch.autograd.gradcheck(lambda *x: draw(antialiased, *x), (V, *parts(g)))


def test_cameras_get_their_gradient():
    g, cameras = SCENES["plain"]
    viewmats, Ks = (x.clone().requires_grad_() for x in (cameras.viewmats, cameras.Ks))
    moving = replace(cameras, viewmats=viewmats, Ks=Ks)
    got = gradients(rasterize(g, moving, 0.0), [viewmats, Ks])
    assert_close(got, gradients(dense(g, moving), [viewmats, Ks]), 1e-10, ("viewmats", "Ks"))


def test_nothing_to_draw():
    cameras = rig()
    beyond = replace(cameras, near=1.9, far=2.0)
    for g, seen_by in (
        (ball(0), cameras),
        (ball(20, opacity=(0, 1 / 256)), cameras),
        (ball(20, spread=0.1), beyond),
    ):
        render = rasterize(g, seen_by, background=0.25)
        assert (render.rgb == 0.25).all() and (render.alpha == 0).all() and (render.depth == 0).all()
        for x, grad in zip(parts(g), gradients(render, parts(g)), strict=True):
            assert grad.shape == x.shape and (grad == 0).all()


def test_empty_batches():
    g = Gaussians(*(x[None] for x in parts(ball(5))))
    none = Gaussians(*(x[:0] for x in parts(g)))
    assert rasterize(none, rig()).rgb.shape == (0, 3, 3, 48, 48)
    assert rasterize(g, rig()[:0]).alpha.shape == (1, 0, 1, 48, 48)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_in_hard_places(dtype):
    g = ball(400, size=0.2, spread=2.5, seed=30)
    hard = [x.detach().clone() for x in parts(g)]
    cameras = rig(near=0.02, far=3.0)
    hard[0][:3] = cameras.positions  # in the camera's centre
    hard[0][3] = cameras.positions[0] + 1e-9
    hard[1][4] = 0  # no rotation at all
    hard[2][5] = 0  # a point
    hard[2][6] = torch.tensor([1e-12, 0.3, 0.3])  # a disc
    hard[2][7] = 1e6
    hard[3][8:12] = torch.tensor([0.0, 1.0, 1 / 255, 0.999])
    g = leaves(Gaussians(*hard).to(dtype))
    for antialiased in (False, True):
        render = rasterize(g, cameras.to(dtype), antialiased=antialiased)
        for grad in gradients(render, parts(g)):
            assert grad.isfinite().all()


def test_broken_gaussians_are_not_drawn():
    good = ball(30, seed=31)
    extra = [x.detach()[:8].clone() for x in parts(good)]
    extra[0][0], extra[0][1, 0], extra[0][2, 2] = math.nan, math.nan, math.inf
    extra[1][3], extra[2][4], extra[2][5], extra[3][6] = math.nan, math.nan, math.inf, math.nan
    extra[0][7] = 1e30
    both = leaves(Gaussians(*(torch.cat(x) for x in zip(parts(good.detach()), extra, strict=True))))
    render = rasterize(both, rig())
    for a, b in zip(render, rasterize(good, rig()), strict=True):
        assert torch.equal(a, b)
    assert all(x.isfinite().all() for x in gradients(render, parts(both)))


def test_batches_equal_single_images():
    g = ball(80, (2, 3), seed=40)
    azimuths = torch.arange(12.0).view(2, 3, 2) * 30
    single = [[rig(33, 40, azimuths[i, j]) for j in range(3)] for i in range(2)]
    stack = lambda name: torch.stack([torch.stack([getattr(c, name) for c in row]) for row in single])  # noqa: E731
    cameras = replace(single[0][0], viewmats=stack("viewmats"), Ks=stack("Ks"))
    own = rasterize(g, cameras, antialiased=True)
    shared = rasterize(g, single[0][0])
    assert own.rgb.shape == (2, 3, 2, 3, 40, 33) and own.alpha.shape == (2, 3, 2, 1, 40, 33)
    own_grads = gradients(own, parts(g))
    alone = [[leaves(g[i, j]) for j in range(3)] for i in range(2)]
    renders = [[rasterize(alone[i][j], single[i][j], antialiased=True) for j in range(3)] for i in range(2)]
    whole = Render(*(torch.stack([torch.stack([r[k] for r in row]) for row in renders]) for k in range(3)))
    for a, b in zip(own, whole, strict=True):
        assert torch.equal(a, b)
    flat = gradients(whole, [x for row in alone for one in row for x in parts(one)])
    for k in range(5):
        assert torch.equal(own_grads[k], torch.stack(flat[k::5]).reshape(own_grads[k].shape))
    assert torch.equal(shared.rgb[1, 2], rasterize(g[1, 2], single[0][0]).rgb)


def test_backgrounds():
    g, cameras = ball(50, seed=41), rig()
    black = rasterize(g, cameras, background=0.0)
    colour = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    render = rasterize(g, cameras, background=colour)
    behind = (1 - black.alpha) * colour[:, None, None]
    assert torch.equal(render.rgb, black.rgb + behind) and torch.equal(render.alpha, black.alpha)
    (grad,) = torch.autograd.grad(render.rgb.sum(), colour)
    assert torch.allclose(grad, (1 - black.alpha).sum().expand(3))
    each = torch.rand(3, 3, 1, 1, dtype=torch.float64)
    assert torch.equal(rasterize(g, cameras, each).rgb, black.rgb + (1 - black.alpha) * each)


def test_equal_depths_keep_their_order():
    cameras = rig(16, 16, (0.0,))
    stack = leaves(Gaussians(
        torch.zeros(2, 3), torch.tensor([[1.0, 0, 0, 0]] * 2), torch.full((2, 3), 0.3),
        torch.full((2,), 0.9), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]),
    ).to(torch.float64))  # fmt: skip
    rgb = rasterize(stack, cameras, 0.0).rgb[0]
    assert (rgb[0] > rgb[1]).all() and rgb[0].max() > 0.8


def test_float32_is_close_to_float64():
    g = ball(3000, size=0.03, seed=50)
    single = leaves(g.to(torch.float32))
    cameras = rig(96, 80)
    ours, exact = rasterize(single, cameras.to(torch.float32), 0.0), rasterize(g, cameras, 0.0)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32 and (a - b).abs().mean() < 1e-6 and (a - b).abs().max() < 1e-2
    assert_close(
        [x.double() for x in gradients(ours, parts(single))], gradients(exact, parts(g)), 2e-3, FIELDS
    )


def test_half_precision_inputs_are_drawn_in_float32():
    g = ball(40, seed=51).detach().to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = rasterize(replace(g, colors=g.colors.bfloat16()), rig(dtype=torch.float32))
    assert mixed.rgb.dtype == torch.float32
    assert torch.equal(mixed.alpha, rasterize(g, rig(dtype=torch.float32)).alpha)


def test_tile_reference_agrees():
    g, cameras = SCENES["opaque"]
    tiles = tile_render(g, cameras)
    ours = rasterize(g, cameras, 0.0)
    assert (tiles - torch.cat([ours.rgb, ours.depth, ours.alpha], 1)).abs().max() < 1e-12
