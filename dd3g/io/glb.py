"""glTF binary with KHR_gaussian_splatting (Khronos release candidate of July 2026): y up, linear values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dd3g.gaussians import Gaussians
from dd3g.io.formats import Splats
from dd3g.io.gltf import VERTICES, GlbBuffer, unpacked
from dd3g.io.ply import SH_C0

_EXTENSION = "KHR_gaussian_splatting"
_ROTATION, _SCALE = f"{_EXTENSION}:ROTATION", f"{_EXTENSION}:SCALE"
_OPACITY, _SH0 = f"{_EXTENSION}:OPACITY", f"{_EXTENSION}:SH_DEGREE_0_COEF_0"
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}  # glTF component types
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def encode(gaussians: Gaussians) -> bytes:
    """One POINTS primitive; viewers without the extension draw a point cloud coloured by COLOR_0."""
    colors = gaussians.colors.numpy()
    opacities = gaussians.opacities.numpy().clip(0, 1)
    # COLOR_0 is linear by the core standard: 8 bits would lose the dark tones, and some readers mistake 16.
    rgba = np.concatenate([_linear(colors.astype(np.float64).clip(0, 1)), opacities[:, None]], -1)
    buffer = GlbBuffer()
    attributes = {
        "POSITION": buffer.add(gaussians.means.numpy(), "VEC3", VERTICES, bounds=True),
        "COLOR_0": buffer.add(rgba, "VEC4", VERTICES),
        _ROTATION: buffer.add(gaussians.quats.numpy()[:, [1, 2, 3, 0]], "VEC4", VERTICES),
        _SCALE: buffer.add(gaussians.scales.numpy(), "VEC3", VERTICES),
        _OPACITY: buffer.add(opacities, "SCALAR", VERTICES),
        _SH0: buffer.add((colors - 0.5) / SH_C0, "VEC3", VERTICES),
    }
    primitive = {
        "mode": 0,
        "attributes": attributes,
        "extensions": {_EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    document = {
        "extensionsUsed": [_EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
    }
    return b"".join(buffer.packed(document))


def holds_splats(data: bytes) -> bool:
    """Whether a .glb says that there are splats in it.

    Raises:
        ValueError, struct.error: when the data is not such a file.
    """
    return _EXTENSION in unpacked(data)[0].get("extensionsUsed", [])


def decode(data: bytes) -> Splats:
    """Read the splat primitive of a .glb; spherical harmonics above degree 0 are left out.

    Raises:
        ValueError: when the data is not such a file, ends too early, or needs what this reader lacks.
        LookupError, TypeError, AttributeError, struct.error: when its JSON names things that are not there.
    """
    document, content = unpacked(data)
    primitives = [p for mesh in document.get("meshes", []) for p in mesh["primitives"]]
    primitives = [p for p in primitives if _EXTENSION in p.get("extensions", {})]
    if len(primitives) != 1:
        raise ValueError(f"it has {len(primitives)} primitives with {_EXTENSION}, 1 is needed")
    placed = {"matrix", "translation", "rotation", "scale"}
    if any(placed & node.keys() for node in document.get("nodes", [])):
        raise ValueError("its nodes move the splats; apply the node transforms before export")
    column = {
        name: _read(document, content, primitives[0]["attributes"][name])
        for name in ("POSITION", _ROTATION, _SCALE, _OPACITY, _SH0)
    }
    if (column[_SCALE] < 0).any():
        raise ValueError("its scales are negative, as drafts of the extension wrote them; export it again")
    gaussians = Gaussians(
        means=torch.from_numpy(column["POSITION"]),
        quats=torch.from_numpy(column[_ROTATION][:, [3, 0, 1, 2]]),
        scales=torch.from_numpy(column[_SCALE]),
        opacities=torch.from_numpy(column[_OPACITY][:, 0]),
        colors=torch.from_numpy(column[_SH0] * np.float32(SH_C0) + np.float32(0.5)),
    )
    harmonics = any(f"{_EXTENSION}:SH_DEGREE_1" in name for name in primitives[0]["attributes"])
    return Splats(gaussians, harmonics=harmonics)


def _read(document: dict[str, Any], content: memoryview, index: int) -> np.ndarray:
    """(count, width) float32 values of one accessor."""
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    dtype = np.dtype(_TYPES[accessor["componentType"]])
    count, width = accessor["count"], _WIDTHS[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", width * dtype.itemsize)
    if stride < width * dtype.itemsize:  # many values in few bytes would fill the memory
        raise ValueError(f"its byteStride {stride} is less than one value")
    if start < 0 or count < 1 or len(content) < start + (count - 1) * stride + width * dtype.itemsize:
        raise ValueError("it ends too early: an accessor reaches past the end of the file")
    values = np.ndarray((count, width), dtype, content, start, (stride, dtype.itemsize)).astype(np.float32)
    return values / np.float32(np.iinfo(dtype).max) if accessor.get("normalized") else values


def _linear(srgb: np.ndarray) -> np.ndarray:
    """The sRGB transfer function, 0..1 to linear 0..1 (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
