"""Projection of 3D Gaussians to the image in plain torch: the readable twin of the fused CPU kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians, quaternion_to_matrix

EPS2D = 0.3  # px^2 added to the diagonal, so that no splat falls between the pixel centres
MAX_EXTENT = 3.33  # standard deviations at which exp(-x^2 / 2) is just under 1/255
MIN_ALPHA = 1 / 255
COMPENSATION_EPS = 1e-12  # keeps the slope of the compensation finite for a splat seen edge-on
J_MARGIN = 0.3  # the Jacobian is evaluated at most this many half-images outside the frame


class Projection(NamedTuple):
    """Gaussians on the image planes of V cameras."""

    means2d: Tensor  # (B, V, N, 2) centres in pixels
    conics: Tensor  # (B, V, N, 3) inverse covariance, its xx, xy and yy entries in 1/px^2
    depths: Tensor  # (B, V, N) camera z
    opacities: Tensor  # (B, V, N) after the antialiasing compensation
    # (B, V, N, 2) half width and height in pixels of the box outside which alpha < 1/255; both are 0 where
    # the Gaussian is not drawn. gsplat's `radii` are these rounded up. Carries no gradient
    extents: Tensor


def project(gaussians: Gaussians, cameras: Cameras, antialiased: bool = False) -> Projection:
    """EWA projection (Zwicker et al. 2001, eq. 31) with gsplat's dilation, clamps and culling.

    Args:
        gaussians: batch (B,), N each.
        cameras: batch (B, V).
        antialiased: scale opacity by sqrt(det / det_dilated).

    Returns:
        Projection, differentiable in Gaussians and cameras. Culled entries mean nothing.
    """
    viewmats, Ks = cameras.viewmats, cameras.Ks
    W, t = viewmats[..., None, :3, :3], viewmats[..., None, :3, 3]  # (B, V, 1, 3, 3), (B, V, 1, 3)
    camera = (W @ gaussians.means[:, None, :, :, None])[..., 0] + t  # (B, V, N, 3)
    depths = camera[..., 2]
    visible = (depths >= cameras.near) & (depths <= cameras.far)
    # A where() after the division would still send NaN back through the branch not taken.
    x, y, z = torch.where(visible[..., None], camera, 1.0).unbind(-1)

    fx, fy = Ks[..., 0, 0, None], Ks[..., 1, 1, None]  # (B, V, 1)
    cx, cy = Ks[..., 0, 2, None], Ks[..., 1, 2, None]
    margin_x = J_MARGIN * 0.5 * cameras.width / fx
    margin_y = J_MARGIN * 0.5 * cameras.height / fy
    ux = torch.clamp(x / z, -cx / fx - margin_x, (cameras.width - cx) / fx + margin_x)
    uy = torch.clamp(y / z, -cy / fy - margin_y, (cameras.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * ux / z, zero, fy / z, -fy * uy / z], -1).unflatten(-1, (2, 3))
    S = quaternion_to_matrix(gaussians.quats) * gaussians.scales[..., None, :]  # (B, N, 3, 3)
    P = J @ W @ S[:, None]  # (B, V, N, 2, 3)
    cov = P @ P.transpose(-1, -2)  # (B, V, N, 2, 2) px^2

    xx, xy, yy = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    # As a cross product: xx * yy - xy * xy would cancel for a splat seen edge-on.
    sharp = torch.linalg.cross(P[..., 0, :], P[..., 1, :]).square().sum(-1)  # det of cov
    det = sharp + EPS2D * (xx + yy) + EPS2D**2  # after the dilation
    xx, yy = xx + EPS2D, yy + EPS2D
    visible = visible & det.isfinite()
    opacities = gaussians.opacities[:, None].expand_as(depths)
    if antialiased:
        opacities = opacities * torch.sqrt(sharp / det + COMPENSATION_EPS)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    conics = torch.stack([yy, -xy, xx], -1) / det[..., None]

    with torch.no_grad():
        visible = visible & (opacities >= MIN_ALPHA)
        reach = torch.sqrt(2 * torch.log(opacities.clamp(min=MIN_ALPHA) / MIN_ALPHA)).clamp(max=MAX_EXTENT)
        extents = reach[..., None] * torch.sqrt(torch.stack([xx, yy], -1))
        size = torch.tensor([cameras.width, cameras.height], dtype=extents.dtype, device=extents.device)
        low, high = means2d - extents.ceil(), means2d + extents.ceil()
        visible = visible & ((high > 0) & (low < size)).all(-1)
        extents = torch.where(visible[..., None], extents, 0.0)
    return Projection(means2d, conics, depths, opacities, extents)
