"""The quantised formats .splat (32 bytes a Gaussian), .spz (about 16) and .compressed.ply (16)."""

from __future__ import annotations

import errno
import gzip
import os
import struct
import zlib
from importlib import import_module
from typing import Any

import numpy as np
import torch

from dd3g.gaussians import Gaussians
from dd3g.io.atomic import scratch_folder
from dd3g.io.formats import AGAIN, Splats, check_length
from dd3g.io.ply import SH_C0, Header, comments, from_raw, to_raw

SPZ_REACH = 2.0**22 - 1  # of coordinates in 24 bits, one behind the point
_CHUNK = 256  # Gaussians of a .compressed.ply that share bounds
_BOUNDS = (12, 18)  # their number; older files bound no colours
_SPLAT = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def encode_splat(gaussians: Gaussians) -> bytes:
    """The .splat layout of antimatter15/splat: linear scales, 8-bit RGBA, 8-bit wxyz quaternion, no header.

    Rows run from the most to the least important (volume times opacity): a viewer that streams the file shows
    the object early.
    """
    rgba = np.concatenate([gaussians.colors.numpy(), gaussians.opacities.numpy()[:, None]], -1)
    rows = np.empty(len(gaussians), _SPLAT)
    rows["position"] = gaussians.means.numpy()
    rows["scale"] = gaussians.scales.numpy()
    rows["rgba"] = np.clip(np.rint(rgba * 255), 0, 255)
    rows["rotation"] = np.clip(np.rint(gaussians.quats.numpy() * 128 + 128), 0, 255)
    importance = gaussians.scales.numpy().prod(-1) * gaussians.opacities.numpy()
    return rows[np.argsort(-importance, kind="stable")].tobytes()


def decode_splat(data: bytes) -> Splats:
    """Read .splat rows.

    Raises:
        ValueError: when the length is not a whole number of rows or a value is not finite.
    """
    if not data or len(data) % _SPLAT.itemsize:
        raise ValueError(f"its length of {len(data)} bytes is not a multiple of {_SPLAT.itemsize}")
    rows = np.frombuffer(data, _SPLAT)
    # There is no magic number: text or a picture of the right length would otherwise pass as Gaussians.
    numbers = np.concatenate([rows["position"], rows["scale"]], 1)
    if not np.isfinite(numbers).all() or (rows["scale"] < 0).any():
        raise ValueError("its positions or scales are not finite numbers, so these are no .splat rows")
    rgba = torch.from_numpy(rows["rgba"].astype(np.float32) / 255)
    gaussians = Gaussians(
        means=torch.from_numpy(rows["position"].copy()),
        quats=torch.from_numpy((rows["rotation"].astype(np.float32) - 128) / 128),
        scales=torch.from_numpy(rows["scale"].copy()),
        opacities=rgba[:, 3].clone(),
        colors=rgba[:, :3].clone(),
    )
    return Splats(gaussians)


def encode_spz(gaussians: Gaussians) -> bytes:
    """Niantic's .spz version 3; positions to 1.2e-4, log scales to 1/16, colours within -0.44..1.44.

    Positions of 2048 and more, up to `SPZ_REACH`, are rounded to more than that, those of an object that
    reaches less than 1/8 to less.

    Not version 4: its streams of zstd need a reader that few have, while 3 is gzip. Version 2 has 8-bit
    rotations and is what the oldest readers stop at. The flag for antialiasing stays 0, because Babylon then
    drew these files less like `rasterize`.
    """
    gsply = load_gsply()
    raw = to_raw(gaussians)
    data = gsply.GSData.from_arrays(
        means=raw[:, 0:3],
        scales=raw[:, 7:10],
        quats=raw[:, 10:14],
        opacities=raw[:, 6],
        sh0=raw[:, 3:6],
        shN=None,
    )
    reach = float(np.abs(raw[:, 0:3]).max())
    whole = int(reach + 1).bit_length()  # bits before the point
    finer = max(0, -int(np.log2(max(reach, 2.0**-12))) - 3)
    with scratch_folder() as folder:
        path = folder / "gaussians.spz"
        try:
            gsply.write_spz(path, data, version=3, fractional_bits=min(12 + finer, 23 - whole))
        except RuntimeError as error:  # in which its core tells of a disk without room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        content = bytearray(path.read_bytes())
    content[4:8] = bytes(4)  # the gzip header's clock: the same Gaussians must give the same file
    return bytes(content)


def decode_spz(data: bytes) -> Splats:
    """Read .spz versions 1 to 4; spherical harmonics above degree 0 are left out.

    Raises:
        ValueError: when the data is not such a file, or ends too early.
    """
    gsply = load_gsply()
    with scratch_folder() as folder:
        path = folder / "gaussians.spz"
        try:
            content = _unzipped(data) if data[:2] == b"\x1f\x8b" else data
            _, version, count, _, _, flags, _ = struct.unpack_from("<4sIIBBBB", content)
            places = None
            if version == 1:  # which gsply takes for 2: its places are half floats, and not of 24 bits
                places = np.frombuffer(content, "<f2", 3 * count, 16).reshape(count, 3)
                content = content[:4] + b"\2" + content[5:16] + bytes(9 * count) + content[16 + 6 * count :]
                data = gzip.compress(content, 1)
            path.write_bytes(data)
            read = gsply.read_spz(path)
        except Exception as error:  # gzip, zstd and struct each bring their own errors for foreign bytes
            if isinstance(error, MemoryError) or getattr(error, "errno", None):  # the system's, of the disk
                raise
            raise ValueError(str(error).replace(f": {path}", "")) from error
    means = read.means if places is None else places
    columns = (means, read.sh0, read.opacities.reshape(-1, 1), read.scales, read.quats)
    harmonics = read.shN is not None and bool(np.any(read.shN))
    # Without the flag nothing is said: writers leave it out of what is drawn with antialiasing, too.
    return Splats(
        from_raw(np.concatenate(columns, -1)), antialiased=bool(flags & 1) or None, harmonics=harmonics
    )


def _unzipped(data: bytes) -> bytes:
    """Of gzip; what follows its end is let be. On data that is cut short gsply would work for seconds."""
    stream = zlib.decompressobj(31)
    content = stream.decompress(data)
    if not stream.eof:
        raise EOFError(f"it ends too early; {AGAIN}")
    return content


def load_gsply() -> Any:
    """The package, with its kernels."""
    from dd3g.numba_setup import with_cache

    gsply = with_cache(lambda: import_module("gsply"))
    # Its compiled core where the wheel brings one: the numba path compiles for seconds on first use.
    gsply.use_backend("auto")
    return gsply


def encode_compressed(gaussians: Gaussians, axes: str, antialiased: bool) -> bytes:
    """PlayCanvas's .compressed.ply: 16 bytes a Gaussian, quantised between the bounds of chunks of 256.

    Gaussians (N,) are in Morton order; comments tell their axes, and if they are drawn antialiased.
    """
    raw = to_raw(gaussians)
    data: bytes = load_gsply().compress_to_bytes(
        raw[:, 0:3], raw[:, 7:10], raw[:, 10:14], np.ascontiguousarray(raw[:, 6]), raw[:, 3:6]
    )
    return data.replace(b"element chunk", comments(axes, antialiased).encode() + b"element chunk", 1)


def decode_compressed(data: bytes, header: Header) -> Splats:
    """Read a .compressed.ply in the file's own axes; spherical harmonics above degree 0 are left out.

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
    check_length(count, width * chunks + 16 * count, len(data) - start)
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
