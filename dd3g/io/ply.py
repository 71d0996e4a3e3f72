"""The .ply layout of 3D Gaussian splatting (Kerbl et al. 2023): raw values, one row of float32 a Gaussian."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
import torch

from dd3g.gaussians import Gaussians
from dd3g.io.formats import Splats, check_length

SH_C0 = 0.28209479177387814  # the constant spherical harmonic of degree 0
FIELDS = tuple("x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split())
_AXES, _MODE = "comment dd3g axes: ", "comment SplatRenderMode: "
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_LEVELS = ("red", "green", "blue")  # what some tools write in place of harmonics
# The third scale of discs, whose files have two (Huang et al. 2024), as SuperSplat has it.
_FLAT = np.log(1e-6)


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


def encode(gaussians: Gaussians, axes: str, antialiased: bool, layout: str) -> bytes:
    """Write Gaussians (N,), which are in these axes, as binary little-endian numbers.

    Comments tell the axes, and whether the Gaussians are drawn antialiased.
    The layout "compact" has the columns `FIELDS`; "inria" adds normals and the 45 harmonics of degree 3, all
    zero, for importers that count columns.
    """
    names: tuple[str, ...] = FIELDS
    raw = to_raw(gaussians)
    if layout == "inria":
        rest = tuple(f"f_rest_{i}" for i in range(45))
        names = (*FIELDS[:3], "nx", "ny", "nz", *FIELDS[3:6], *rest, *FIELDS[6:])
        wide = np.zeros((len(raw), len(names)), "<f4")
        wide[:, [names.index(name) for name in FIELDS]] = raw
        raw = wide
    head = f"ply\nformat binary_little_endian 1.0\n{comments(axes, antialiased)}element vertex {len(raw)}\n"
    columns = "".join(f"property float {name}\n" for name in names)
    return f"{head}{columns}end_header\n".encode("ascii") + raw.tobytes()


def comments(axes: str, antialiased: bool) -> str:
    """The header's lines about axes and antialiasing, the latter as Brush and splat-transform spell it."""
    return f"{_AXES}{axes}\n{_MODE}{'mip' if antialiased else 'default'}\n"


@dataclass(frozen=True)
class Header:
    """What the text before the values says."""

    # Name and count of each, in order, with the words of its properties: type and name, or those of a list
    elements: list[tuple[str, int, list[list[str]]]]
    axes: str | None  # that our comment names
    antialiased: bool  # whether they are made to be drawn with antialiasing
    start: int  # of the values, in bytes
    order: str = "<"  # of their bytes, as numpy has it; "" where they are text

    @property
    def compressed(self) -> bool:
        """Whether this is the layout of a .compressed.ply."""
        return [name for name, *_ in self.elements[:2]] == ["chunk", "vertex"]


def decode(data: bytes, header: Header) -> Splats:
    """Read any 3DGS .ply; spherical harmonics above degree 0, normals and other columns are left out.

    Raises:
        ValueError: when the data is not such a file, or ends too early.
    """
    before, count, columns = _vertices(header)
    if count < 0:
        raise ValueError(f"its header promises {count} Gaussians")
    start = header.start
    if header.order:
        start += sum(number * kind.itemsize for number, kind in before)
    else:
        data, start = _as_binary(data[start:], sum(number for number, _ in before), count, columns), 0
    check_length(count, count * columns.itemsize, max(0, len(data) - start))
    rows = np.frombuffer(data, columns, count, start)
    names = columns.names or ()
    harmonics = any(rows[name].any() for name in names if name.startswith("f_rest_"))
    values = {name: rows[name] for name in names if name in FIELDS}
    values.setdefault("scale_2", np.full(count, _FLAT))
    if "f_dc_0" not in values:
        for field, name in zip(FIELDS[3:6], _LEVELS, strict=True):
            most = np.iinfo(columns[name]).max if columns[name].kind in "iu" else 1
            values[field] = (rows[name] / most - 0.5) / SH_C0
    gaussians = from_raw(np.stack([values[name] for name in FIELDS], -1))
    return Splats(gaussians, header.axes, header.antialiased, harmonics)


def read_header(data: bytes) -> Header:
    """The header of any .ply.

    Raises:
        ValueError: when there is none.
    """
    end = re.search(rb"\nend_header[ \t]*\r?\n", data[: 1 << 20])
    if not data.startswith(b"ply") or end is None:
        raise ValueError("it has no PLY header")
    lines = data[: end.start()].decode("ascii", "replace").splitlines()
    words = [line.split() for line in lines]
    orders = [_ORDERS[kind] for kind in _ORDERS if ["format", kind, "1.0"] in words]
    if not orders:
        raise ValueError(f"its header names none of the formats {', '.join(_ORDERS)} 1.0")
    pairs = [(key, line) for line in lines for key in (_AXES, _MODE)]
    stated = {key: line.removeprefix(key).strip() for key, line in pairs if line.startswith(key)}
    elements: list[tuple[str, int, list[list[str]]]] = []
    for first, *rest in filter(None, words):
        if first == "element":
            name, count = rest
            elements.append((name, int(count), []))
        elif first == "property" and elements:
            elements[-1][2].append(rest)
    # Early ones of ours state nothing and are; those of others are not unless they say so.
    antialiased = stated.get(_MODE, "mip" if _AXES in stated else "default") == "mip"
    return Header(elements, stated.get(_AXES), antialiased, end.end(), orders[0])


def _vertices(header: Header) -> tuple[list[tuple[int, np.dtype]], int, np.dtype]:
    """Rows and columns of the elements before the Gaussians; number of Gaussians, and their columns."""
    names = [name for name, *_ in header.elements]
    if "vertex" not in names:
        raise ValueError("it has no element 'vertex'")
    tables = []
    for name, count, properties in header.elements[: names.index("vertex") + 1]:
        if count and any(len(words) != 2 or words[0] not in _TYPES for words in properties):
            raise ValueError(f"its element {name!r} has columns that are not plain numbers")
        columns = [(words[-1], (header.order or "<") + _TYPES.get(words[0], "f4")) for words in properties]
        tables.append((count, np.dtype(columns)))
    *before, (count, kind) = tables
    given = set(kind.names or ())
    missing = set(FIELDS) - given
    if "scale_1" in given:
        missing.discard("scale_2")
    if given.issuperset(_LEVELS) and missing.issuperset(FIELDS[3:6]):
        missing.difference_update(FIELDS[3:6])
    if missing:
        listed = ", ".join(name for name in FIELDS if name in missing)
        raise ValueError(f"it holds no Gaussians: the columns {listed} are missing")
    return before, count, kind


def _as_binary(text: bytes, before: int, count: int, columns: np.dtype) -> bytes:
    """Rows of numbers in the text behind a header, past some lines, as a file of the columns has them."""
    if not count:
        return b""
    names = columns.names or ()
    read = np.loadtxt(io.BytesIO(text), skiprows=before, max_rows=count, ndmin=2, usecols=range(len(names)))
    rows = np.empty(len(read), columns)
    for name, column in zip(names, read.T, strict=True):
        rows[name] = column
    return rows.tobytes()
