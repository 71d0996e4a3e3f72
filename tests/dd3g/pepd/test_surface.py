"""Hull, nets and hits against brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from dd3g.cameras import Cameras
from dd3g.pepd.frustum import spread
from dd3g.pepd.surface import (
    HALF,
    filled_depth,
    first_hits,
    least_alpha,
    smoothed,
    surface_nets,
    visual_hull,
    without_crumbs,
)


def voxels(n):
    a = (torch.arange(n) + 0.5) / n * 2 * HALF - HALF
    return torch.stack(torch.meshgrid(a, a, a, indexing="ij"), -1)  # (n, n, n, 3)


def ball(n, radius=0.4, centre=(0.0, 0.0, 0.0)):
    return (radius - (voxels(n) - torch.tensor(centre)).norm(dim=-1)) * n


def test_zeros_take_the_value_of_a_nearest_place():
    """Brute force: every place holds one of the values that are fewest steps away."""
    g = torch.Generator().manual_seed(3)
    for count in (1, 5, 60):
        depth = torch.zeros(17, 17)
        at = torch.randperm(17 * 17, generator=g)[:count]
        depth.view(-1)[at] = torch.arange(1.0, count + 1)
        found, rows = filled_depth(depth), torch.arange(17)
        steps = (rows[:, None, None] - at // 17).abs() + (rows[:, None] - at % 17).abs()  # (17, 17, count)
        assert torch.equal(steps.gather(-1, found.long()[..., None] - 1)[..., 0], steps.amin(-1))
        assert torch.equal(found[depth > 0], depth[depth > 0])
    assert not filled_depth(torch.zeros(4, 4)).any()


def test_hull_is_the_smallest_sampled_alpha():
    n, cameras = 12, Cameras.orbit([0.0, 70.0, 200.0], [10.0, -20.0, 50.0], 16)
    alpha = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.2
    uv, _ = cameras.project(voxels(n).view(-1, 3))
    twin = F.grid_sample(alpha[:, None], uv[:, :, None], align_corners=False)[:, 0, :, 0].amin(0)
    found = visual_hull(alpha, cameras, n).view(-1)
    near = twin >= 0.1  # below that the search stops early
    torch.testing.assert_close(found[near], twin[near], atol=1e-5, rtol=0)
    assert (found[~near] < 0.1).all()


def test_least_alpha_of_points_is_the_hull_of_their_voxels():
    n, cameras = 9, Cameras.orbit([20.0, 140.0], [5.0, 30.0], 16)
    alpha = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(3))
    found = least_alpha(alpha, cameras, voxels(n).view(-1, 3).flip(0))
    assert torch.equal(found.flip(0), visual_hull(alpha, cameras, n).view(-1))


def test_smoothing_is_scipys():
    field = torch.rand(9, 10, 11, generator=torch.Generator().manual_seed(1))
    twin = ndimage.gaussian_filter(field.numpy(), 0.8, mode="nearest", radius=2)
    np.testing.assert_allclose(smoothed(field, 0.8).numpy(), twin, atol=1e-6)


@pytest.mark.parametrize(("least", "share"), [(1, 0.2), (4, 0.2), (40, 0.2), (40, 0.35), (4000, 0.3)])
def test_crumbs_are_the_small_pieces_that_scipy_finds(least, share):
    field = torch.rand(14, 14, 14, generator=torch.Generator().manual_seed(2))
    labels, _ = ndimage.label(field.numpy() > 1 - share)
    sizes = np.bincount(labels.ravel())
    kept = sizes >= least
    kept[1 + sizes[1:].argmax()] = True
    kept[0] = True
    found = without_crumbs(field, 1 - share, least)
    same = torch.from_numpy(kept[labels])
    assert torch.equal(found[same], field[same])
    assert (found[~same] == torch.tensor(1 - share)).all() and bool((~same).any()) == (least > 1)


def test_nets_lie_on_the_sphere_with_outward_normals():
    n, centre = 40, (0.05, -0.1, 0.02)
    points, normals = surface_nets(ball(n, 0.35, centre), 0.0)
    away = points - torch.tensor(centre)
    voxel = 2 * HALF / n
    assert (away.norm(dim=-1) - 0.35).abs().max() < 0.05 * voxel
    assert (normals * F.normalize(away, dim=-1)).sum(-1).min() > 0.999


def test_nets_have_a_point_in_every_crossed_cell():
    field = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(2))
    inside = F.pad((field > 0.2).float(), (1, 1, 1, 1, 1, 1))
    corners = F.avg_pool3d(inside[None, None], 2, 1)[0, 0]
    points, _ = surface_nets(field, 0.2)
    assert len(points) == int(((corners > 0) & (corners < 1)).sum())


def test_nets_are_closed_at_the_border_of_the_cube():
    points, _ = surface_nets(torch.ones(5, 5, 5), 0.5)
    assert len(points) == 6**3 - 4**3


@pytest.mark.parametrize("elevation", [0.0, 35.0])
def test_hits_agree_with_the_sphere(elevation):
    camera = Cameras.orbit([30.0], elevation, 24)
    depth = first_hits(ball(64), 0.0, camera, torch.ones(24, 24, dtype=torch.bool))
    origins, directions = camera.rays()
    o, d = origins[0, 0, 0], directions[0]
    a, b, c = d.square().sum(-1), (d * o).sum(-1), o.square().sum() - 0.4**2
    root = b.square() - a * c
    true = (-b - root.clamp(min=0).sqrt()) / a
    clear = root > 0.05
    assert clear.sum() > 100
    assert (depth - true)[clear].abs().max() < 2e-3
    assert not depth[root < -0.01].any()


def test_rays_outside_the_mask_are_not_followed():
    assert not first_hits(
        ball(16), 0.0, Cameras.orbit([0.0], 0.0, 8), torch.zeros(8, 8, dtype=torch.bool)
    ).any()


def test_spread_keeps_what_is_known_and_fills_the_rest():
    values, weight = torch.full((1, 1, 16, 16), 7.0), torch.zeros(1, 1, 16, 16)
    values[0, 0, 3, 3], weight[0, 0, 3, 3] = 0.25, 1.0
    torch.testing.assert_close(spread(values, weight), torch.full((1, 1, 16, 16), 0.25), atol=1e-4, rtol=0)
