"""The CUDA engine: gsplat's kernels."""

from __future__ import annotations

from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians


def rasterize_batch(gaussians: Gaussians, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor]:
    """Blend on a CUDA device.

    Args:
        gaussians: batch (B,), float32 on CUDA.
        cameras: batch (B, V).
        antialiased: compensate the dilation.

    Returns:
        (B, V, C + 1, H, W) colours and depth over black, and (B, V, 1, H, W) alpha.

    Raises:
        RuntimeError: gsplat has no compiled kernels and no compiler to make them.
    """
    from gsplat import rasterization

    B, V = cameras.batch_shape
    if 0 in (B, V, len(gaussians)):  # gsplat cannot launch over nothing
        nothing = gaussians.means.sum() * 0
        frame = (cameras.height, cameras.width)
        channels = gaussians.colors.shape[-1] + 1
        return nothing.expand(B, V, channels, *frame), nothing.expand(B, V, 1, *frame)
    try:
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
    except AttributeError as error:  # of None, which gsplat holds in place of kernels that it could not build
        raise RuntimeError(
            "gsplat found no CUDA toolkit (nvcc) to build its kernels with: install one, or draw on the CPU "
            "after moving Gaussians and cameras with .to('cpu')"
        ) from error
    return image.movedim(-1, -3), alpha.movedim(-1, -3)
