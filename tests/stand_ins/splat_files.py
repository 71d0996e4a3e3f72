"""Gaussians whose values in files are known, and how far each format may move them."""

import io
import math
import zipfile

import numpy as np
import torch
from PIL import Image

from dd3g.gaussians import Gaussians, quaternion_to_matrix


def example() -> Gaussians:
    """Three Gaussians to keep, one too faint, one not finite; the second has a quaternion of length 2."""
    return Gaussians(
        means=torch.tensor(
            [[0, 1, 0], [0.5, -0.25, 0.125], [-1, 0, 0.75], [0, 0, 0], [math.nan, 0, 0]]
        ).float(),
        quats=torch.tensor(
            [[1, 0, 0, 0], [1, 1, 1, 1], [0.6, 0, 0.8, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
        ).float(),
        scales=torch.tensor([[0.01, 0.02, 0.04], [0.1, 0.1, 0.3], [0.05, 0.2, 0.1], [1, 1, 1], [1, 1, 1]]),
        opacities=torch.tensor([1.0, 0.75, 0.25, 0.004, 0.5]),
        colors=torch.tensor([[1, 0.5, 0], [0.2, 0.4, 0.6], [0, 1, 0.1], [1, 1, 1], [1, 1, 1]]),
    )


def covariances(gaussians: Gaussians) -> torch.Tensor:
    """(N, 3, 3): what a rotation and its scales mean, whichever quaternion was chosen."""
    factor = quaternion_to_matrix(gaussians.quats) * gaussians.scales[:, None, :]
    return factor @ factor.transpose(-1, -2)


def assert_same(got: Gaussians, want: Gaussians, **tolerance: float) -> None:
    torch.testing.assert_close(got.means, want.means, **tolerance)
    torch.testing.assert_close(covariances(got), covariances(want), **tolerance)
    torch.testing.assert_close(got.opacities, want.opacities, **tolerance)
    torch.testing.assert_close(got.colors, want.colors, **tolerance)


def ply_table(data: bytes) -> np.ndarray:
    """(N, 14) by a reader that knows only the 3DGS column order."""
    return np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4").reshape(-1, 14)


def unzipped(data: bytes) -> dict[str, bytes]:
    """Name -> the pixels of a .webp, or the bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    return {
        name: Image.open(io.BytesIO(content)).tobytes() if name.endswith(".webp") else content
        for name, content in inside.items()
    }


TOLERANCE = {
    "ply": {"atol": 1e-6, "rtol": 1e-5},
    "splat": {"atol": 5e-3, "rtol": 1e-2},
    "compressed.ply": {"atol": 3e-3, "rtol": 1e-2},
    "spz": {"atol": 1e-2, "rtol": 0.14},
    "sog": {"atol": 6e-3, "rtol": 2e-2},
    "glb": {"atol": 1e-6, "rtol": 1e-5},
}


def nearest(wanted: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """For each place (N, 3), the index of the mean that lies nearest."""
    return torch.cdist(wanted, means).argmin(1)
