"""Gaussians to and from files of any of the formats; the methods `save` and `load` of `Gaussians`."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians, quaternion_multiply
from dd3g.io import glb, packed, ply, sog
from dd3g.io.atomic import replacing
from dd3g.io.formats import (
    AGAIN,
    AXES,
    SPLATS,
    UNBUNDLED,
    Splats,
    check_format,
    check_layout,
    format_of,
    name_and_format,
)

FORMATS = SPLATS
MIN_OPACITY = 0.005  # Gaussians below it are not written

# From our world (x right, y up, the object faces +z) to file axes: axis i of the file is sign[i] * our axis
# order[i]; then the quaternion of the same turn. Written out, because a computed turn differs in the last bit
# between machines, and so would the files.
_TURNS: dict[str, tuple[list[int], list[float], list[float]]] = {
    "opencv": ([0, 1, 2], [1, -1, -1], [0, 1, 0, 0]),  # x right, y down, z forward (RDF)
    "opengl": ([0, 1, 2], [1, 1, 1], [1, 0, 0, 0]),  # x right, y up, z back (RUB)
    "zup": ([0, 2, 1], [1, -1, 1], [0.5**0.5, 0.5**0.5, 0, 0]),  # x right, y away, z up (Blender)
}
_OWN = {"spz": "opengl", "glb": "opengl"}  # the axes of a format where it has others than "opencv"
_READERS = {"splat": packed.decode_splat, "spz": packed.decode_spz, "sog": sog.decode, "glb": glb.decode}
_REACH = {"spz": packed.SPZ_REACH, "compressed.ply": 1e38}  # largest coordinates, where not all floats are


def save(
    gaussians: Gaussians,
    path: str | Path,
    axes: str | None = None,
    format: str | None = None,
    min_opacity: float = MIN_OPACITY,
    antialiased: bool = True,
    layout: str = "compact",
) -> Path:
    """Write one object's Gaussians to a file that appears whole or not at all.

    Args:
        gaussians: one object (no batch dimensions), three colour channels, any device.
        path: the file; its suffix names the format unless `format` does.
        axes: as in `encode`.
        format: one of `FORMATS`; None goes by the suffix.
        min_opacity: Gaussians below it are left out; so are rows that are not finite.
        antialiased: as in `encode`.
        layout: as in `encode`.

    Returns:
        The path.

    Raises:
        UserError: on an unknown format or axes, nothing to write, or a place that can't be written to.
    """
    path = Path(path)
    format = format or format_of(path)
    check_format(format, axes)
    check_layout(layout, (format,))
    with replacing(path) as partial:
        partial.write_bytes(encode(gaussians, format, axes, min_opacity, antialiased, layout))
    return path


def load(path: str | Path, axes: str | None = None) -> Gaussians:
    """Read a file of any of the `FORMATS` into our world.

    Args:
        path: its suffix names the format; a meta.json is a .sog that was not zipped.
        axes: as in `decode`.

    Returns:
        Float32 Gaussians (N,) on the CPU. View-dependent colour is left out.

    Raises:
        UserError: when the file can't be read or is not what its suffix says.
    """
    return read(path, axes).gaussians


def read(path: str | Path, axes: str | None = None) -> Splats:
    """As `load`, with what the file says about itself; there may be no Gaussian in it."""
    path = Path(path)
    format = name_and_format(path)[1]
    check_format(format, axes)
    try:
        data = sog.bundled(path) if path.name.lower() == UNBUNDLED else path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        if not data:
            raise ValueError(f"it is empty (0 bytes); {AGAIN}")
        return decode(data, format, axes)
    except ValueError as error:
        raise UserError(f"{path} is not a .{format} file that can be read: {error}") from error


def read_some(path: str | Path, axes: str | None = None, visible: bool = False) -> Splats:
    """As `read`, and raises a UserError where no Gaussian is in the file, or none that is `visible`."""
    found = read(path, axes)
    if len(found.gaussians) == 0:
        raise UserError(f"{path} holds no Gaussians that are finite: there is nothing to show or to convert")
    if visible and len(found.gaussians.pruned(MIN_OPACITY)) == 0:
        raise UserError(
            f"{path} shows nothing: none of its {len(found.gaussians):,} Gaussians has an opacity of "
            f"{MIN_OPACITY} or more"
        )
    return found


Gaussians.save = save
Gaussians.load = staticmethod(load)


def encode(
    gaussians: Gaussians,
    format: str,
    axes: str | None = None,
    min_opacity: float = MIN_OPACITY,
    antialiased: bool = True,
    layout: str = "compact",
) -> bytes:
    """The bytes of a file; the same Gaussians give the same bytes.

    Args:
        gaussians: one object (no batch dimensions), three colour channels, any device.
        format: one of `FORMATS`.
        axes: one of `AXES`; None is what viewers of the format expect: "opengl" for .spz (RUB) and .glb
            (y up), "opencv" for the others. A .ply, .compressed.ply or .sog names them; no others for .glb.
        min_opacity: Gaussians below it are left out; so are rows that are not finite.
        antialiased: they are made to be drawn with antialiasing; a .ply, .compressed.ply or .sog says so.
        layout: of a .ply, "compact", or "inria" with 62 columns, normals and harmonics zero.

    Raises:
        UserError: on an unknown format, axes or layout, when no Gaussian is left, or one is out of reach.
    """
    check_format(format, axes)
    check_layout(layout, (format,))
    if gaussians.colors.dim() != 2 or gaussians.colors.shape[-1] != 3:
        raise UserError(
            f"a file holds one object of three colour channels, got colours {tuple(gaussians.colors.shape)}: "
            "give one of a batch, with colours (N, 3)"
        )
    kept = gaussians.detach().to("cpu", torch.float32).pruned(min_opacity)
    if len(kept) == 0:
        raise UserError(
            f"nothing to write: none of the {len(gaussians)} Gaussians is finite and has an opacity of "
            f"{min_opacity} or more; try another picture, or min_opacity=0"
        )
    reach, limit = float(kept.means.abs().max()), _REACH.get(format)
    if limit and reach > limit:
        raise UserError(
            f"the Gaussians reach {reach:g} from the origin, and a .{format} holds coordinates up to "
            f"{limit:g}: write a .ply, or leave out those that are far away"
        )
    axes = axes or _OWN.get(format, "opencv")
    turned = _turn(_unit(kept), axes)
    if format == "ply":
        return ply.encode(turned, axes, antialiased, layout)
    if format in ("compressed.ply", "sog"):
        write = packed.encode_compressed if format == "compressed.ply" else sog.encode
        return write(turned, axes, antialiased)
    return {"splat": packed.encode_splat, "spz": packed.encode_spz, "glb": glb.encode}[format](turned)


def decode(data: bytes, format: str, axes: str | None = None) -> Splats:
    """Gaussians from the bytes of a file.

    Args:
        data: the whole file.
        format: one of `FORMATS`.
        axes: one of `AXES`, the orientation of the file; None believes what the file says, and else is what
            `encode` gives the format.

    Returns:
        The Gaussians in our world, and what the file says; rows that are not finite are left out.

    Raises:
        ValueError: when the bytes are not of that format; the message is a clause that says why.
        UserError: on an unknown format or axes.
    """
    check_format(format, axes)
    try:
        if format in ("ply", "compressed.ply"):
            header = ply.read_header(data)
            found = (packed.decode_compressed if header.compressed else ply.decode)(data, header)
        else:
            found = _READERS[format](data)
    except MemoryError as error:
        raise ValueError("it is too large for this machine's memory, or its header is broken") from error
    except (LookupError, TypeError, AttributeError, struct.error, RecursionError) as error:
        reason = error if str(error) else type(error).__name__
        raise ValueError(f"its header is broken ({reason})") from error
    named = found.axes if found.axes in AXES else None
    turn = axes or named or _OWN.get(format, "opencv")
    gaussians = _unit(_turn(found.gaussians, turn, back=True)).pruned(0)
    broken = len(found.gaussians) - len(gaussians)
    return replace(found, gaussians=gaussians, axes=turn, broken=broken)


def world_turn(axes: str) -> Tensor:
    """(3, 3) from the axes of a file, one of `AXES`, to our world."""
    order, sign, _ = _TURNS[axes]
    turn = torch.zeros(3, 3)
    turn[order, range(3)] = torch.tensor(sign, dtype=torch.float32)
    return turn


def _turn(gaussians: Gaussians, axes: str, back: bool = False) -> Gaussians:
    """Our world to file axes, or `back`."""
    order, sign, quat = _TURNS[axes]
    if back:
        order = [order.index(i) for i in range(3)]
        sign = [sign[i] for i in order]
        quat = [quat[0], -quat[1], -quat[2], -quat[3]]
    turn = torch.tensor(quat, dtype=torch.float32).expand_as(gaussians.quats)
    means = gaussians.means[:, order] * torch.tensor(sign, dtype=torch.float32)
    return replace(gaussians, means=means, quats=quaternion_multiply(turn, gaussians.quats))


def _unit(gaussians: Gaussians) -> Gaussians:
    """Quaternions at length 1; those without a direction become the identity."""
    length = gaussians.quats.norm(dim=-1, keepdim=True)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0])
    return replace(gaussians, quats=torch.where(length > 1e-12, gaussians.quats / length, identity))
