"""Maps on a picture's pixels: resizing straight RGBA, carrying values beyond a mask, sampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(values: Tensor, weight: Tensor) -> Tensor:
    """Carry values (V, C, S, S) beyond where their weight (V, 1, S, S) ends, from coarser means."""
    weight = weight.to(values)
    levels = [torch.cat([values * weight, weight], 1)]
    while levels[-1].shape[-1] > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True))
    found = levels.pop()
    for level in reversed(levels):
        found = level + 1e-3 * F.interpolate(found, level.shape[-2:], mode="bilinear")
    return found[:, :-1] / found[:, -1:].clamp(min=1e-30)


def resize(rgba: Tensor, size: int) -> Tensor:
    """Area-resize straight RGBA (B, 4, H, W) to a square; colours are averaged by their alpha."""
    if rgba.shape[-2:] == (size, size):
        return rgba
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    small = F.interpolate(premultiplied, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return torch.cat([(small[:, :3] / small[:, 3:].clamp(min=1e-6)).clamp(0, 1), small[:, 3:]], 1)


def sampled(maps: Tensor, uv: Tensor) -> Tensor:
    """Maps (V, C, S, S) at places (V, P, 2) in -1..1 -> (V, C, P); beyond the edge as at it."""
    return F.grid_sample(maps, uv[:, :, None], align_corners=False, padding_mode="border")[..., 0]
