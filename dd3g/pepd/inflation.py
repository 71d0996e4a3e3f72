"""A body without any network: the silhouette inflated, the picture in front and mirrored behind.

What a generator must beat, and where one that predicts shape may start. `discs_on` makes the same discs of it
as of a generator's hull.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.pepd.frustum import inflate, resize, sampled, spread
from dd3g.pepd.solid import Colors, SolidOptions, discs_on, within
from dd3g.pepd.surface import LEVEL, inflated_field, smoothed, visual_hull


def inflated_silhouette(picture: Tensor, camera: Cameras, options: SolidOptions | None = None) -> Gaussians:
    """Discs (M,) on the inflated silhouette of a picture (4, S, S), straight RGBA, on the CPU.

    The camera (1,) took it; there are none where the picture is empty.
    """
    o = options or SolidOptions()
    picture, camera = within(picture, camera, o)
    half = inflate(resize(picture[None], o.mask_size)[:, 3:])[0, 0]

    def field(resolution: int) -> Tensor:
        front = visual_hull(picture[3:], camera, resolution)
        return smoothed(torch.minimum(front, inflated_field(half, camera, resolution)), o.blur)

    return discs_on(field, LEVEL, picture, camera, mirrored(picture, camera), o)


def mirrored(picture: Tensor, camera: Cameras) -> Colors:
    """Colours without a network: the picture (4, S, S) where the points appear in its camera (1,)."""
    filled = spread(picture[None, :3], picture[None, 3:])

    def colors(points: Tensor, normals: Tensor) -> Tensor:
        return sampled(filled, camera.project(points)[0])[0].T

    return colors
