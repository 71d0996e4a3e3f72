"""The camera's frustum against `Cameras`, the inflated silhouette, and the network that adds to it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from stand_ins.on_meta import OnMeta

from dd3g.cameras import RADIUS, Cameras
from dd3g.errors import UserError
from dd3g.pepd.frustum import (
    LIMIT,
    OUTSIDE,
    REACH,
    TAN,
    frustum_places,
    inflate,
    mirror_axis,
    pixel_rays,
    plucker,
    revolved,
    slices,
    spread,
    template,
    upright_depth,
)
from dd3g.pepd.occupancy import OccupancyConfig, OccupancyNet, Shape, color_at
from dd3g.pepd.surface import HALF, voxel_centres

ELEVATIONS = [-10.0, 10.0, 37.0]
CONFIG = OccupancyConfig(16, 12, 8, (8, 16), 16, 1, 2, 8, 4)
REVOLVED = replace(CONFIG, revolved=True)


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


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


# --- the field ---------------------------------------------------------------------------------------------


def shape_of(logits, elevation):
    """A shape of these logits (D, S, S), without colours."""
    radians = torch.tensor([math.radians(elevation)])
    return Shape(logits[None], torch.zeros(1, 4, 1, 1, 1), torch.zeros(1, 4, 8, 8), radians)


@pytest.mark.parametrize("elevation", ELEVATIONS)
def test_occupancy_of_points_is_the_nearest_slices_and_rays(elevation):
    """At the slices' centres along the pixels' rays it is the network's own value."""
    camera, logits = Cameras.orbit([0.0], elevation, 8), 8 * random(5, 8, 8) - 4
    origins, directions = camera.rays()
    points = origins[0] + slices(5)[:, None, None, None] * directions[0]  # (D, S, S, 3)
    shape = shape_of(logits, elevation)
    torch.testing.assert_close(shape.occupancy(points.view(-1, 3)), logits.flatten(), atol=1e-3, rtol=0)
    between = shape.occupancy((points[:-1] + points[1:]).view(-1, 3) / 2)
    torch.testing.assert_close(between, (logits[:-1] + logits[1:]).flatten() / 2, atol=1e-3, rtol=0)
    assert shape.occupancy(origins.view(-1, 3)).tolist() == [OUTSIDE]


def test_every_ray_that_shows_the_object_meets_matter():
    image = torch.zeros(1, 4, 8, 8)
    image[0, 3, 2, 3:5] = 1.0
    logits = torch.full((1, 4, 8, 8), -3.0)
    logits[0, 1, 2, 3:6], logits[0, 2, 2, 3] = -2.0, -2.1
    logits[0, 3, 2, 4] = 5.0  # this ray meets matter already
    found = Shape(logits, torch.zeros(1, 4, 1, 1, 1), image, torch.zeros(1)).shown(2.0).logits
    expected = logits.clone()
    expected[0, 1:3, 2, 3] = torch.tensor([2.0, 1.2])
    torch.testing.assert_close(found, expected)


def test_a_ball_along_the_rays_is_a_ball_in_the_world():
    elevation, n = 25.0, 40
    origins, directions = Cameras.orbit([0.0], elevation, 32).rays()
    points = origins[0] + slices(64)[:, None, None, None] * directions[0]  # (D, S, S, 3)
    ball = shape_of(40 * (0.4 - points.norm(dim=-1)), elevation)
    inside = ball.occupancy(voxel_centres(n)) > 0
    assert inside.sum() * (2 * HALF / n) ** 3 == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.03)


# --- the network -------------------------------------------------------------------------------------------


def picture(batch=2, size=16):
    image = random(batch, 4, size, size)
    image[:, 3] = disc(size, size / 3)
    return image, torch.deg2rad(torch.tensor([10.0, 30.0])[:batch])


def test_a_network_of_zeros_is_the_template():
    net = OccupancyNet(CONFIG)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        image, elevation = picture()
        logits, volume = net(image, elevation)
    twin = template(inflate(image[:, 3:]), upright_depth(pixel_rays(16), elevation), slices(12))
    assert logits.shape == (2, 12, 16, 16) and volume.shape == (2, 4, 4, 8, 8)
    torch.testing.assert_close(logits, twin)
    assert not volume.any()
    assert (logits.amax(1) > 0).equal(image[:, 3] > 0.5)


def test_a_network_may_choose_a_body_of_revolution():
    net = OccupancyNet(REVOLVED)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        image, elevation = picture()
        depths, rays = slices(12), pixel_rays(16)
        body = template(inflate(image[:, 3:]), upright_depth(rays, elevation), depths)
        turned = revolved(image[:, 3:], rays, elevation, depths)
        start, _ = net(image, elevation)
        net.round[-1].bias.fill_(20.0)
        logits, _ = net(image, elevation)
    torch.testing.assert_close(start, torch.lerp(body, turned, 1 / (1 + math.exp(2.0))))
    torch.testing.assert_close(logits, turned)
    assert (body - turned).abs().max() > 1


def test_it_chooses_for_each_pixel_and_sees_what_there_is_to_choose():
    torch.manual_seed(3)
    net = OccupancyNet(REVOLVED)
    maps = []
    net.stem.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0]))
    image, elevation = picture()
    body = template(inflate(image[:, 3:]), upright_depth(pixel_rays(16), elevation), slices(12))
    turned = revolved(image[:, 3:], pixel_rays(16), elevation, slices(12))
    with torch.no_grad():
        for parameter in (*net.occupancy.parameters(), net.round[-1].bias):
            parameter.zero_()
        net.round[-1].weight.mul_(1e4)
        logits, _ = net(image, elevation)
    differs = (body - turned).abs() > 0.5
    share = ((logits - body) / (turned - body))[differs]
    assert share.std() > 0.1 and share.min() > -1e-3 and share.max() < 1 + 1e-3
    torch.testing.assert_close(maps[0][:, -1], turned.amax(1) / LIMIT)


@pytest.mark.parametrize("config", [CONFIG, REVOLVED])
def test_the_elevation_is_looked_at(config):
    torch.manual_seed(0)
    net = OccupancyNet(config).eval()
    image, elevation = picture()
    with torch.no_grad():
        logits, volume = net(image, elevation)
        other, _ = net(image, elevation + 0.2)
        alone, _ = net(image[1:], elevation[1:])
    assert (logits - other).abs().max() > 0.1
    torch.testing.assert_close(alone, logits[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [CONFIG, REVOLVED])
def test_a_mirrored_picture_has_the_mirrored_shape(config):
    torch.manual_seed(2)
    net = OccupancyNet(config).eval()
    image, elevation = picture()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        seen, turned = (net.shape(x, elevation[0]) for x in (image[0], image[0].flip(-1)))
        once, volume = net(image[:1], elevation[:1])
        again, _ = net(image[:1].flip(-1), elevation[:1])
    assert (once - again.flip(-1)).abs().max() > 0.05
    torch.testing.assert_close(seen.logits, (once + again.flip(-1)) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.logits.flip(-1), seen.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.volume.flip(-1), seen.volume, atol=1e-5, rtol=0)
    assert (seen.volume - volume).abs().max() > 1e-3


def test_forward_makes_nothing_on_the_host():
    """A tensor of the host in `forward` stops a GPU at every step."""
    net = OccupancyNet(REVOLVED).to("meta")
    image, elevation = torch.empty(2, 4, 16, 16, device="meta"), torch.empty(2, device="meta")
    with OnMeta():
        logits, volume = net(image, elevation)
        places = frustum_places(torch.empty(2, 7, 3, device="meta"), elevation)
        assert color_at(volume, image, places).shape == (2, 7, 3) and logits.is_meta
        with pytest.raises(AssertionError, match="cpu"):
            torch.zeros(2)
        with pytest.raises(AssertionError, match="cpu"):
            torch.tensor(1.0)


def test_folder_round_trip(tmp_path):
    torch.manual_seed(1)
    net = OccupancyNet(REVOLVED).eval()
    again = OccupancyNet.from_pretrained(net.save_pretrained(tmp_path / "shape"))
    image, elevation = picture()
    with torch.no_grad():
        assert torch.equal(net(image, elevation)[0], again(image, elevation)[0])
    with pytest.raises(UserError, match="'shape', not a dd3g generator"):
        from dd3g.pepd import Generator

        Generator.from_pretrained(tmp_path / "shape")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 20}, "size 20"),
        ({"width": 12}, "width 12"),
        ({"widths": (64, 4)}, r"widths\[1\] 4"),
        ({"heads": 3}, "heads 3"),
        ({"bins": 0}, "bins 0"),
        ({"depth": -1}, "depth -1"),
    ],
)
def test_wrong_shapes(options, message):
    with pytest.raises(ValueError, match=message):
        OccupancyConfig(**options)


# --- colours -----------------------------------------------------------------------------------------------


def test_colours_are_the_pixel_at_an_open_gate_and_the_mean_at_a_closed_one():
    image = torch.zeros(1, 4, 16, 16)
    image[:, 0, :, :8], image[:, 2, :, 8:], image[:, 3, :, 4:12] = 0.8, 0.6, 1
    volume = torch.zeros(1, 4, 3, 8, 8)
    places = torch.tensor([[[-0.2, 0.0, 0.0], [0.2, 0.0, 0.5]]])
    volume[:, 0] = 20
    opened = color_at(volume, image, places)[0]
    torch.testing.assert_close(
        opened, torch.tensor([[0.8, 0.02, 0.02], [0.02, 0.02, 0.6]]), atol=1e-3, rtol=0
    )
    volume[:, 0] = -20
    closed = color_at(volume, image, places)[0]
    torch.testing.assert_close(closed, torch.tensor([[0.4, 0.02, 0.3]] * 2), atol=1e-3, rtol=0)
    volume[:, 2] = torch.linspace(-3, 3, 3)[None, :, None, None]
    nearer, farther = color_at(volume, image, places)[0, :, 1]
    assert nearer == pytest.approx(0.02, abs=1e-3) and farther > 0.1


def test_colours_are_carried_past_the_mask():
    image = torch.zeros(1, 4, 16, 16)
    image[:, :3] = random(1, 3, 16, 16)
    image[:, :3, 6:10, 6:10], image[:, 3, 6:10, 6:10] = torch.tensor([0.2, 0.4, 0.9])[:, None, None], 1
    found = spread(image[:, :3], image[:, 3:])
    torch.testing.assert_close(found, torch.tensor([0.2, 0.4, 0.9]).view(1, 3, 1, 1).expand_as(found))
