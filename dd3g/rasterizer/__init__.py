"""Differentiable Gaussian splatting behind one function: numba kernels on the CPU, gsplat on CUDA.

`rasterize` takes Gaussians and cameras and gives colour, alpha and depth. Read `projection.py` first, then
`cpu.py`; `cuda.py` hands over to gsplat.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError, first_line
from dd3g.gaussians import Gaussians

Backend = Literal["auto", "cpu", "cuda"]


class Render(NamedTuple):
    """What the cameras see."""

    rgb: Tensor  # (..., V, C, H, W) colours over the background
    alpha: Tensor  # (..., V, 1, H, W) coverage in 0..1
    depth: Tensor  # (..., V, 1, H, W) camera z summed with the blending weights; over alpha a mean


def get_ready(device: torch.device) -> None:
    """Draw one Gaussian on a device: on CUDA its kernels are built by that, once a machine, in a few minutes.

    Raises:
        UserError: when they cannot be built, or do not run.
    """
    cameras = Cameras.default_rig(16, 1).to(device)
    one = (torch.full((1, *last), 0.5, device=device) for last in ((3,), (4,), (3,), (), (3,)))
    try:
        rasterize(Gaussians(*one), cameras)
    except UserError:
        raise
    except Exception as error:  # of drivers, which fail in every way
        raise UserError(
            f"the rasteriser does not work on {device} ({first_line(error)}): where its kernels were built "
            "for another GPU, set TORCH_EXTENSIONS_DIR to this one's own folder; or train with --device cpu"
        ) from error


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    background: float | Tensor = 1.0,
    backend: Backend = "auto",
    antialiased: bool = False,
) -> Render:
    """Draw Gaussians by EWA splatting and front-to-back blending (Kerbl et al. 2023, eq. 2-5).

    Gradients reach every field of the Gaussians, the background, and the cameras where they ask for one. Both
    engines follow gsplat 1.5: alpha is at most 0.999, less than 1/255 is skipped, and a pixel is finished
    before its transmittance would fall to 1e-4.

    Args:
        gaussians: batch (...,), N each, opacities in 0..1; `colors` may have any number of channels C.
            float64 stays float64 on the CPU, all else is drawn in float32.
        cameras: batch (V,), shared by all objects, or (..., V).
        background: one value, (C,), or anything that broadcasts to (..., V, C, H, W).
        backend: "cpu", "cuda", or "auto" for the device that the Gaussians are on.
        antialiased: lower each opacity by the area that the 0.3 px dilation adds (Yu et al. 2024, eq. 9).

    Returns:
        Render with batch (..., V).

    Raises:
        ValueError: batches that do not match, tensors on different devices, an unknown backend, or a near
            plane that is not in front of the camera.
        RuntimeError: backend "cuda" without a CUDA device.
        UserError: the kernels of a CUDA device cannot be built.
    """
    batch = gaussians.opacities.shape[:-1]
    views = cameras.batch_shape
    if len(views) == 0 or (len(views) > 1 and views[:-1] != batch):
        raise ValueError(
            f"cameras must have batch shape (V,) or {(*batch, 'V')} to match the Gaussians' batch "
            f"{tuple(batch)}, got {tuple(views)}"
        )
    if not 0 < cameras.near < cameras.far:
        raise ValueError(f"cameras need 0 < near < far, got near {cameras.near} and far {cameras.far}")
    device = gaussians.means.device
    if cameras.viewmats.device != device:
        raise ValueError(
            f"Gaussians are on {device}, cameras on {cameras.viewmats.device}: move one with .to()"
        )
    if backend == "auto":
        backend = "cuda" if device.type == "cuda" else "cpu"
    if backend not in ("cpu", "cuda"):
        raise ValueError(f"backend must be 'auto', 'cpu' or 'cuda', got {backend!r}")
    if backend != device.type:
        if backend == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("backend 'cuda' needs a CUDA device and there is none: use backend='auto'")
        raise ValueError(f"backend {backend!r} got tensors on {device}: move them with .to('{backend}')")

    # Modules load here: gsplat and numba each take seconds, and only one of them is ever needed.
    if backend == "cuda":
        from dd3g.rasterizer.cuda import rasterize_batch
    else:
        from dd3g.rasterizer.cpu import rasterize_batch
    double = backend == "cpu" and gaussians.means.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    B, V = math.prod(batch), views[-1]
    flat = gaussians.to(dtype)
    flat = Gaussians(*(x.reshape(B, *x.shape[len(batch) :]) for x in vars(flat).values()))  # (B, N, ...)
    rigs = replace(
        cameras,
        viewmats=cameras.viewmats.to(dtype).expand(*batch, V, 4, 4).reshape(B, V, 4, 4),
        Ks=cameras.Ks.to(dtype).expand(*batch, V, 3, 3).reshape(B, V, 3, 3),
    )  # (B, V)
    image, alpha = rasterize_batch(flat, rigs, antialiased)  # (B, V, C + 1, H, W), (B, V, 1, H, W)
    image, alpha = (x.reshape(*batch, *x.shape[1:]) for x in (image, alpha))
    colors, depth = image.split([image.shape[-3] - 1, 1], dim=-3)
    behind = torch.as_tensor(background, dtype=dtype, device=device)
    if behind.dim() == 1:
        behind = behind[:, None, None]
    return Render(colors + (1 - alpha) * behind, alpha, depth)
