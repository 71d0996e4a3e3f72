"""The CPU engine: project, bin and blend in numba behind torch's autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer.cpu_binning import bin_splats, sum_gradients
from dd3g.rasterizer.cpu_blending import blend, blend_backward
from dd3g.rasterizer.cpu_projection import project_fused
from dd3g.rasterizer.projection import project


def rasterize_batch(gaussians: Gaussians, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor]:
    """Blend on the CPU.

    Args:
        gaussians: batch (B,), N each, float32 or float64.
        cameras: batch (B, V), same type.
        antialiased: compensate the dilation.

    Returns:
        (B, V, C + 1, H, W) colours and depth over black, and (B, V, 1, H, W) alpha.
    """
    if torch.is_grad_enabled() and (cameras.viewmats.requires_grad or cameras.Ks.requires_grad):
        with torch.autocast("cpu", enabled=False):
            projected = project(gaussians, cameras, antialiased)
    else:
        projected = project_fused(gaussians, cameras, antialiased)
    return Blend.apply(*projected, gaussians.colors, cameras.width, cameras.height)


class Blend(torch.autograd.Function):
    """Front-to-back blending of projected Gaussians (Kerbl et al. 2023, eq. 3)."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        depths: Tensor,
        opacities: Tensor,
        extents: Tensor,
        colors: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        """Sort, bin and draw.

        Args:
            ctx: autograd's context.
            means2d: (B, V, N, 2); this and the next four are the fields of `projection.Projection`.
            conics: (B, V, N, 3).
            depths: (B, V, N).
            opacities: (B, V, N).
            extents: (B, V, N, 2).
            colors: (B, N, C).
            width: pixels.
            height: pixels.

        Returns:
            (B, V, C + 1, H, W) colours and depth over black, and (B, V, 1, H, W) alpha.
        """
        B, V, N = depths.shape
        C = colors.shape[-1]
        projected = [
            t.detach().contiguous().numpy().reshape(B * V, N, *t.shape[3:])
            for t in (means2d, conics, depths, opacities, extents)
        ]
        bins = bin_splats(projected, colors.detach().contiguous().numpy(), width, height)
        image, left = blend(bins, C + 1, width, height)
        shown = torch.from_numpy(image.reshape(B, V, C + 1, height, width))
        ctx.save_for_backward(shown)
        ctx.bins, ctx.left = bins, left
        return shown, torch.from_numpy(1 - left.reshape(B, V, 1, height, width))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means2d, conics, depths, opacities and colors."""
        B, V = v_image.shape[:2]
        image = ctx.saved_tensors[0].numpy().reshape(B * V, *v_image.shape[2:])
        v_isects = blend_backward(
            ctx.bins,
            image,
            ctx.left,
            v_image.contiguous().numpy().reshape(image.shape),
            v_alpha.contiguous().numpy().reshape(ctx.left.shape),
        )
        grads = sum_gradients(ctx.bins, v_isects, B, image.shape[1] - 1)
        means2d, conics, depths, opacities = (
            torch.from_numpy(v.reshape(B, V, *v.shape[1:])) for v in grads[:4]
        )
        return means2d, conics, depths, opacities, None, torch.from_numpy(grads[4]), None, None
