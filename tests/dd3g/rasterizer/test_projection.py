"""Projection: fused and by torch, and gsplat's."""

import math

import pytest
import torch
from stand_ins.balls import FIELDS, SCENES, assert_close, ball, leaves, parts, rig

from dd3g.gaussians import Gaussians
from dd3g.rasterizer.cpu_projection import project_fused
from dd3g.rasterizer.projection import project


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
