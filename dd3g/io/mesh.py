"""A textured mesh to a file: .glb, .usdz, or .obj with .mtl and .png; y up, light baked into the colours."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dd3g.io.atomic import replacing_all
from dd3g.io.glb import INDICES, VERTICES, GlbBuffer


@dataclass(frozen=True)
class Mesh:
    """A surface of quads with a texture."""

    points: np.ndarray  # (P, 3) in the world
    normals: np.ndarray  # (P, 3) unit, outwards
    quads: np.ndarray  # (Q, 4) indices of points, counterclockwise as seen from outside
    places: np.ndarray  # (Q, 4, 2) of the quads' corners in the texture, 0..1 from its upper left corner
    texture: np.ndarray  # (H, W, 3) uint8 sRGB

    def save(self, path: str | Path) -> list[Path]:
        """Write a .glb or a .usdz, or an .obj with its material and texture beside it.

        Returns:
            The files, the one that was named first.

        Raises:
            UserError: when they can't be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".glb":
            contents = {path: self._glb()}
        elif path.suffix.lower() == ".usdz":
            contents = {path: self._usdz()}
        else:
            contents = self._obj(path)
        with replacing_all(path.parent) as folder:
            for target, content in contents.items():
                (folder / target.name).write_bytes(content)
        return list(contents)

    def _glb(self) -> bytes:
        """GlTF 2.0; each quad has its own corners, because each has its own place in the texture."""
        corners = self.quads.reshape(-1)
        triangles = np.arange(len(corners), dtype=np.uint32).reshape(-1, 4)[:, [0, 1, 2, 0, 2, 3]]
        buffer = GlbBuffer()
        attributes = {
            "POSITION": buffer.add(self.points[corners], "VEC3", VERTICES, bounds=True),
            "NORMAL": buffer.add(self.normals[corners], "VEC3", VERTICES),
            "TEXCOORD_0": buffer.add(self.places.reshape(-1, 2), "VEC2", VERTICES),
        }
        indices = buffer.add(triangles.reshape(-1), "SCALAR", INDICES)
        primitive = {"attributes": attributes, "indices": indices, "material": 0}
        picture = buffer.add_view(_png(self.texture))
        surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1}
        material = {"pbrMetallicRoughness": surface, "extensions": {"KHR_materials_unlit": {}}}
        return buffer.packed_mesh(
            primitive,
            "KHR_materials_unlit",
            materials=[material],
            textures=[{"source": 0, "sampler": 0}],
            # No mipmaps: they would mix patches that are not neighbours.
            samplers=[{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}],
            images=[{"bufferView": picture, "mimeType": "image/png"}],
        )

    def _usdz(self) -> bytes:
        """A zip without compression, each of whose files starts at a multiple of 64 bytes (USDZ 1.3)."""
        st = self.places.reshape(-1, 2) * [1, -1] + [0, 1]  # upwards
        # Of an object that shines by itself, as its colours hold the light already.
        scene = Path(__file__).with_name("mesh.usda").read_text("utf-8")
        text = scene % {
            "extent": _tuples([self.points.min(0), self.points.max(0)], 9),
            "counts": ", ".join(["4"] * len(self.quads)),
            "quads": ", ".join(map(str, self.quads.reshape(-1).tolist())),
            "points": _tuples(self.points, 9),
            "normals": _tuples(self.normals, 4),
            "places": _tuples(st),
        }
        written = BytesIO()
        with zipfile.ZipFile(written, "w") as package:
            for name, content in (("object.usda", text.encode()), ("texture.png", _png(self.texture))):
                entry = zipfile.ZipInfo(name)  # of 1980: the same mesh gives the same file
                padding = -(written.tell() + 30 + len(name) + 4) % 64
                entry.extra = struct.pack("<HH", 0x1986, padding) + bytes(padding)
                package.writestr(entry, content)
        return written.getvalue()

    def _obj(self, path: Path) -> dict[Path, bytes]:
        material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
        lines = [f"mtllib {material.name}", "o object", "usemtl surface"]
        lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in self.points.tolist()]
        lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in self.normals.tolist()]
        lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in self.places.reshape(-1, 2).tolist()]
        for i, quad in enumerate((self.quads + 1).tolist()):
            words = [f"{p}/{4 * i + k}/{p}" for k, p in enumerate(quad, 1)]
            lines.append(f"f {words[0]} {words[1]} {words[2]}")  # some readers drop faces of four corners
            lines.append(f"f {words[0]} {words[2]} {words[3]}")
        text = f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n"
        return {
            path: ("\n".join(lines) + "\n").encode("utf-8", "replace"),
            material: text.encode("utf-8", "replace"),
            picture: _png(self.texture),
        }


def _tuples(rows: Any, digits: int = 6) -> str:
    return ", ".join(
        "(" + ", ".join(f"{value:.{digits}g}" for value in row) + ")" for row in np.asarray(rows).tolist()
    )


def _png(pixels: np.ndarray) -> bytes:
    written = BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()
