"""Pictures for the eye: RGBA on white, in eight bits, and in rows on contact sheets."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dd3g.io.atomic import replacing

GAP = 2  # white pixels between the tiles of a sheet


def on_white(rgba: Tensor) -> Tensor:
    """Straight RGBA (..., 4, H, W) -> RGB over white (..., 3, H, W); RGB stays as it is."""
    if rgba.shape[-3] == 3:
        return rgba
    alpha = rgba[..., 3:, :, :]
    return rgba[..., :3, :, :] * alpha + (1 - alpha)  # in this order what is opaque stays exactly as it is


def pixels(picture: Tensor) -> NDArray:
    """(C, H, W) in 0..1 -> (H, W, C) uint8."""
    return (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy()


def save_contact_sheet(tiles: Tensor, path: str | Path) -> Path:
    """Write straight RGBA or RGB tiles (R, C, 3 or 4, H, W) in 0..1 as one PNG, rows of columns on white."""
    framed = F.pad(on_white(tiles.detach().float().cpu()), (0, GAP, 0, GAP), value=1.0)
    rows = framed.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (3, R (H + gap), C (W + gap))
    with replacing(path) as partial:
        Image.fromarray(pixels(rows[:, :-GAP, :-GAP])).save(partial)
    return Path(path)
