"""Contact sheets: rows of RGBA tiles on white."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dd3g.io.atomic import replacing


def save_contact_sheet(tiles: Tensor, path: str | Path, gap: int = 2) -> Path:
    """Write straight RGBA or RGB tiles (R, C, 3 or 4, H, W) in 0..1 as one PNG, rows of columns."""
    tiles = tiles.detach().float().cpu()
    if tiles.shape[2] == 4:
        alpha = tiles[:, :, 3:]
        tiles = tiles[:, :, :3] * alpha + 1 - alpha
    R, C, _, H, W = tiles.shape
    canvas = torch.ones(3, R * (H + gap) - gap, C * (W + gap) - gap)
    for r in range(R):
        for c in range(C):
            y, x = r * (H + gap), c * (W + gap)
            canvas[:, y : y + H, x : x + W] = tiles[r, c]
    pixels = (canvas.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path = Path(path)
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial)
    return path
