from __future__ import annotations

import math

import pytest
import torch

from dd3g.cameras import ELEVATION, FOVY, RADIUS, Cameras
from dd3g.errors import UserError


def test_orbit_by_hand():
    cameras = Cameras.orbit([0, 90, 180, 270], [0, 0, 30, 0], size=100)
    c, s = RADIUS * math.cos(math.pi / 6), RADIUS * 0.5
    wanted = torch.tensor([[0, 0, RADIUS], [RADIUS, 0, 0], [0, s, -c], [-RADIUS, 0, 0]])
    assert torch.allclose(cameras.positions, wanted, atol=1e-6)
    # The front camera: x stays right, y up becomes -down, +z comes towards it.
    point = torch.tensor([0.1, 0.2, 0.3, 1.0])
    assert torch.allclose(cameras.viewmats[0] @ point, torch.tensor([0.1, -0.2, RADIUS - 0.3, 1]), atol=1e-6)
    # From +x, the world's +z points to the left.
    assert torch.allclose(cameras.viewmats[1] @ point, torch.tensor([-0.3, -0.2, RADIUS - 0.1, 1]), atol=1e-6)
    assert torch.allclose(cameras.azimuths.rad2deg(), torch.tensor([0.0, 90, 180, -90]), atol=1e-4)
    focal = 50 / math.tan(math.radians(FOVY / 2))
    assert torch.allclose(cameras.Ks[2], torch.tensor([[focal, 0, 50], [0, focal, 50], [0, 0, 1]]))
    assert (cameras.near, cameras.far) == (0.5, 2.5)


def test_orbit_is_rigid_and_looks_at_the_origin():
    cameras = Cameras.orbit(torch.arange(0, 360, 17.0), torch.linspace(-89, 89, 22), radius=2.0)
    R = cameras.viewmats[:, :3, :3]
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3).expand(22, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(R), torch.ones(22), atol=1e-6)
    origin = cameras.viewmats @ torch.tensor([0.0, 0, 0, 1])
    assert torch.allclose(origin, torch.tensor([0.0, 0, 2, 1]).expand(22, 4), atol=1e-6)
    assert (R[:, 1, 1] < 0).all()  # the world's up is the picture's up
    back = cameras.camera_to_world @ cameras.viewmats
    assert torch.allclose(back, torch.eye(4).expand(22, 4, 4), atol=1e-5)


@pytest.mark.parametrize("elevation", [90, -90, 135, float("nan")])
def test_orbit_refuses_the_poles(elevation):
    with pytest.raises(UserError, match=f"elevation {elevation} is out of range"):
        Cameras.orbit([0], elevation)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(\.\.\., 4, 4\)"):
        Cameras(torch.eye(3), torch.eye(3), 8, 8)
    with pytest.raises(ValueError, match="batch shape"):
        Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3), 8, 8)


def test_default_rig():
    rig = Cameras.default_rig(32)
    same = Cameras.orbit([0, 90, 180, 270], ELEVATION, 32)
    assert len(rig) == 4 and torch.equal(rig.viewmats, same.viewmats) and rig.width == rig.height == 32


def test_rays_reproject_to_the_pixel_centres():
    cameras = Cameras.orbit([12, 200, 301], [5, -40, 60], size=6)
    cameras = Cameras(cameras.viewmats[None].expand(2, 3, 4, 4), cameras.Ks[None].expand(2, 3, 3, 3), 6, 4)
    origins, directions = cameras.rays()
    assert origins.shape == (2, 3, 1, 1, 3) and directions.shape == (2, 3, 4, 6, 3)
    for v in range(3):
        for y in range(4):
            for x in range(6):
                world = origins[1, v, 0, 0] + 1.7 * directions[1, v, y, x]
                camera = cameras.viewmats[1, v, :3, :3] @ world + cameras.viewmats[1, v, :3, 3]
                pixel = cameras.Ks[1, v] @ camera
                assert camera[2].item() == pytest.approx(1.7, abs=1e-5)
                assert torch.allclose(pixel[:2] / pixel[2], torch.tensor([x + 0.5, y + 0.5]), atol=1e-4)


def test_geometry_is_exact_under_autocast():
    cameras = Cameras.orbit([12, 200], [5, -40], size=8)
    with torch.autocast("cpu", torch.bfloat16):
        low = (cameras.positions, *cameras.rays(), cameras.plucker())
    for a, b in zip(low, (cameras.positions, *cameras.rays(), cameras.plucker()), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_plucker_by_hand():
    cameras = Cameras.orbit([40, 250], [10, 20], size=4)
    maps = cameras.plucker()
    assert maps.shape == (2, 6, 4, 4)
    origins, directions = cameras.rays()
    for v in range(2):
        d = directions[v, 1, 2] / directions[v, 1, 2].norm()
        moment = torch.linalg.cross(origins[v, 0, 0], d)
        assert torch.allclose(maps[v, :, 1, 2], torch.cat([moment, d]), atol=1e-6)
        # The moment is that of any point of the ray.
        assert torch.allclose(torch.linalg.cross(origins[v, 0, 0] + 0.9 * d, d), moment, atol=1e-6)


def test_turned_is_the_orbit_at_shifted_azimuths():
    cameras = Cameras.orbit([10, 130, 300], [0, 20, -30], size=8)
    shifted = Cameras.orbit([35, 155, 325], [0, 20, -30], size=8)
    turned = cameras.turned(math.radians(25))
    assert torch.allclose(turned.viewmats, shifted.viewmats, atol=1e-6)
    each = cameras.turned(torch.deg2rad(torch.tensor([25.0, 0.0, -60.0])))
    wanted = Cameras.orbit([35, 130, 240], [0, 20, -30], size=8)
    assert torch.allclose(each.viewmats, wanted.viewmats, atol=1e-6)
    assert torch.allclose(cameras.turned(-cameras.azimuths[1]).azimuths[1], torch.zeros(()), atol=1e-6)


def test_resized_sees_the_same_rays():
    cameras = Cameras.orbit([40], 10, size=8)
    large = cameras.resized(24)
    assert (large.width, large.height) == (24, 24)
    assert torch.allclose(large.rays()[1][0, 1::3, 1::3], cameras.rays()[1][0], atol=1e-6)


def test_indexing_and_to():
    cameras = Cameras.default_rig(16)
    assert torch.equal(cameras[1:3].viewmats, cameras.viewmats[1:3]) and cameras[0].batch_shape == ()
    double = cameras.to(torch.float64)
    assert double.viewmats.dtype == double.Ks.dtype == torch.float64 and double.width == 16


@pytest.mark.parametrize(("low", "high"), [(-88.0, 88.0), (-15.0, 50.0)])
def test_cameras_all_around_are_spread_evenly(low, high):
    """Each ring of equal height, hence of equal area, holds as many, and so does each quarter of azimuths."""
    positions = Cameras.all_around(400, 8, 2.0, 40.0, low, high).positions
    assert torch.allclose(positions.norm(dim=-1), torch.full((400,), 2.0), atol=1e-5)
    bottom, top = (2 * math.sin(math.radians(e)) for e in (low, high))
    assert positions[:, 1].min() > bottom and positions[:, 1].max() < top
    counts = torch.histc(positions[:, 1], 8, bottom, top)
    assert counts.min() >= 49 and counts.max() <= 51
    quarter = (positions[:, 0] > 0).int() * 2 + (positions[:, 2] > 0).int()
    assert torch.bincount(quarter).float().sub(100).abs().max() <= 3
