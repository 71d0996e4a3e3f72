"""The binary form of glTF 2.0, and Gaussians in it: KHR_gaussian_splatting (release candidate, July 2026)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dd3g.gaussians import Gaussians, quaternion_to_matrix
from dd3g.io.formats import AGAIN, Splats
from dd3g.io.ply import SH_C0
from dd3g.srgb import to_linear, to_srgb

VERTICES, INDICES = 34962, 34963  # what a view is bound to
_STORED = {"uint8": (5121, "u1"), "uint32": (5125, "<u4")}  # all else is float32
_EXTENSION = "KHR_gaussian_splatting"
_ROTATION, _SCALE = f"{_EXTENSION}:ROTATION", f"{_EXTENSION}:SCALE"
_OPACITY, _SH0 = f"{_EXTENSION}:OPACITY", f"{_EXTENSION}:SH_DEGREE_0_COEF_0"
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}  # glTF component types
# Extensions that a file may ask for: those that say nothing about splats, and shorter types, which are read.
_READ = {_EXTENSION, "KHR_mesh_quantization", "KHR_materials_unlit", "KHR_texture_transform"}
_MOST = 1 << 26  # Gaussians: many nodes may show one mesh, and more would fill the memory
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


class GlbBuffer:
    """What follows the JSON of a .glb, with the views and accessors into it."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.length = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: np.ndarray, kind: str, target: int | None = None, bounds: bool = False) -> int:
        """Append an array (N, ...) of a kind such as VEC3; returns the number of its accessor.

        Floats become float32, uint8 and uint32 stay. The target is `VERTICES`, `INDICES`, or None; `bounds`
        stores the least and greatest values.
        """
        code, stored = _STORED.get(values.dtype.name, (5126, "<f4"))
        data = np.ascontiguousarray(values, stored)
        view = self.add_view(data.data.cast("B") if data.size else b"", target)
        accessor: dict[str, Any] = {"bufferView": view, "componentType": code}
        accessor |= {"count": len(data), "type": kind}
        if bounds:
            rows = data.reshape(len(data), -1)
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_view(self, data: bytes | memoryview, target: int | None = None) -> int:
        """Append bytes, such as a picture file; returns the number of their view."""
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.parts.append(data)
        self.length += len(data)
        return len(self.views) - 1

    def packed_mesh(self, primitive: dict[str, Any], extension: str, **more: Any) -> bytes:
        """The whole file of one mesh, of one primitive that uses an extension."""
        scene = {"scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
        meshes = [{"primitives": [primitive]}]
        return b"".join(self.packed({"extensionsUsed": [extension], **scene, "meshes": meshes, **more}))

    def packed(self, document: dict[str, Any]) -> Iterator[bytes | memoryview]:
        """The whole file, piece by piece; what the buffer holds is added to the document."""
        found: dict[str, Any] = {"asset": {"version": "2.0", "generator": "dd3g"}, **document}
        found |= {"accessors": self.accessors, "bufferViews": self.views}
        found["buffers"] = [{"byteLength": self.length}]
        text = json.dumps(found, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        padding = bytes(-self.length % 4)
        length = self.length + len(padding)
        yield struct.pack("<4sII", b"glTF", 2, 28 + len(text) + length)
        yield struct.pack("<I4s", len(text), b"JSON") + text
        yield struct.pack("<I4s", length, b"BIN\0")
        yield from (*self.parts, padding)


def unpacked(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a .glb, and its buffer.

    Raises:
        ValueError, struct.error: when the data is not such a file, or ends too early.
    """
    magic, version, length, text_length, kind = struct.unpack_from("<4sIII4s", data)
    if magic != b"glTF" or version != 2 or kind != b"JSON":
        raise ValueError("it is not a glTF 2.0 binary")
    if len(data) < length:
        there = len(data)
        raise ValueError(f"it ends too early: {length} bytes were promised, and it holds {there}; {AGAIN}")
    return json.loads(data[20 : 20 + text_length]), memoryview(data)[28 + text_length :]


def encode(gaussians: Gaussians) -> bytes:
    """One POINTS primitive, y up; viewers without the extension draw points in the colours of COLOR_0."""
    colors = gaussians.colors.numpy()
    opacities = gaussians.opacities.numpy().clip(0, 1)
    # COLOR_0 is linear by the core standard: 8 bits would lose the dark tones, and some readers mistake 16.
    rgba = np.concatenate([to_linear(colors.astype(np.float64).clip(0, 1)), opacities[:, None]], -1)
    buffer = GlbBuffer()
    attributes = {
        "POSITION": buffer.add(gaussians.means.numpy(), "VEC3", VERTICES, bounds=True),
        "COLOR_0": buffer.add(rgba, "VEC4", VERTICES),
        _ROTATION: buffer.add(gaussians.quats.numpy()[:, [1, 2, 3, 0]], "VEC4", VERTICES),
        _SCALE: buffer.add(gaussians.scales.numpy(), "VEC3", VERTICES),
        _OPACITY: buffer.add(opacities, "SCALAR", VERTICES),
        _SH0: buffer.add((colors - 0.5) / SH_C0, "VEC3", VERTICES),
    }
    drawn = {_EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}}
    primitive = {"mode": 0, "attributes": attributes, "extensions": drawn}
    return buffer.packed_mesh(primitive, _EXTENSION)


def holds_splats(data: bytes) -> bool:
    """Whether a .glb says that there are splats in it.

    Raises:
        ValueError, struct.error: when the data is not such a file.
    """
    return _EXTENSION in unpacked(data)[0].get("extensionsUsed", [])


def decode(data: bytes) -> Splats:
    """Read the splats of a .glb where its nodes place them; harmonics above degree 0 are left out.

    Raises:
        ValueError: when the data is not such a file, ends too early, or needs what this reader lacks.
        LookupError, TypeError, AttributeError, struct.error: when its JSON names things that are not there.
    """
    document, content = unpacked(data)
    if lacking := set(document.get("extensionsRequired", [])) - _READ:
        raise ValueError(f"it needs {', '.join(sorted(lacking))}, which are not read: export it without")
    meshes = [
        [p for p in mesh["primitives"] if _EXTENSION in p.get("extensions", {})]
        for mesh in document.get("meshes", [])
    ]
    if not any(meshes):
        raise ValueError(f"it has no primitive with {_EXTENSION}")
    placed = [(p, place) for mesh, place in _placed(document) for p in meshes[mesh]]
    found, total = [], 0
    for primitive, place in placed or [(p, np.eye(4)) for mesh in meshes for p in mesh]:
        gaussians = _gaussians(document, content, primitive)
        total += len(gaussians)
        if total > _MOST:
            raise ValueError(f"its nodes show more than {_MOST:,} Gaussians")
        found.append(gaussians if (place == np.eye(4)).all() else _moved(gaussians, place))
    degree1 = f"{_EXTENSION}:SH_DEGREE_1"
    harmonics = any(name.startswith(degree1) for mesh in meshes for p in mesh for name in p["attributes"])
    return Splats(Gaussians.cat(found), harmonics=harmonics)


def _placed(document: dict[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Each mesh that the scene shows, with the matrix (4, 4) from it to the world."""
    nodes = document.get("nodes", [])
    if "scenes" in document:
        roots = document["scenes"][document.get("scene", 0)].get("nodes", [])
    else:
        roots = sorted(set(range(len(nodes))) - {child for n in nodes for child in n.get("children", [])})
    waiting, seen = [(root, np.eye(4)) for root in reversed(roots)], set()
    while waiting:
        index, above = waiting.pop()
        if index in seen:
            raise ValueError(f"its node {index} has several places in the scene")
        seen.add(index)
        node = nodes[index]
        place = above @ _matrix(node)
        if "mesh" in node:
            yield node["mesh"], place
        waiting += [(child, place) for child in reversed(node.get("children", []))]


def _matrix(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    place = np.eye(4)
    turn = quaternion_to_matrix(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    place[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)))
    place[:3, 3] = node.get("translation", (0, 0, 0))
    return place


def _moved(gaussians: Gaussians, place: np.ndarray) -> Gaussians:
    """Gaussians in the world of a node's matrix (4, 4)."""
    scale = np.cbrt(np.linalg.det(place[:3, :3]))
    turn = place[:3, :3] / (scale or 1)
    if scale <= 0 or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-4):
        raise ValueError("its nodes mirror the splats, or stretch them: apply the transforms before export")
    rotation, translation = torch.from_numpy(turn).float(), torch.from_numpy(place[:3, 3]).float()
    return gaussians.transformed(scale=float(scale)).transformed(rotation, translation)


def _gaussians(document: dict[str, Any], content: memoryview, primitive: dict[str, Any]) -> Gaussians:
    names = ("POSITION", _ROTATION, _SCALE, _OPACITY, _SH0)
    if missing := [name for name in names if name not in primitive["attributes"]]:
        raise ValueError(
            f"its splats have no {', '.join(missing)}, as in drafts of {_EXTENSION}: export it again"
        )
    column = {name: _read(document, content, primitive["attributes"][name]) for name in names}
    if (column[_SCALE] < 0).any():
        raise ValueError("its scales are negative, as drafts of the extension wrote them; export it again")
    colors = column[_SH0] * np.float32(SH_C0) + np.float32(0.5)
    if primitive["extensions"][_EXTENSION].get("colorSpace") == "lin_rec709_display":
        colors = to_srgb(colors)
    return Gaussians(
        means=torch.from_numpy(column["POSITION"]),
        quats=torch.from_numpy(column[_ROTATION][:, [3, 0, 1, 2]]),
        scales=torch.from_numpy(column[_SCALE]),
        opacities=torch.from_numpy(column[_OPACITY][:, 0]),
        colors=torch.from_numpy(colors),
    )


def _read(document: dict[str, Any], content: memoryview, index: int) -> np.ndarray:
    """(count, width) float32 values of one accessor."""
    accessor = document["accessors"][index]
    if "bufferView" not in accessor or "sparse" in accessor:
        raise ValueError("its values are sparse or compressed, which is not read: export it without")
    view = document["bufferViews"][accessor["bufferView"]]
    if view.get("buffer", 0) != 0 or "extensions" in view or "uri" in document["buffers"][0]:
        raise ValueError("its values are compressed or in another file, which is not read: export it without")
    dtype = np.dtype(_TYPES[accessor["componentType"]])
    count, width = accessor["count"], _WIDTHS[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", width * dtype.itemsize)
    if stride < width * dtype.itemsize:  # many values in few bytes would fill the memory
        raise ValueError(f"its byteStride {stride} is less than one value")
    if start < 0 or count < 1 or len(content) < start + (count - 1) * stride + width * dtype.itemsize:
        raise ValueError(f"it ends too early: an accessor reaches past the end of the file; {AGAIN}")
    values = np.ndarray((count, width), dtype, content, start, (stride, dtype.itemsize)).astype(np.float32)
    return values / np.float32(np.iinfo(dtype).max) if accessor.get("normalized") else values
