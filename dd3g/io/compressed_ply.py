"""PlayCanvas's .compressed.ply: 16 bytes a Gaussian, quantised between the bounds of chunks of 256."""

from __future__ import annotations

import numpy as np

from dd3g.gaussians import Gaussians
from dd3g.io.formats import Splats
from dd3g.io.packed import load_gsply
from dd3g.io.ply import SH_C0, Header, comments, from_raw, to_raw

_CHUNK = 256
_BOUNDS = (12, 18)  # columns of a chunk; older files bound no colours


def encode(gaussians: Gaussians, axes: str, antialiased: bool) -> bytes:
    """Write Gaussians (N,) in Morton order; comments tell their axes, and if they are drawn antialiased."""
    raw = to_raw(gaussians)
    data: bytes = load_gsply().compress_to_bytes(
        raw[:, 0:3], raw[:, 7:10], raw[:, 10:14], np.ascontiguousarray(raw[:, 6]), raw[:, 3:6]
    )
    return data.replace(b"element chunk", comments(axes, antialiased).encode() + b"element chunk", 1)


def decode(data: bytes, header: Header) -> Splats:
    """Read the Gaussians in the file's own axes; spherical harmonics above degree 0 are left out.

    Raises:
        ValueError: when the data is not such a file, or ends too early.
    """
    if header.order != "<":
        raise ValueError("a compressed .ply is little-endian")
    (_, chunks, bounds), (_, count, columns) = header.elements[:2]
    if count < 1 or chunks != -(-count // _CHUNK):
        raise ValueError(f"its {chunks} chunks do not fit its {count} Gaussians")
    if len(bounds) not in _BOUNDS or len(columns) != 4:
        raise ValueError(f"it has {len(bounds)} and {len(columns)} columns, but needs 18 and 4")
    start, width = header.start, 4 * len(bounds)
    needed, there = width * chunks + 16 * count, len(data) - start
    if there < needed:
        raise ValueError(f"it ends too early: {count} Gaussians need {needed} bytes, and it holds {there}")
    table = np.frombuffer(data, "<f4", chunks * len(bounds), start).reshape(chunks, -1).astype(np.float64)
    table = table[np.arange(count) // _CHUNK]
    packed = np.frombuffer(data, "<u4", 4 * count, start + width * chunks).reshape(count, 4).T
    colors = _fractions(packed[3], (8, 8, 8, 8))
    if len(bounds) == 18:
        colors[:, :3] = table[:, 12:15] + colors[:, :3] * (table[:, 15:18] - table[:, 12:15])
    opacity = colors[:, 3].clip(1e-6, 1 - 1e-6)
    raw = np.empty((count, 14))
    raw[:, 0:3] = table[:, 0:3] + _fractions(packed[0], (11, 10, 11)) * (table[:, 3:6] - table[:, 0:3])
    raw[:, 3:6] = (colors[:, :3] - 0.5) / SH_C0
    raw[:, 6] = np.log(opacity / (1 - opacity))
    raw[:, 7:10] = table[:, 6:9] + _fractions(packed[2], (11, 10, 11)) * (table[:, 9:12] - table[:, 6:9])
    raw[:, 10:14] = smallest_three(_fractions(packed[1], (10, 10, 10)), packed[1] >> 30)
    return Splats(from_raw(raw), header.axes, header.antialiased, len(header.elements) > 2)


def smallest_three(fractions: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Unit wxyz quaternions (N, 4) from all components but the largest.

    Args:
        fractions: (N, 3) in 0..1, for -1/sqrt(2)..1/sqrt(2).
        largest: (N,) which of wxyz is missing; it is positive.
    """
    quats = np.empty((len(fractions), 4))
    rows = np.arange(len(fractions))
    three = (fractions - 0.5) * 2**0.5
    places = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    quats[rows[:, None], places] = three
    quats[rows, largest] = np.sqrt((1 - (three**2).sum(-1)).clip(0))
    return quats


def _fractions(packed: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """(N, len(bits)) in 0..1 from fields of a uint32, the last in the lowest bits."""
    shifts = [sum(bits[i + 1 :]) for i in range(len(bits))]
    return np.stack([(packed >> s & 2**b - 1) / (2**b - 1) for s, b in zip(shifts, bits, strict=True)], -1)
