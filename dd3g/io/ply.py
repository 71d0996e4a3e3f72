"""The .ply layout of 3D Gaussian splatting (Kerbl et al. 2023): raw values, one row of float32 a Gaussian."""

from __future__ import annotations

import numpy as np
import torch

from dd3g.gaussians import Gaussians

SH_C0 = 0.28209479177387814  # the constant spherical harmonic of degree 0
FIELDS = (
    *("x", "y", "z"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
_COMMENT = "comment dd3g axes: "
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4"},
    **{"float": "<f4", "double": "<f8", "float32": "<f4", "float64": "<f8"},
}


def to_raw(gaussians: Gaussians) -> np.ndarray:
    """Activated values to file values.

    Returns:
        (N, 14) little-endian float32 in the order of `FIELDS`: position, (rgb - 0.5) / `SH_C0`, logit of the
        opacity, natural logarithm of the scales, wxyz quaternion.
    """
    # Logarithms in float64: the last bit of float32 ones differs between processors, and so would the files.
    opacities = np.clip(gaussians.opacities.numpy().astype(np.float64), 1e-6, 1 - 1e-6)
    raw = np.empty((len(gaussians), len(FIELDS)), "<f4")
    raw[:, 0:3] = gaussians.means.numpy()
    raw[:, 3:6] = (gaussians.colors.numpy().astype(np.float64) - 0.5) / SH_C0
    raw[:, 6] = np.log(opacities / (1 - opacities))
    raw[:, 7:10] = np.log(np.maximum(gaussians.scales.numpy().astype(np.float64), 1e-8))
    raw[:, 10:14] = gaussians.quats.numpy()
    return raw


def from_raw(raw: np.ndarray) -> Gaussians:
    """The inverse of `to_raw`; (N, 14) file values to activated values."""
    wide = torch.from_numpy(raw.astype(np.float64))
    return Gaussians(
        means=wide[:, 0:3].float(),
        quats=wide[:, 10:14].float(),
        scales=wide[:, 7:10].exp().float(),
        opacities=wide[:, 6].sigmoid().float(),
        colors=(wide[:, 3:6] * SH_C0 + 0.5).float(),
    )


def encode(gaussians: Gaussians, axes: str) -> bytes:
    """Binary little-endian .ply; a comment names the axes."""
    header = (
        f"ply\nformat binary_little_endian 1.0\n{_COMMENT}{axes}\nelement vertex {len(gaussians)}\n"
        + "".join(f"property float {name}\n" for name in FIELDS)
        + "end_header\n"
    )
    return header.encode("ascii") + to_raw(gaussians).tobytes()


def decode(data: bytes) -> tuple[Gaussians, str | None]:
    """Read any 3DGS .ply; spherical harmonics above degree 0, normals and other columns are left out.

    Returns:
        The Gaussians in the file's own axes, and the axes that our comment names (None without a comment).

    Raises:
        ValueError: when the data is not such a file, or ends too early.
    """
    count, columns, axes, start = _header(data)
    needed, there = count * columns.itemsize, len(data) - start
    if count < 0 or there < needed:
        raise ValueError(f"it ends too early: {count} Gaussians need {needed} bytes, {there} are there")
    rows = np.frombuffer(data, columns, count, start)
    return from_raw(np.stack([rows[name] for name in FIELDS], -1)), axes


def _header(data: bytes) -> tuple[int, np.dtype, str | None, int]:
    """Number of Gaussians, their columns, the axes of our comment, and where the header ends."""
    end = data.find(b"end_header\n", 0, 1 << 16)
    if not data.startswith(b"ply") or end < 0:
        raise ValueError("it has no PLY header")
    lines = data[:end].decode("ascii", "replace").splitlines()
    if "format binary_little_endian 1.0" not in lines:
        raise ValueError(
            "only binary little-endian PLY is read; convert it with splat-transform or SuperSplat"
        )
    axes = next((line.removeprefix(_COMMENT).strip() for line in lines if line.startswith(_COMMENT)), None)
    # The text between "element" lines; what stands before the first is no element.
    _, *elements = "\n".join(lines).split("\nelement ")
    first, *properties = elements[0].splitlines() if elements else [""]
    if not first.startswith("vertex "):
        raise ValueError(
            "its first element is not 'vertex'; compressed PLY is not read, convert it to plain PLY"
        )
    columns = [line.split()[1:] for line in properties if line.startswith("property ")]
    if any(len(column) != 2 or column[0] not in _TYPES for column in columns):
        raise ValueError("its vertices have columns that are not plain numbers")
    missing = set(FIELDS) - {name for _, name in columns}
    if missing:
        listed = ", ".join(name for name in FIELDS if name in missing)
        raise ValueError(f"it holds no Gaussians: the columns {listed} are missing")
    dtype = np.dtype([(name, _TYPES[kind]) for kind, name in columns])
    return int(first.split()[1]), dtype, axes, end + len(b"end_header\n")
