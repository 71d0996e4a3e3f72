"""An object that was made for one field of view, as a camera with another one would have seen it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians, matrix_to_quaternion, quaternion_to_matrix


def seen_under(gaussians: Gaussians, camera: Cameras, fovy: float) -> Gaussians:
    """Move an object so that a camera with field of view `fovy` sees at each pixel what `camera` does.

    The other camera looks along the same axis, from where the world's origin keeps its size: depth from the
    origin stays, and what is across is multiplied by the ratio of the two cameras' pixels at that depth. So a
    photo from far away gives parallel sides where it shows them; `camera` takes them for ones that widen.

    Args:
        gaussians: (N,) in the world of `camera`.
        camera: (1,), looking at the origin.
        fovy: degrees.

    Returns:
        (N,) Gaussians, each turned and scaled by the derivative of the move at its centre.
    """
    view = camera.viewmats[0].to(gaussians.means).double()  # (4, 4)
    rotation, radius = view[:3, :3], view[2, 3]
    tangent = 0.5 * camera.height / camera.Ks[0, 1, 1].double().to(view.device)
    narrow = math.tan(math.radians(fovy) / 2)
    distance = radius * tangent / narrow  # of the other camera
    x = gaussians.means.double() @ rotation.T + view[:3, 3]  # (N, 3), camera coordinates
    depth = x[:, 2:].clamp(min=1e-3)
    ratio = (depth - radius + distance) * narrow / (depth * tangent)  # (N, 1)
    moved = torch.cat([x[:, :2] * ratio, x[:, 2:] - radius], 1)  # about the origin
    slope = x[:, :2] * (radius - distance) * narrow / (tangent * depth**2)  # of what is across, along depth
    jacobian = torch.diag_embed(torch.cat([ratio, ratio, torch.ones_like(ratio)], 1))  # (N, 3, 3)
    jacobian[:, :2, 2] = slope
    own = quaternion_to_matrix(gaussians.quats.double())
    axes = jacobian @ rotation @ own * gaussians.scales.double()[:, None]
    turned, scales, _ = torch.linalg.svd(rotation.T @ axes)
    turned = turned * torch.linalg.det(turned).sign()[:, None, None]  # a rotation, not a mirror
    dtype = gaussians.means.dtype
    return replace(
        gaussians,
        means=(moved @ rotation).to(dtype),
        quats=matrix_to_quaternion(turned).to(dtype),
        scales=scales.clamp(min=1e-9).to(dtype),
    )
