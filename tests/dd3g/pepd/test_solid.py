"""What a solid body must be."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.pepd import refinement
from dd3g.pepd.refinement import refined
from dd3g.pepd.solid import (
    SolidOptions,
    any_around,
    detailed,
    discs_on,
    mask_cameras,
    outline,
    sharpened,
    solidify,
    tangent_axes,
    visible_side,
)
from dd3g.pepd.surface import voxel_centres
from dd3g.rasterizer import rasterize

ONCE = torch.zeros(32, 32, dtype=torch.bool)  # no pixel's disc is there twice


def test_tangent_axes_are_rotations_about_the_normal():
    normals = F.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(3)), dim=-1)
    axes = tangent_axes(torch.cat([normals, torch.eye(3), -torch.eye(3)]))
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3).expand_as(axes), atol=1e-5, rtol=0)
    assert (torch.linalg.det(axes) > 0.99).all()
    torch.testing.assert_close(axes[:50, :, 2], normals)


def haze(radius=0.3, count=4000, color=(0.2, 0.4, 0.9)):
    """A ball of long, half-transparent splats, as a generator leaves it."""
    g = torch.Generator().manual_seed(4)
    means = F.normalize(torch.randn(count, 3, generator=g), dim=-1) * radius
    return Gaussians(
        means,
        F.normalize(torch.randn(count, 4, generator=g), dim=-1),
        torch.tensor([0.01, 0.01, 0.03]).repeat(count, 1),
        torch.full((count,), 0.5),
        torch.tensor(color).repeat(count, 1),
    )


def picture_of(gaussians, camera, color=(0.9, 0.1, 0.1)):
    alpha = (rasterize(gaussians, camera, background=0.0).alpha[0] > 0.5).float()
    return torch.cat([torch.tensor(color)[:, None, None] * alpha, alpha])


def test_a_ball_of_haze_becomes_an_opaque_ball():
    camera = Cameras.orbit([0.0], 10.0, 64)
    soft = haze()
    solid = solidify(soft, picture_of(soft, camera), camera)
    ring = Cameras.orbit([0.0, 90.0, 180.0, 270.0], 15.0, 64)
    alpha, mask = rasterize(solid, ring, antialiased=True).alpha, rasterize(soft, ring).alpha > 0.5
    inner = -F.max_pool2d(-mask[:, 0].float(), 5, 1, 2) > 0.5
    outer = F.max_pool2d(mask[:, 0].float(), 5, 1, 2) > 0.5
    assert alpha[:, 0][inner].min() > 0.95
    assert alpha[:, 0][~outer].max() < 0.05
    assert solid.means.norm(dim=-1).max() < 0.38


def test_the_picture_colours_what_it_shows_and_the_splats_the_rest():
    camera = Cameras.orbit([0.0], 10.0, 64)
    soft = haze()
    solid = solidify(soft, picture_of(soft, camera), camera)
    front, back = rasterize(solid, Cameras.orbit([0.0, 180.0], [10.0, -10.0], 64)).rgb
    torch.testing.assert_close(front[:, 32, 32], torch.tensor([0.9, 0.1, 0.1]), atol=0.03, rtol=0)
    torch.testing.assert_close(back[:, 32, 32], torch.tensor([0.2, 0.4, 0.9]), atol=0.05, rtol=0)


def test_the_visible_side_repeats_the_picture():
    """Detail of the picture's own resolution survives, though the masks have 64 pixels."""
    camera = Cameras.orbit([0.0], 10.0, 128)
    soft = haze()
    picture = picture_of(soft, camera)
    stripes = (torch.arange(128) // 4 % 2).float()
    picture[:3] = stripes * picture[3:]
    shown = rasterize(solidify(soft, picture, camera), camera, antialiased=True).rgb[0]
    inner = -F.max_pool2d(-picture[3:], 9, 1, 4)[0] > 0.5
    assert -10 * math.log10((shown - stripes)[:, inner].square().mean()) > 13  # 6 if the stripes were lost


def test_discs_are_never_more_than_asked_for():
    camera = Cameras.orbit([0.0], 10.0, 128)
    soft = haze()
    picture = picture_of(soft, camera)
    places = []
    for most in (500, 10_000):
        solid = solidify(soft, picture, camera, SolidOptions(most_visible=most))
        places.append(solid.means[solid.opacities > 0.975].unique(dim=0))
        assert len(solid.means) <= most + SolidOptions().most_hidden
    assert 400 < len(places[0]) <= 500
    assert len(places[1]) == int(picture[3].sum())


def test_a_ragged_outline_costs_resolution_not_discs():
    camera = Cameras.orbit([0.0], 10.0, 64)
    soft = haze()
    ragged = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(7))
    options = SolidOptions(most_hidden=3000)
    assert 1000 < int((solidify(soft, ragged, camera, options).opacities == options.opacity).sum()) <= 3000


def test_nothing_to_stand_on_leaves_the_splats():
    camera = Cameras.orbit([0.0], 10.0, 32)
    soft = haze(count=10)
    assert solidify(soft, torch.zeros(4, 32, 32), camera).means.equal(soft.means)


def test_the_hidden_side_has_the_pictures_detail_and_keeps_its_own_colour():
    camera = Cameras.orbit([0.0], 0.0, 128)
    rows = torch.arange(128) // 2 % 2 * 0.4 + 0.3  # stripes two pixels wide around .5, in all channels
    picture = torch.cat([rows[None, :, None].expand(3, 128, 128), torch.ones(1, 128, 128)])
    points = torch.tensor([[0.0, 0.0, -0.3]]).repeat(256, 1)
    points[:, 1] = torch.linspace(-0.3, 0.3, 256)
    own = torch.tensor([0.2, 0.5, 0.6])
    shown = detailed(lambda p, n: own.expand_as(p), picture, camera, 32)(points, -points)
    torch.testing.assert_close(shown.mean(0), own, atol=0.01, rtol=0)
    uv, _ = camera.project(points)
    row = ((uv[0, :, 1] + 1) * 64 - 0.5).round().long()
    twin = own + (rows[row] - 0.5)[:, None]
    inner = ((uv[0, :, 1] + 1) * 64 - 0.5 - row).abs() < 0.1  # next to a pixel's centre
    torch.testing.assert_close(shown[inner], twin[inner], atol=0.06, rtol=0)
    plain = torch.cat([picture[:3] * 0 + 0.7, picture[3:]])
    same = detailed(lambda p, n: own.expand_as(p), plain, camera, 32)(points, -points)
    torch.testing.assert_close(same, own.expand_as(same), atol=1e-5, rtol=0)
    faint = plain.clone()  # columns of the matte's edge, whose colours are anybody's guess
    faint[:3, :, 63:66] = torch.rand(3, 128, 3, generator=torch.Generator().manual_seed(4))
    faint[3, :, 63:] = 0.1
    same = detailed(lambda p, n: own.expand_as(p), faint, camera, 32)(points, -points)
    torch.testing.assert_close(same, own.expand_as(same), atol=0.2, rtol=0)


def test_discs_on_a_plane_that_faces_the_camera_have_a_pixels_size():
    camera = Cameras.orbit([0.0], 0.0, 32)
    picture = torch.cat(
        [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(5)), torch.ones(1, 32, 32)]
    )
    discs = visible_side(picture, camera, torch.full((32, 32), 1.5), ONCE, SolidOptions())
    pixel = 1.5 / float(camera.Ks[0, 0, 0])
    torch.testing.assert_close(discs.scales[:, :2], torch.full((1024, 2), 0.46 * pixel), rtol=0.2, atol=0)
    torch.testing.assert_close(discs.means[:, 2], torch.full((1024,), -0.012), atol=1e-5, rtol=0)


def test_discs_of_the_outline_are_drawn_in():
    camera = Cameras.orbit([0.0], 0.0, 32)
    picture = torch.ones(4, 32, 32)
    picture[3, :, 20:] = 0.0
    picture[3, :, 19] = 0.5
    twice = torch.zeros(32, 32, dtype=torch.bool)
    twice[:, 19] = twice[:, 25] = True
    discs = visible_side(picture, camera, torch.full((32, 32), 1.5), twice, SolidOptions())
    assert len(discs.means) == 32 * 21  # those of a column twice; none where the picture shows nothing
    columns = (camera.project(discs.means)[0][0, :, 0] + 1) * 16 - 0.5
    moved = columns[: 32 * 20].view(32, 20) - torch.arange(20)
    expected = torch.where(torch.arange(20) > 17, -0.5, 0.0).expand(32, 20)  # the last two are the outline
    torch.testing.assert_close(moved, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(columns[32 * 20 :], columns[: 32 * 20].view(32, 20)[:, 19])


def test_the_midst_of_glass_is_no_outline():
    glass = torch.zeros(32, 32)
    glass[6:26, 6:26] = 0.5
    found = outline(glass)
    assert found[6:8, 6:26].all() and found[6:26, 24:26].all()
    assert not found[8:24, 8:24].any()


def test_the_outline_is_sharp():
    """A square as the picture has it, within a pixel of its edge; half of it was missing once."""
    camera = Cameras.orbit([0.0], 0.0, 128)
    picture = torch.zeros(4, 128, 128)
    picture[:, 40:88, 40:88] = 1.0
    shown = rasterize(solidify(haze(), picture, camera), camera, background=0.0, antialiased=True).alpha[0, 0]
    assert shown[44:84, 40].min() > 0.85 and shown[44:84, 87].min() > 0.85
    assert shown[44:84, 37].max() < 0.1 and shown[44:84, 90].max() < 0.1


def test_an_outline_without_end_is_not_drawn_twice():
    camera = Cameras.orbit([0.0], 10.0, 64)
    picture = picture_of(haze(), camera)
    wires = picture * (torch.arange(64) % 2)
    for shown, room, most in ((picture, 20_000, 2), (wires, 1000, 1)):
        options = SolidOptions(most_visible=room // 2, most_hidden=room // 2)
        solid = solidify(haze(), shown, camera, options)
        _, counts = solid.means[solid.opacities > 0.975].unique(dim=0, return_counts=True)
        assert counts.max() == most and len(solid.means) <= room


def test_no_disc_hangs_between_a_near_and_a_far_surface():
    camera = Cameras.orbit([0.0], 0.0, 32)
    depth = torch.full((32, 32), 1.2)
    depth[:, 16:] = 1.8
    discs = visible_side(torch.ones(4, 32, 32), camera, depth, ONCE, SolidOptions())
    z = 1.5 - discs.means[:, 2]  # from the camera
    assert ((z > 1.25) & (z < 1.75)).sum() == 0 and (z > 1.75).any() and (z < 1.25).any()


def test_what_has_no_body_hangs_on_a_neighbour_and_not_between():
    """A rail that the body lacks, between a near post on the left and a far one on the right."""
    camera = Cameras.orbit([0.0], 0.0, 64)
    picture = torch.zeros(4, 64, 64)
    picture[3, 30:34, 12:52] = 1
    picture[3, 10:54, 12:20] = picture[3, 10:54, 44:52] = 1

    def posts(n):
        x, y, z = voxel_centres(n).unbind(-1)
        upright = (x.abs() > 0.2) & (x.abs() < 0.4) & (y.abs() < 0.4)
        return (upright & ((z - 0.3 * -x.sign()).abs() < 0.08)).float().view(n, n, n)

    solid = discs_on(posts, picture, camera, lambda points, normals: 0 * points, SolidOptions())
    rail = solid.means[(solid.means[:, 0].abs() < 0.15) & (solid.means[:, 1].abs() < 0.1)]
    near, far = rail[:, 2] > 0.2, rail[:, 2] < -0.2  # the posts stand at .3 and -.3
    assert (near | far).all() and near.sum() > 30 and far.sum() > 30
    assert rail[near, 0].max() < rail[far, 0].min()


def test_rays_that_just_miss_the_body_end_where_they_come_near_it():
    camera = Cameras.orbit([0.0], 0.0, 64)
    picture = torch.ones(4, 64, 64)

    def walls(n):
        """One in front on the left, on the right a fainter one far behind."""
        x, _, z = voxel_centres(n).unbind(-1)
        return torch.where(x < 0, (z - 0.2).abs() < 0.08, 0.36 * ((z + 0.2).abs() < 0.08)).view(n, n, n)

    solid = discs_on(walls, picture, camera, lambda points, normals: 0 * points, SolidOptions())
    right = solid.means[solid.means[:, 0] > 0.1]
    assert len(right) > 1000 and (right[:, 2] < -0.1).all()  # else they hang beside the wall on the left


def test_sharpening_undoes_a_blur_inside_and_ignores_what_is_beyond_the_outline():
    x = torch.linspace(0, 2 * math.pi, 65)[:-1]
    wave = 0.5 + 0.2 * torch.sin(4 * x)  # 16 pixels long
    picture = torch.cat([wave.expand(3, 64, 64), torch.ones(1, 64, 64)])
    swing = math.exp(-0.5 * (2 * math.pi / 16 * 0.75) ** 2)  # what a blur leaves of it
    sharp = sharpened(picture, 0.75)
    inner = slice(8, 56)
    expected = 0.5 + (2 - swing) * (wave - 0.5)
    torch.testing.assert_close(sharp[:, :, inner], expected.expand(3, 64, 64)[:, :, inner], atol=2e-3, rtol=0)
    picture[3, :, 32:] = 0
    other = picture.clone()
    other[:3, :, 32:] = 1.0  # unseen
    torch.testing.assert_close(sharpened(other, 0.75)[:, :, :30], sharpened(picture, 0.75)[:, :, :30])


def test_refining_fits_the_input_view_and_leaves_the_back(monkeypatch):
    camera = Cameras.orbit([0.0], 10.0, 32)
    soft = haze()
    picture = picture_of(soft, camera)
    picture[:3] *= torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(6))
    solid = solidify(soft, picture, camera)

    def error(gaussians):
        target = picture[:3] * picture[3:] + 1 - picture[3:]
        return (rasterize(gaussians, camera, antialiased=True).rgb[0] - target).square().mean()

    back = rasterize(solid, camera.turned(math.pi), antialiased=True)
    inside = ~any_around(back.alpha[0, 0] < 0.98)  # what is at the outline is seen from both sides

    def change(fitted):
        view = rasterize(fitted, camera.turned(math.pi), antialiased=True)
        return float((view.rgb - back.rgb).abs()[0][:, inside].mean())

    fitted = refined(solid, picture, camera, 60.0, steps=40)
    monkeypatch.setattr(refinement, "HELD", (0.0, 0.0))
    free = refined(solid, picture, camera, 60.0, steps=40)
    assert error(free) < 0.5 * error(solid) and error(fitted) < 0.7 * error(solid)  # of noise
    assert inside.sum() > 100 and change(fitted) < 0.0015 and change(free) > 0.02  # 0.4 of 255, and 5


class Known:
    """Stands for a shape that a network has found: a ball, green on all sides."""

    def __init__(self, radius):
        self.radius = radius

    def shown(self, certainty):
        return self

    def occupancy(self, points):
        return 40 * (self.radius - points.norm(dim=-1))

    def colors(self, points):
        return torch.tensor([0.1, 0.8, 0.3]).expand_as(points)


def test_a_network_has_the_say_where_matter_is():
    camera = Cameras.orbit([0.0], 10.0, 64)
    soft, known = haze(), Known(0.2)
    picture, alone = picture_of(soft, camera), SolidOptions(imagined=0.0, hull=0.0)
    solid = solidify(soft, picture, camera, alone, known)
    body = solid.select(solid.opacities == 0.97)
    inside = 0.2 - alone.matter / 40 - body.means.norm(dim=-1)
    towards = body.means @ F.normalize(camera.positions[0], dim=0)
    inset, covered = alone.inset * 1.2 / 72, alone.covered * 1.2 / 72
    assert (inside[towards < -0.05] - inset).abs().max() < 0.003
    assert (inside[towards > 0.18] - inset - covered).abs().max() < 0.003
    back = rasterize(solid, Cameras.orbit([180.0], -10.0, 64)).rgb[0, :, 32, 32]
    torch.testing.assert_close(back, torch.tensor([0.1, 0.8, 0.3]), atol=0.05, rtol=0)
    outlines = solidify(soft, picture, camera, replace(alone, imagined=1.0, hull=1.0), known)
    hull = solidify(soft, picture, camera, SolidOptions(swelling=0.0))
    torch.testing.assert_close(outlines.means, hull.means)
    torch.testing.assert_close(outlines.colors, hull.colors)


def test_masks_are_taken_from_around_above_and_below():
    cameras = mask_cameras(8)
    assert len(cameras) == 22
    assert cameras.positions[:, 1].min() < -0.2
    assert cameras.positions[:, 1].max() > 0.9
