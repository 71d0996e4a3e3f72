"""Fields of view other than the one that training saw."""

import math

import pytest
import torch

from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.gaussians import Gaussians, quaternion_to_matrix
from dd3g.pepd.perspective import seen_under


def some(n=200):
    draw = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=draw), dim=-1)
    return Gaussians(
        torch.rand(n, 3, generator=draw) - 0.5,
        quats,
        0.01 + 0.02 * torch.rand(n, 3, generator=draw),
        torch.rand(n, generator=draw),
        torch.rand(n, 3, generator=draw),
    )


def projected(points, camera):
    x = points @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
    pixel = x @ camera.Ks[0].T
    return pixel[:, :2] / pixel[:, 2:], x[:, 2]


def covariances(gaussians):
    axes = quaternion_to_matrix(gaussians.quats) * gaussians.scales[:, None]
    return axes @ axes.mT


@pytest.mark.parametrize("fovy", [10.0, 30.0, 70.0])
@pytest.mark.parametrize("elevation", [0.0, 35.0])
def test_the_other_camera_sees_the_same_pixels(fovy, elevation):
    gaussians, camera = some(), Cameras.orbit([0.0], elevation, 256)
    distance = RADIUS * math.tan(math.radians(FOVY / 2)) / math.tan(math.radians(fovy / 2))
    other = Cameras.orbit([0.0], elevation, 256, radius=distance, fovy=fovy)
    moved = seen_under(gaussians, camera, fovy)
    (before, depth), (after, depth_after) = projected(gaussians.means, camera), projected(moved.means, other)
    assert torch.allclose(before, after, atol=1e-2)
    assert torch.allclose(depth - RADIUS, depth_after - distance, atol=1e-4)


def test_shapes_follow_the_move_of_their_neighbourhood():
    """Against finite differences of the move of centres."""
    gaussians, camera = some(20), Cameras.orbit([0.0], 20.0, 256)
    moved = seen_under(gaussians, camera, 25.0)
    step = 1e-3
    columns = []
    for axis in torch.eye(3):
        ends = [
            seen_under(
                Gaussians(**(vars(gaussians) | {"means": gaussians.means + sign * step * axis})), camera, 25.0
            )
            for sign in (1, -1)
        ]
        columns.append((ends[0].means - ends[1].means) / (2 * step))
    jacobian = torch.stack(columns, -1)  # (N, 3, 3)
    wanted = jacobian @ covariances(gaussians) @ jacobian.mT
    assert torch.allclose(covariances(moved), wanted, rtol=5e-3, atol=2e-6)


def test_the_usual_field_of_view_changes_nothing():
    gaussians = some()
    same = seen_under(gaussians, Cameras.orbit([0.0], 10.0, 64), FOVY)
    assert torch.allclose(same.means, gaussians.means, atol=1e-5)
    assert torch.allclose(covariances(same), covariances(gaussians), atol=1e-7)
    assert torch.equal(same.colors, gaussians.colors)
