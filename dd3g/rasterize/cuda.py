"""The CUDA engine: gsplat's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians


def draw(gaussians: Gaussians, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor]:
    """Blend on a CUDA device.

    Args:
        gaussians: batch (B,), float32 on CUDA.
        cameras: batch (B, V).
        antialiased: compensate the dilation.

    Returns:
        (B, V, C + 1, H, W) colours and depth over black, and (B, V, 1, H, W) alpha.
    """
    from gsplat import rasterization

    B, V = cameras.batch_shape
    if 0 in (B, V, len(gaussians)):
        channels = gaussians.colors.shape[-1] + 1
        empty = sum(t.sum() for t in (gaussians.means, gaussians.colors, gaussians.opacities))
        shape = (B, V, channels, cameras.height, cameras.width)
        return torch.zeros(shape, device=gaussians.means.device) + empty, empty + torch.zeros(
            (B, V, 1, cameras.height, cameras.width), device=gaussians.means.device
        )
    image, alpha, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors,
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        near_plane=cameras.near,
        far_plane=cameras.far,
        packed=False,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic",
    )  # (B, V, H, W, C + 1), (B, V, H, W, 1)
    return image.movedim(-1, -3), alpha.movedim(-1, -3)
