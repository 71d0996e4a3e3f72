"""The camera's frustum against `Cameras`, and the bodies made of a silhouette."""

from __future__ import annotations

import math

import pytest
import torch

from dd3g.cameras import RADIUS, Cameras
from dd3g.pepd.frustum import (
    LIMIT,
    REACH,
    TAN,
    frustum_places,
    inflate,
    mirror_axis,
    pixel_rays,
    plucker,
    revolved,
    slices,
    template,
    upright_depth,
)

ELEVATIONS = [-10.0, 10.0, 37.0]


def disc(size=64, radius=14.0):
    a = torch.arange(size) + 0.5 - size / 2
    return ((a[:, None] ** 2 + a**2) < radius**2).float()


# --- the frustum -------------------------------------------------------------------------------------------


def test_rays_are_those_of_cameras():
    cameras = Cameras.orbit([0.0] * 3, ELEVATIONS, 8)
    twin = cameras.plucker()
    twin[:, :3] /= RADIUS
    found = plucker(pixel_rays(8), torch.deg2rad(torch.tensor(ELEVATIONS)))
    torch.testing.assert_close(found, twin, atol=1e-5, rtol=0)


def test_upright_depth_is_where_the_plane_is_crossed():
    cameras = Cameras.orbit([0.0] * 3, ELEVATIONS, 8)
    depth = upright_depth(pixel_rays(8), torch.deg2rad(torch.tensor(ELEVATIONS)))[:, 0]
    origins, directions = cameras.rays()
    points = origins + depth[..., None] * directions
    # The upright plane that faces azimuth 0 is z = 0.
    torch.testing.assert_close(points[..., 2], torch.zeros_like(depth), atol=1e-5, rtol=0)


def test_places_are_pixels_and_slices():
    """Points along each pixel's ray at the slices' depths come back as the grid's own centres."""
    elevations = torch.deg2rad(torch.tensor(ELEVATIONS))
    origins, directions = Cameras.orbit([0.0] * 3, ELEVATIONS, 8).rays()
    points = origins[:, None] + slices(5)[:, None, None, None] * directions[:, None]  # (3, D, S, S, 3)
    pixels, bins = (torch.arange(8) + 0.5) / 4 - 1, (torch.arange(5) + 0.5) / 2.5 - 1
    d, y, x = torch.meshgrid(bins, pixels, pixels, indexing="ij")
    twin = torch.stack([x, y, d], -1).expand(3, -1, -1, -1, -1)
    torch.testing.assert_close(frustum_places(points, elevations), twin, atol=1e-5, rtol=0)
    one = frustum_places(points[1, 2, 3], elevations[1:2].expand(8))  # (B, 3) works as well
    torch.testing.assert_close(one, twin[1, 2, 3], atol=1e-5, rtol=0)


def test_what_is_behind_the_camera_is_outside():
    elevation = torch.deg2rad(torch.tensor([20.0]))
    eye = Cameras.orbit([0.0], 20.0, 8).positions
    places = frustum_places(torch.stack([eye, 1.5 * eye], 1), elevation)
    assert places.isfinite().all() and (places[..., 2] < -1).all()


# --- the silhouette ----------------------------------------------------------------------------------------


def test_a_disc_becomes_a_ball():
    half = inflate(disc()[None, None])[0, 0]
    pixel = 2 * RADIUS * TAN / 64
    a = torch.arange(64) + 0.5 - 32
    height = (14**2 - (a[:, None] ** 2 + a**2)).clamp(min=0).sqrt() * pixel
    assert half.max() <= 0.3 and (half > 0).equal(disc() > 0)
    inner = disc(radius=12.0) > 0
    assert (half - height).abs()[inner].max() < pixel
    assert half[32, 32] == pytest.approx(14 * pixel, rel=0.08)


def test_inflation_solves_its_equation():
    """A mask with a hole and two parts, against a dense solve."""
    mask = torch.zeros(16, 16)
    mask[1:9, 2:12], mask[4:6, 5:8], mask[11:14, 9:] = 1, 0, 1
    places = mask.nonzero().tolist()
    index = {tuple(p): i for i, p in enumerate(places)}
    matrix = torch.zeros(len(places), len(places), dtype=torch.float64)
    for i, (y, x) in enumerate(places):
        for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if other in index:
                matrix[i, i] += 1
                matrix[i, index[other]] -= 1
            else:
                matrix[i, i] += 2  # u changes its sign across the outline
    u = torch.linalg.solve(matrix, torch.full((len(places),), 4.0, dtype=torch.float64))
    half = inflate(mask[None, None], rounds=400)[0, 0]
    torch.testing.assert_close(
        half[mask > 0].double(), (u.sqrt() * 2 * RADIUS * TAN / 16).clamp(max=0.3), atol=1e-4, rtol=0
    )


def test_masks_of_a_batch_do_not_see_each_other():
    alpha = torch.stack([disc(), disc(64, 9.0), torch.zeros(64, 64)])[:, None]
    together = inflate(alpha)
    for one, mask in zip(together, alpha, strict=True):
        torch.testing.assert_close(one, inflate(mask[None])[0])
    assert not together[2].any() and inflate(torch.ones(1, 1, 48, 48)).isfinite().all()


def test_the_template_is_positive_inside():
    half, middle = torch.full((1, 1, 1, 1), 0.2), torch.full((1, 1, 1, 1), 1.5)
    depths = torch.tensor([1.0, 1.29, 1.31, 1.5, 1.69, 1.71])
    found = template(half, middle, depths).flatten().tolist()
    assert found == pytest.approx([-2.5, -0.2, 0.2, 2.5, 0.2, -0.2], abs=1e-4)


# --- bodies of revolution ----------------------------------------------------------------------------------


def vase(x, y, z, axis=0.0):
    """Whether points are in a body of revolution around the upright axis at x = `axis`."""
    wide = 0.18 + 0.1 * torch.sin(7 * y) + 0.08 * y
    return (y.abs() < 0.4) & ((x - axis) ** 2 + z**2 < wide**2)


def along_rays(inside, elevation, size, bins):
    """(bins, S, S) whether `inside` holds at the slices of a camera at this elevation."""
    origins, directions = Cameras.orbit([0.0], elevation, size).rays()
    points = origins[0] + slices(bins)[:, None, None, None] * directions[0]
    return inside(*points.float().unbind(-1))


def picture_of(inside, elevation, size=64):
    """(1, 1, S, S) its silhouette."""
    return along_rays(inside, elevation, size, 400).any(0).float()[None, None]


@pytest.mark.parametrize(("elevation", "axis"), [(10.0, 0.0), (30.0, 0.1), (-10.0, -0.05)])
def test_a_body_of_revolution_is_found_again(elevation, axis):
    def inside(x, y, z):
        return vase(x, y, z, axis)

    size, radians = 160, torch.deg2rad(torch.tensor([elevation]))
    found = revolved(picture_of(inside, elevation, size), pixel_rays(size), radians, slices(48))[0]
    true = along_rays(inside, elevation, size, 48)
    both, either = (true & (found > 0)).sum(), (true | (found > 0)).sum()
    assert both / either > (0.95 if axis == 0 else 0.86)  # off the middle perspective moves the axis
    assert found.abs().max() == LIMIT and found.shape == (48, size, size)


def test_revolved_against_brute_force():
    """Every circle of every height, one by one, on a silhouette of no body of revolution."""
    size, elevation = 16, 25.0
    alpha = picture_of(
        lambda x, y, z: (y.abs() < 0.3) & (x > -0.3) & (x < 0.2) & (z.abs() < 0.1), elevation, size
    )
    camera, radians = Cameras.orbit([0.0], elevation, size), torch.deg2rad(torch.tensor([elevation]))
    axis = float(mirror_axis(alpha)) * TAN * RADIUS
    section = torch.ones(size, size // 2)
    for h in range(size):
        for r in range(size // 2):
            for k in range(32):
                angle = math.tau * (k + 0.5) / 32
                radius, height = (r + 0.5) * 2 * REACH / size, (h + 0.5) * 2 * REACH / size - REACH
                point = torch.tensor([[axis + radius * math.sin(angle), height, radius * math.cos(angle)]])
                uv = camera.project(point)[0].float()
                seen = torch.nn.functional.grid_sample(
                    alpha, uv[:, :, None], align_corners=False, padding_mode="border"
                )
                section[h, r:] = section[h, r:].clamp(max=float(seen))
    origins, directions = camera.rays()
    points = origins[0] + slices(12)[:, None, None, None] * directions[0]
    out = torch.hypot(points[..., 0] - axis, points[..., 2]) * size / 2 / REACH - 0.5
    up = (points[..., 1] + REACH) * size / 2 / REACH - 0.5
    twin, reached = torch.zeros(12, size, size), (out < size // 2 - 0.5) & (up > -0.5) & (up < size - 0.5)
    for place in torch.cartesian_prod(*map(torch.arange, twin.shape)).tolist():
        u, v = float(out[tuple(place)]), float(up[tuple(place)])
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = math.floor(v) + i, math.floor(u) + j
            weight = (1 - abs(v - row)) * (1 - abs(u - column))
            twin[tuple(place)] += (
                weight * section[min(max(row, 0), size - 1), min(max(column, 0), size // 2 - 1)]
            )
    found = revolved(alpha, pixel_rays(size), radians, slices(12))[0]
    assert 0.05 < (found > 0).float().mean() < 0.5
    torch.testing.assert_close(found, LIMIT * (2 * twin * reached - 1), atol=2e-3, rtol=0)


def test_silhouettes_of_a_batch_are_revolved_one_by_one():
    shapes = [lambda x, y, z, a=a: vase(x, y, z, a) for a in (0.0, 0.1)]
    alpha = torch.cat([picture_of(shape, 10.0, 32) for shape in shapes])
    alpha = torch.cat([alpha, torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)])
    elevation = torch.deg2rad(torch.tensor([10.0, 20.0, 10.0, 10.0]))
    together = revolved(alpha, pixel_rays(32), elevation, slices(8))
    for i in range(4):
        alone = revolved(alpha[i : i + 1], pixel_rays(32), elevation[i : i + 1], slices(8))
        torch.testing.assert_close(together[i], alone[0])
    assert (together[2] == -LIMIT).all()
    full = together[3] > 0  # of a full picture: a cylinder that ends
    assert full[:, 16, 16].any() and 0.1 < full.float().mean() < 0.9


def test_the_axis_is_that_of_most_of_a_silhouette():
    mug = torch.zeros(3, 1, 64, 64)
    mug[0, 0, 10:50, 20:37] = 1.0  # 17 columns about the middle of column 28
    mug[0, 0, 20, 37:50], mug[0, 0, 40, 37:50], mug[0, 0, 20:41, 47:50] = 1.0, 1.0, 1.0  # a handle
    mug[1] = mug[0].flip(-1)
    mug[2, 0, 5, 63] = 1.0
    assert mirror_axis(mug).tolist() == pytest.approx(
        [2 * 28.5 / 64 - 1, 1 - 2 * 28.5 / 64, 2 * 63.5 / 64 - 1]
    )
    assert mirror_axis(torch.zeros(1, 1, 8, 8)).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert mirror_axis(mug).tolist() == mirror_axis(mug.bfloat16()).tolist()
