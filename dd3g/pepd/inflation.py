"""A body without any network: the silhouette inflated, the picture in front and mirrored behind.

What a generator must beat, and where one that predicts shape may start. `discs_on` makes the same discs of it
as of a generator's hull.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.pepd.frustum import inflate
from dd3g.pepd.solid import LEVEL, Colors, SolidOptions, discs_on, resize, sampled, spread, within
from dd3g.pepd.surface import HALF, smoothed, visual_hull

SOFTNESS = 0.05  # world units in depth over which the field falls from `LEVEL` to nothing


def inflated_silhouette(picture: Tensor, camera: Cameras, options: SolidOptions | None = None) -> Gaussians:
    """Discs on the inflated silhouette of a picture.

    Args:
        picture: (4, S, S) straight RGBA.
        camera: (1,) that took it.
        options: of the discs.

    Returns:
        (M,) Gaussians on the CPU; none where the picture is empty.
    """
    o = options or SolidOptions()
    picture, camera = within(picture, camera, o)
    half = inflate(resize(picture[None], o.mask_size)[:, 3:])[0, 0]

    def field(resolution: int) -> Tensor:
        front = visual_hull(picture[3:], camera, resolution)
        return smoothed(torch.minimum(front, inflated_field(half, camera, resolution)), o.blur)

    return discs_on(field, LEVEL, picture, camera, mirrored(picture, camera), o)


def inflated_field(half: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """Field (n, n, n), `LEVEL` on the inflated silhouette, around the upright plane that faces the camera.

    Args:
        half: (S, S) half thickness along the camera's rays, world units.
        camera: (1,).
        resolution: voxels a side, n.
    """
    points = voxel_centres(resolution)
    uv, z = camera.project(points)  # (1, P, 2), (1, P)
    thickness = sampled(half[None, None], uv)[0, 0]
    eye = camera.positions[0]
    towards = F.normalize(eye * torch.tensor([1.0, 0.0, 1.0]), dim=0)
    # Along its ray, of camera depth z, a point p lies z (p . n) / ((p - eye) . n) from the plane p . n = 0.
    offset = z[0] * (points @ towards) / ((points - eye) @ towards)
    return (LEVEL + (thickness - offset.abs()) / (2 * SOFTNESS)).clamp(0, 1).view((resolution,) * 3)


def mirrored(picture: Tensor, camera: Cameras) -> Colors:
    """Colours without a network: the picture (4, S, S) where the points appear in its camera (1,)."""
    filled = spread(picture[None, :3], picture[None, 3:])

    def colors(points: Tensor, normals: Tensor) -> Tensor:
        return sampled(filled, camera.project(points)[0])[0].T

    return colors


def voxel_centres(resolution: int) -> Tensor:
    """(n^3, 3) world places of the voxels of [-HALF, HALF]^3, the last axis fastest."""
    a = (torch.arange(resolution) + 0.5) / resolution * 2 * HALF - HALF
    return torch.stack(torch.meshgrid(a, a, a, indexing="ij"), -1).view(-1, 3)
