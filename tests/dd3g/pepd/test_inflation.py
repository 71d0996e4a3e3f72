"""The inflated silhouette: a disc becomes a ball, and a picture becomes its mirrored body."""

import pytest
import torch
import torch.nn.functional as F

from dd3g.cameras import Cameras
from dd3g.pepd.solid import VISIBLE, SolidOptions, inflated_silhouette, projected_colors, within
from dd3g.pepd.surface import HALF, inflated_field, voxel_centres
from dd3g.rasterizer import rasterize


def disc(size, radius, centre=(0.0, 0.0)):
    a = torch.arange(size) + 0.5 - size / 2
    y, x = torch.meshgrid(a, a, indexing="ij")
    return ((x - centre[0]).square() + (y - centre[1]).square()).sqrt() < radius


@pytest.mark.parametrize("elevation", [0.0, 35.0])
def test_the_field_is_thick_about_the_upright_plane(elevation):
    n, camera = 24, Cameras.orbit([40.0], elevation, 16)
    field = inflated_field(torch.full((16, 16), 0.1), camera, n).view(-1)
    points = voxel_centres(n)
    origins, directions = camera.rays()
    towards = torch.tensor([0.6428, 0.0, 0.7660])
    eye = camera.positions[0]
    for i in torch.randperm(n**3, generator=torch.Generator().manual_seed(0))[:50]:
        p = points[i]
        depth = float(camera.project(p[None])[1])
        ray = (p - eye) / depth
        middle = -float(eye @ towards) / float(ray @ towards)  # where the ray meets the plane
        twin = min(max(0.5 + (0.1 - abs(depth - middle)) / 0.1, 0), 1)
        assert float(field[i]) == pytest.approx(twin, abs=2e-3)


def test_voxels_are_indexed_x_y_z():
    points = voxel_centres(3).view(3, 3, 3, 3)
    torch.testing.assert_close(points[2, 0, 1], torch.tensor([0.4, -0.4, 0.0]))
    assert HALF == 0.6


def test_a_picture_of_a_disc_becomes_an_opaque_ball_with_the_picture_on_both_sides():
    camera = Cameras.orbit([0.0], 0.0, 64)
    alpha = disc(64, 11).float()
    left = (torch.arange(64) < 32).float().expand(64, 64)
    picture = torch.stack([left, 0.2 * torch.ones(64, 64), 1 - left, alpha])
    ring = Cameras.orbit([0.0, 90.0, 180.0], 0.0, 64)
    render = rasterize(inflated_silhouette(picture, camera), ring, background=0.0, antialiased=True)
    for view in render.alpha[:, 0]:
        assert view[disc(64, 9)].min() > 0.95
        assert view[~disc(64, 13)].max() < 0.05
    red, blue = torch.tensor([1.0, 0.2, 0.0]), torch.tensor([0.0, 0.2, 1.0])
    torch.testing.assert_close(render.rgb[0, :, 32, 27], red, atol=0.06, rtol=0)
    torch.testing.assert_close(render.rgb[2, :, 32, 27], blue, atol=0.06, rtol=0)  # seen from behind


def test_colours_are_the_pictures_along_the_ray():
    camera = Cameras.orbit([0.0], 10.0, 32)
    picture = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1))
    picture[3] = 1
    points = torch.tensor([[0.1, 0.2, 0.3], [-0.2, 0.0, -0.4]])
    eye = camera.positions
    behind = eye + 1.3 * (points - eye)
    colors = projected_colors(picture, camera)(torch.cat([points, behind]), torch.zeros(4, 3))
    torch.testing.assert_close(colors[:2], colors[2:], atol=1e-4, rtol=0)
    uv, _ = camera.project(points)
    twin = F.grid_sample(picture[None, :3], uv[:, :, None], align_corners=False)[0, :, :, 0].T
    torch.testing.assert_close(colors[:2], twin, atol=2e-3, rtol=0)


def test_an_empty_picture_has_no_body():
    assert len(inflated_silhouette(torch.zeros(4, 32, 32), Cameras.orbit([0.0], 10.0, 32)).means) == 0


def test_what_is_thinner_than_voxels_stands_as_a_card():
    camera = Cameras.orbit([0.0], 10.0, 256)
    wire = torch.zeros(4, 256, 256)
    wire[:, 100:102, 40:216] = torch.tensor([0.9, 0.1, 0.1, 1.0])[:, None, None]
    card = inflated_silhouette(wire, camera)
    assert len(card.means) == 2 * 176
    assert (card.means @ F.normalize(camera.positions[0], dim=0)).abs().max() < 0.01
    alpha = rasterize(card, camera, background=0.0, antialiased=True).alpha[0, 0]
    assert alpha[100:102, 42:214].min() > 0.6
    assert alpha[:97].max() < 0.05 and alpha[105:].max() < 0.05
    wire[3] *= 0.4
    torch.testing.assert_close(inflated_silhouette(wire, camera).opacities, torch.full((352,), 0.98 * 0.4))


@pytest.mark.parametrize("width", [8, 1])
def test_visible_and_hidden_discs_together_are_no_more_than_asked_for(width):
    """A picture of many outlines has more soft pixels than asked for once it is reduced."""
    camera = Cameras.orbit([0.0], 10.0, 128)
    bars = torch.ones(4, 128, 128) * (disc(128, 50) & (torch.arange(128) // width % 2 == 0))
    options = SolidOptions(most_visible=2000, most_hidden=1200, blur=0.45)
    assert int((within(bars, camera, options)[0][3] > VISIBLE).sum()) > 1990
    assert 2000 < len(inflated_silhouette(bars, camera, options).means) <= 3200
