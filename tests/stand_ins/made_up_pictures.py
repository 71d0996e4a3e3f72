"""Pictures of a disc, and where an object lies in one."""

import numpy as np
import torch


def disc(width=96, height=64, centre=(40, 30), radius=16, colour=(200, 40, 20)) -> np.ndarray:
    """(H, W, 4) uint8: an opaque disc on transparent."""
    y, x = np.mgrid[:height, :width] + 0.5
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = 255 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2)
    return rgba


def extent(alpha: torch.Tensor) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of the object in pixels, to a fraction of a pixel."""
    columns, rows = alpha.amax(0), alpha.amax(1)
    edges = []
    for profile in (columns, rows):
        inside = (profile > 0.5).nonzero()[:, 0]
        edges += [inside[0].item(), inside[-1].item() + 1]
    return tuple(edges)
