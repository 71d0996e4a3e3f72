"""Occupancy along the rays of a picture as a field of the world, and the network that gives it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from stand_ins.on_meta import OnMeta

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.pepd.frustum import (
    LIMIT,
    OUTSIDE,
    frustum_places,
    inflate,
    pixel_rays,
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


def bodies(image, elevation):
    """Logits of the inflated silhouettes of `picture`, and of the bodies of revolution within them."""
    alpha, rays, depths = image[:, 3:], pixel_rays(16), slices(12)
    inflated = template(inflate(alpha), upright_depth(rays, elevation), depths)
    return inflated, revolved(alpha, rays, elevation, depths)


def test_a_network_of_zeros_is_the_template():
    net = OccupancyNet(CONFIG)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        image, elevation = picture()
        logits, volume = net(image, elevation)
    twin, _ = bodies(image, elevation)
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
        body, turned = bodies(image, elevation)
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
    body, turned = bodies(image, elevation)
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
