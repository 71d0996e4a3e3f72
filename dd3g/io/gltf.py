"""The binary form of glTF 2.0: arrays in one buffer behind the JSON that describes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERTICES, INDICES = 34962, 34963  # what a view is bound to
_STORED = {"uint8": (5121, "u1"), "uint32": (5125, "<u4")}  # all else is float32
_FLOAT = (5126, "<f4")


class GlbBuffer:
    """What follows the JSON of a .glb, with the views and accessors into it."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.length = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: NDArray, kind: str, target: int | None = None, bounds: bool = False) -> int:
        """Append an array (N, ...) of a kind such as VEC3; returns the number of its accessor.

        Floats become float32, uint8 and uint32 stay. The target is `VERTICES`, `INDICES`, or None; `bounds`
        stores the least and greatest values.
        """
        code, stored = _STORED.get(values.dtype.name, _FLOAT)
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
        document = {
            "extensionsUsed": [extension],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [primitive]}],
        }
        return b"".join(self.packed(document | more))

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
        raise ValueError(f"it ends too early: {length} bytes were promised, and it holds {len(data)}")
    return json.loads(data[20 : 20 + text_length]), memoryview(data)[28 + text_length :]
