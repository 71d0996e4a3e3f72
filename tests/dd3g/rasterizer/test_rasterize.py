import math
import threading
from dataclasses import fields, replace

import numba
import pytest
import torch
from dense_reference import dense_render

import dd3g
from dd3g.benchmark.torch_tiles import tile_render
from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import Render, rasterize
from dd3g.rasterizer.cpu_projection import project_fused
from dd3g.rasterizer.projection import project

FIELDS = [f.name for f in fields(Gaussians)]


def ball(n: int, batch=(), size=0.05, spread=0.55, opacity=(0.02, 0.98), channels=3, seed=0) -> Gaussians:
    """Random Gaussians in a ball, float64, every field asking for its gradient."""
    draw = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.rand(*batch, n, *s, generator=draw, dtype=torch.float64)  # noqa: E731
    randn = lambda *s: torch.randn(*batch, n, *s, generator=draw, dtype=torch.float64)  # noqa: E731
    means = torch.nn.functional.normalize(randn(3), dim=-1) * rand(1) ** (1 / 3) * spread
    scales = size * torch.exp(0.6 * randn(3))
    opacities = opacity[0] + (opacity[1] - opacity[0]) * rand()
    return leaves(Gaussians(means, 2 * randn(4), scales, opacities, rand(channels)))


def leaves(g: Gaussians) -> Gaussians:
    return Gaussians(*(getattr(g, k).detach().clone().requires_grad_() for k in FIELDS))


def rig(width=48, height=48, azimuths=(0.0, 40.0, 170.0), dtype=torch.float64, **planes) -> Cameras:
    """Orbit cameras with an off-centre principal point."""
    cameras = Cameras.orbit(azimuths, 10, 48).to(dtype)
    cameras.Ks[..., 0, 2], cameras.Ks[..., 1, 2] = 0.55 * width, 0.4 * height
    return replace(cameras, width=width, height=height, **planes)


def dense(g: Gaussians, cameras: Cameras, antialiased=False) -> Render:
    views = [
        dense_render(g, V, K, cameras, antialiased) for V, K in zip(cameras.viewmats, cameras.Ks, strict=True)
    ]
    rgb, alpha, depth = (torch.stack(x) for x in zip(*views, strict=True))
    return Render(rgb, alpha[:, None], depth[:, None])


def gradients(render: Render, inputs: list[torch.Tensor], seed=1) -> tuple[torch.Tensor, ...]:
    """Of a random linear function of the whole render."""
    draw = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)).sum() for x in render)
    return torch.autograd.grad(loss, inputs)


def parts(g: Gaussians) -> list[torch.Tensor]:
    return [getattr(g, k) for k in FIELDS]


def assert_close(got, expected, tolerance: float, names) -> None:
    for a, b, name in zip(got, expected, names, strict=True):
        assert a.shape == b.shape and a.isfinite().all(), name
        scale = max(b.abs().max().item(), 1e-30) if b.numel() else 1.0
        worst = (a - b).abs().max().item() / scale if b.numel() else 0.0
        assert worst <= tolerance, f"{name}: {worst:.1e}"


SCENES = {
    "plain": (ball(200), rig()),
    "odd size": (ball(150, seed=1), rig(61, 33)),
    "smaller than a tile": (ball(60, seed=2), rig(7, 5)),
    "one pixel": (ball(60, seed=3), rig(1, 1)),
    "one channel": (ball(120, channels=1, seed=4), rig()),
    "nine channels": (ball(120, channels=9, seed=5), rig()),
    "no colour channel": (ball(50, channels=0, seed=6), rig()),
    # Cameras stand among the Gaussians: some lie behind, beside or across the image plane.
    "around the camera": (ball(300, size=0.2, spread=2.5, seed=7), rig(near=0.02, far=3.0)),
    "large": (ball(80, size=0.6, opacity=(0.1, 1.0), seed=8), rig(40, 40)),
    # Opaque stacks reach both the 0.999 clamp and the end of the pixel.
    "opaque": (ball(300, size=0.12, opacity=(1.0, 1.0), seed=9), rig()),
    "nearly transparent": (ball(200, size=0.1, opacity=(0.0, 0.012), seed=10), rig()),
    "needles": (ball(200, size=0.03, seed=11), rig()),
    "one": (ball(1, size=0.2, seed=12), rig()),
    "outside the frame": (ball(100, spread=4.0, seed=13), rig(near=0.02, far=9.0)),
}
SCENES["needles"][0].scales.data[:, 0] *= 8
SCENES["needles"][0].scales.data[:, 1:] *= 0.1


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


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("scene", ["plain", "around the camera", "needles", "nearly transparent", "large"])
def test_fused_projection_equals_torch(scene, antialiased):
    g, cameras = SCENES[scene]
    g = leaves(Gaussians(*(x[None] for x in parts(g))))
    cameras = cameras[None]
    fused, plain = project_fused(g, cameras, antialiased), project(g, cameras, antialiased)
    seen = plain.extents[..., 0] > 0
    assert torch.equal(seen, fused.extents[..., 0] > 0) and seen.sum() > 50
    names = plain._fields
    assert_close([x[seen] for x in fused], [x[seen] for x in plain], 1e-12, names)
    draw = torch.Generator().manual_seed(5)
    weights = [torch.randn(x[seen].shape, generator=draw, dtype=torch.float64) for x in plain[:4]]
    loss = [sum((x[seen] * w).sum() for x, w in zip(p[:4], weights, strict=True)) for p in (fused, plain)]
    got, expected = (torch.autograd.grad(x, parts(g)[:4]) for x in loss)
    assert_close(got, expected, 1e-10, FIELDS[:4])


@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_equals_gsplat(antialiased):
    reference = pytest.importorskip("gsplat.cuda._torch_impl")
    g = ball(500, size=0.1, spread=1.6, opacity=(1.0, 1.0), seed=20)
    cameras = rig(61, 33, near=0.1, far=2.8)
    covars, _ = reference._quat_scale_to_covar_preci(g.quats, g.scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = reference._fully_fused_projection(
        g.means, covars, cameras.viewmats, cameras.Ks, 61, 33,
        near_plane=0.1, far_plane=2.8, calc_compensations=True,
    )  # fmt: skip
    flat = Gaussians(*(x[None] for x in parts(g)))
    ours = project(flat, cameras[None], antialiased)
    seen = (radii > 0).all(-1)
    if antialiased:  # gsplat's torch projection knows no opacity, so it keeps what fades away
        seen &= compensations >= 1 / 255
        assert_close([ours.opacities[0][seen]], [compensations[seen]], 1e-6, ["opacities"])
    else:
        reach = math.sqrt(2 * math.log(255))  # just under gsplat's 3.33
        assert torch.equal((ours.extents[0] * 3.33 / reach).ceil()[seen], radii[seen].double())
    assert torch.equal(ours.extents[0, ..., 0] > 0, seen) and 100 < seen.sum() < seen.numel()
    got = [x[0][seen] for x in (ours.means2d, ours.depths, ours.conics)]
    expected = [x[seen] for x in (means2d, depths, conics)]
    assert_close(got, expected, 1e-12, ("means2d", "depths", "conics"))
    draw = torch.Generator().manual_seed(6)
    weights = [torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in expected]
    sums = [sum((x * w).sum() for x, w in zip(xs, weights, strict=True)) for xs in (got, expected)]
    leaves_ = [g.means, g.quats, g.scales]
    assert_close(*(torch.autograd.grad(s, leaves_) for s in sums), 1e-10, FIELDS[:3])


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


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread has nothing to disagree with")
def test_same_bits_from_any_number_of_threads():
    g, cameras = leaves(ball(2000, seed=60).to(torch.float32)), rig(64, 64, dtype=torch.float32)

    def once():
        render = rasterize(g, cameras)
        return (*render, *gradients(render, parts(g)))

    before, results = numba.get_num_threads(), []
    try:
        for count in {1, before}:
            numba.set_num_threads(count)
            results.append(once())
    finally:
        numba.set_num_threads(before)
    for a, b in zip(results[0], once(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(results[0], results[-1], strict=True):
        assert torch.equal(a, b)


def test_concurrent_calls():
    scenes = [leaves(ball(500, seed=s).to(torch.float32)) for s in range(4)]
    cameras = rig(64, 64, dtype=torch.float32)
    expected = [gradients(rasterize(g, cameras), parts(g)) for g in scenes]
    failures = []

    def work(k):
        for _ in range(10):
            got = gradients(rasterize(scenes[k], cameras), parts(scenes[k]))
            if not all(torch.equal(a, b) for a, b in zip(got, expected[k], strict=True)):
                failures.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_errors_say_what_to_do():
    g, cameras = ball(3, (2,)), rig()
    with pytest.raises(ValueError, match=r"\(V,\) or \(2, 'V'\)"):
        rasterize(g, replace(cameras, viewmats=cameras.viewmats[None], Ks=cameras.Ks[None]))
    with pytest.raises(ValueError, match="batch shape"):
        rasterize(g, cameras[0])
    with pytest.raises(ValueError, match="near"):
        rasterize(g, replace(cameras, near=0.0))
    with pytest.raises(ValueError, match="backend"):
        rasterize(g, cameras, backend="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA device"):
            rasterize(g, cameras, backend="cuda")


def test_the_public_name_is_the_function():
    assert dd3g.rasterize is rasterize


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("channels", [3, 9])
def test_cuda_equals_cpu(antialiased, channels):
    g = leaves(ball(2000, (2,), size=0.03, channels=channels, seed=70).to(torch.float32))
    on_cuda = leaves(g.to("cuda"))
    cameras = rig(75, 64, dtype=torch.float32)
    ours = rasterize(g, cameras, antialiased=antialiased)
    theirs = rasterize(on_cuda, cameras.to("cuda"), antialiased=antialiased)
    for a, b in zip(ours, theirs, strict=True):
        error = (a - b.cpu()).abs()
        # Single pixels may differ where alpha meets 1/255.
        assert error.mean() < 1e-5 and error.quantile(0.999) < 1e-3
    theirs_grads = [x.cpu() for x in gradients(Render(*(x.cpu() for x in theirs)), parts(on_cuda))]
    for a, b, name in zip(gradients(ours, parts(g)), theirs_grads, FIELDS, strict=True):
        assert (a - b).norm() / b.norm() < 1e-2, name


def test_get_ready_draws_or_says_what_is_needed(monkeypatch):
    from dd3g import rasterizer
    from dd3g.errors import UserError

    rasterizer.get_ready(torch.device("cpu"))

    def missing(*args, **options):
        raise RuntimeError("gsplat found no CUDA toolkit (nvcc)\nand more")

    monkeypatch.setattr(rasterizer, "rasterize", missing)
    with pytest.raises(
        UserError, match=r"not work on cpu \(gsplat found no CUDA toolkit \(nvcc\)\): .*ninja"
    ):
        rasterizer.get_ready(torch.device("cpu"))
