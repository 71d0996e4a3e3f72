"""Matter along the rays of a camera, on which a sample of the shape network spends most of its time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.numba_setup import njit


def occupancy_along(volume: Tensor, half: float, camera: Cameras, depths: Tensor, shown: Tensor) -> Tensor:
    """Share of matter (D, S, S) at `depths` (D,) along the rays of the pixels, between voxels linearly.

    Args:
        volume: (n, n, n) bool over [-half, half]^3, indexed x, y, z; beyond it there is none.
        half: half the side of the cube.
        camera: batch shape (), in the volume's world.
        depths: camera depth.
        shown: (S, S) bool, the pixels that matter: the others, most of a picture, stay 0.
    """
    origins, directions = camera.rays()
    scale = len(volume) / (2 * half)  # voxels a unit
    start = origins[0, 0] * scale + (len(volume) - 1) / 2  # (3,) in voxels, whose centres are whole numbers
    steps = directions[shown] * scale  # (P, 3)
    found = np.empty((len(depths), len(steps)), np.float32)
    cross(volume.numpy().view(np.uint8), start.numpy(), steps.numpy(), depths.numpy(), found)
    occupancy = torch.zeros(len(depths), *shown.shape)
    occupancy[:, shown] = torch.from_numpy(found)
    return occupancy


@njit(cache=True, nogil=True)
def cross(volume, start, steps, depths, found):  # type: ignore[no-untyped-def]
    """Share of matter (D, P) of bits (n, n, n) at start + depth * step, places in voxels."""
    n = len(volume)
    for d in range(len(depths)):
        for p in range(len(steps)):
            x = start[0] + depths[d] * steps[p, 0]
            y = start[1] + depths[d] * steps[p, 1]
            z = start[2] + depths[d] * steps[p, 2]
            total = np.float32(0)
            if -1 < x < n and -1 < y < n and -1 < z < n:
                i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                u, v, w = x - i, y - j, z - k
                for c in range(8):
                    a, b, e = c & 1, (c >> 1) & 1, c >> 2
                    if 0 <= i + a < n and 0 <= j + b < n and 0 <= k + e < n and volume[i + a, j + b, k + e]:
                        total += (u if a else 1 - u) * (v if b else 1 - v) * (w if e else 1 - w)
            found[d, p] = total
