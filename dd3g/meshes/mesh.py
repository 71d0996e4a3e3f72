"""Load a textured mesh into flat arrays that the renderer's kernels take."""

from __future__ import annotations

import base64
import contextlib
import glob
import io
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from dd3g.errors import UserError, first_line
from dd3g.numba_setup import njit
from dd3g.srgb import to_srgb

CREASE = 45.0  # degrees: a sharper edge keeps its faces' own normals


@dataclass
class Mesh:
    """Triangles with per-corner attributes; colour is corner colour x texture (or solid texture)."""

    vertices: NDArray[np.float32]  # (N, 3) float32 world positions, y up
    faces: NDArray[np.int32]  # (F, 3) int32
    normals: NDArray[np.float32]  # (F, 3, 3) float32 unit normal of each corner
    uvs: NDArray[np.float32]  # (F, 3, 2) float32, origin at the texture's lower left, repeating
    colors: NDArray[np.float32]  # (F, 3, 3) float32 sRGB in 0..1 of each corner
    face_texture: NDArray[np.int32]  # (F,) int32 index into `textures`, -1 for none
    textures: list[NDArray[np.uint8]]  # (H, W, 3) uint8 sRGB pictures
    rest: NDArray[np.float32]  # (N, 3) float32 positions in [-1, 1]^3 at which `solid` is looked up
    solid: NDArray[np.uint8]  # (S, S, S, 3) uint8 colours of space (x, y, z), or an empty array


def load_mesh(path: str | Path, up: str = "y", normal: bool = True) -> Mesh:
    """Read a GLB, OBJ (textured or coloured) or an untextured .npz shape (V int16 / 32767, F).

    Texture transparency is ignored: everything is opaque.

    Args:
        path: the file. Textures of an OBJ are looked up in its folder, then in folders beside it that are
            called as those of textures are, such as `../materials`.
        up: "y" or "z", the axis of the file that points up.
        normal: put its bounding box's centre at the origin and its farthest vertex at distance 1.

    Raises:
        ValueError: when the file is damaged, requires an extension of glTF that is not read, holds no
            triangles, or positions that are not finite.
    """
    path = Path(path)
    parts = _load_shape(path) if path.suffix.lower() == ".npz" else _load_scene(path)
    if not sum(len(faces) for _, faces, *_ in parts):
        raise ValueError("it holds no triangles")
    meshes, triangles, uvs, colors, textures = zip(*parts, strict=True)
    vertices = np.concatenate(meshes)
    starts = np.cumsum([0] + [len(v) for v in meshes[:-1]])
    faces = np.concatenate([f + start for f, start in zip(triangles, starts, strict=True)]).astype(np.int32)
    if not np.isfinite(vertices).all():
        raise ValueError("it has positions that are not finite")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"a face names vertex {faces.max()} of {len(vertices)}")
    if up == "z":
        vertices = vertices[:, [0, 2, 1]] * [1, 1, -1]
    vertices = normalised(vertices) if normal else vertices.astype(np.float32)
    painted = np.array([texture is not None for texture in textures])
    uv = np.concatenate(uvs)
    uv = np.where(np.abs(uv) < np.finfo(np.float32).max, uv, 0)  # the kernels index by them
    return Mesh(
        vertices=vertices,
        faces=faces,
        normals=corner_normals(vertices, faces),
        uvs=uv.astype(np.float32),
        colors=np.concatenate(colors).astype(np.float32),
        face_texture=np.repeat(
            np.where(painted, painted.cumsum() - 1, -1), [len(f) for f in triangles]
        ).astype(np.int32),
        textures=[texture for texture in textures if texture is not None],
        rest=vertices,
        solid=np.zeros((0, 0, 0, 3), np.uint8),
    )


def missing_materials(path: Path) -> list[str]:
    """Materials and textures that an OBJ or GLB names and that `load_mesh` will not find or cannot read."""
    if path.suffix.lower() == ".glb":
        return _missing_pictures(path)
    if path.suffix.lower() != ".obj":
        return []
    from PIL import Image

    near, lacking = _Nearby(path), []
    with open(path, "rb") as stream:  # materials are named before the faces, the library first
        head = stream.read(1 << 16).decode("utf-8", "replace")
    for library in re.findall(r"^mtllib[ \t]+(.+?)\s*$", head, re.MULTILINE | re.ASCII):
        try:
            lines = near.get(library).decode("utf-8", "replace")
        except OSError:
            lacking.append(library)
            continue
        for name in re.findall(r"^\s*map_Kd[ \t]+(.+?)\s*$", lines, re.MULTILINE | re.ASCII):
            name = name.split()[-1] if name.startswith("-") else name  # behind options
            try:
                Image.open(io.BytesIO(near.get(name)))
            except Exception:  # Pillow's decoders raise nearly every type there is
                lacking.append(name)
    return list(dict.fromkeys(lacking))


def _missing_pictures(path: Path) -> list[str]:
    """Pictures of a GLB's base colours that are not there or cannot be read; trimesh goes on without."""
    from PIL import Image

    tree, binary = _glb(path)
    near, lacking = _Nearby(path), []
    used = {part.get("material") for part in _primitives(tree)}
    for k, material in enumerate(tree.get("materials", [])):
        if k not in used:
            continue
        name = f"the texture of material {k}"
        try:
            gloss = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
            plain = material.get("pbrMetallicRoughness", {})
            base = gloss.get("diffuseTexture") or plain.get("baseColorTexture")
            if not base:
                continue
            texture = tree["textures"][base["index"]]
            picture = tree["images"][texture.get("extensions", {}).get("EXT_texture_webp", texture)["source"]]
            uri = picture.get("uri", "")
            if "bufferView" in picture:
                view = tree["bufferViews"][picture["bufferView"]]
                start = view.get("byteOffset", 0)
                data = binary[start : start + view["byteLength"]]
            elif "base64," in uri:
                data = base64.b64decode(uri.partition("base64,")[2])
            else:
                name = uri or name
                data = near.get(uri)
            Image.open(io.BytesIO(data))
        except Exception:  # a stranger's file, and Pillow's decoders raise nearly every type there is
            lacking.append(name)
    return list(dict.fromkeys(lacking))


def _glb(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a GLB and the bytes behind it; nothing of a damaged one, which trimesh refuses."""
    data = path.read_bytes()
    try:
        (size,) = struct.unpack_from("<I", data, 12)
        return dict(json.loads(data[20 : 20 + size])), data[28 + size :]
    except (struct.error, ValueError, TypeError):
        return {}, b""


def _primitives(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts of a glTF's meshes; none of one that is damaged."""
    try:
        return [dict(part) for mesh in tree.get("meshes", []) for part in mesh["primitives"]]
    except (KeyError, TypeError, ValueError):
        return []


def _check_readable(tree: dict[str, Any]) -> None:
    """Raise ValueError for a glTF that trimesh would read wrongly, or not at all."""
    strange = [str(name) for name in tree.get("extensionsRequired") or [] if not str(name).startswith(_READ)]
    for part in _primitives(tree):
        for name in ("POSITION", "TEXCOORD_0"):
            with contextlib.suppress(LookupError, TypeError, AttributeError):  # damaged, or without it
                if tree["accessors"][part["attributes"][name]].get("normalized"):
                    strange.append(f"{name} in normalised whole numbers")
    if strange:
        names = ", ".join(dict.fromkeys(strange))
        raise ValueError(f"it needs {names}, which is not read: export it without")


def normalised(vertices: NDArray[np.floating]) -> NDArray[np.float32]:
    """Bounding-box centre to the origin, farthest vertex to distance 1.

    Raises:
        ValueError: when all vertices coincide.
    """
    vertices = vertices.astype(np.float64)
    centred = vertices - (vertices.min(0) + vertices.max(0)) / 2
    reach = np.linalg.norm(centred, axis=1).max()
    if reach < 1e-12:
        raise ValueError("all its vertices lie at one point")
    return (centred / reach).astype(np.float32)


# A geometry of a file: vertices (N, 3), faces (F, 3), uvs (F, 3, 2), sRGB of the corners (F, 3, 3), texture.
_Part = tuple[NDArray, NDArray, NDArray, NDArray, NDArray[np.uint8] | None]


def _load_shape(path: Path) -> list[_Part]:
    with np.load(path, allow_pickle=False) as data:
        vertices = data["V"].astype(np.float32) / 32767
        faces = data["F"].astype(np.int64)
    return [(vertices, faces, np.zeros((len(faces), 3, 2)), np.ones((len(faces), 3, 3)), None)]


# Of pictures, beside the folder of a mesh.
_TEXTURES = ("materials", "textures", "texture", "images", "maps")


class _Nearby:
    """Files that a mesh names, as trimesh asks for them.

    A name may come from its author's disk, and Google's scans keep textures in a folder beside the mesh's.
    The other folders there are other objects, whose textures have the same names.
    """

    def __init__(self, path: Path) -> None:
        home = path.parent
        self._home = home
        self._folders = [home, *(home.parent / spelt for n in _TEXTURES for spelt in (n, n.capitalize()))]

    def get(self, name: str) -> bytes:
        name = name.strip()
        beside = self._home / name
        if not beside.is_file():
            last = glob.escape(unquote(Path(name.replace("\\", "/")).name))  # glTF names URIs
            found = (p for folder in self._folders for p in sorted(folder.rglob(last)))
            beside = next(found, beside)
        return beside.read_bytes()

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)


# How extensions of glTF begin that trimesh reads, or that leave shapes and base colours as they are.
_READ = ("KHR_materials_", "KHR_lights_", "KHR_mesh_quantization", "EXT_texture_webp")


def _load_scene(path: Path) -> list[_Part]:
    import trimesh

    if path.suffix.lower() == ".glb":
        _check_readable(_glb(path)[0])
    try:
        scene = trimesh.load_scene(path, process=False, resolver=_Nearby(path))  # type: ignore[arg-type]
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a stranger's file can make a parser fail in any way
        raise ValueError(f"it is damaged, or not a {path.suffix} ({first_line(error)})") from error
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
            continue
        vertices = np.asarray(geometry.vertices) @ transform[:3, :3].T + transform[:3, 3]
        faces = np.asarray(geometry.faces)
        visual: Any = geometry.visual
        # glTF's factors and vertex colours are linear, its textures are not.
        texture, color = _material(visual, linear=path.suffix.lower() in (".glb", ".gltf"))
        colors = color[faces] if color.ndim == 2 else np.broadcast_to(color, (len(faces), 3, 3))
        uvs = np.zeros((len(faces), 3, 2)) if texture is None else np.asarray(visual.uv)[faces]
        parts.append((vertices, faces, uvs, colors, texture))
    return parts


def _material(visual: object, linear: bool) -> tuple[NDArray[np.uint8] | None, NDArray]:
    """A trimesh visual -> texture or None, and the sRGB colour (3,) of all or (N, 3) of each vertex."""
    material = getattr(visual, "material", None)
    if material is None:
        vertex_colors = getattr(visual, "vertex_colors", None)
        if vertex_colors is None:
            return None, np.ones(3)
        painted = _unit(vertex_colors)[:, :3]
        return None, to_srgb(painted) if linear else painted
    picture = getattr(material, "baseColorTexture", None)
    picture = picture if picture is not None else getattr(material, "image", None)
    factor = getattr(material, "baseColorFactor", None)
    if factor is None and picture is None:
        # OBJ's Kd, which by custom is multiplied only without a map.
        factor = getattr(material, "diffuse", None)
    factor = np.ones(3) if factor is None else _unit(factor)[:3]
    vertex_colors = getattr(visual, "vertex_attributes", {}).get("color")  # COLOR_0 beside a material
    if vertex_colors is not None:
        factor = factor * _unit(vertex_colors)[:, :3]
    if getattr(visual, "uv", None) is None:
        picture = None
    texture = None if picture is None else _texture(picture)
    return texture, to_srgb(factor) if linear else factor


def _unit(color: Any) -> NDArray[np.float64]:
    """Colours of whole numbers, whatever their range, or of floats as 0..1."""
    color = np.asarray(color)
    return color / np.iinfo(color.dtype).max if color.dtype.kind in "iu" else np.nan_to_num(color).clip(0, 1)


def _texture(picture: Any) -> NDArray[np.uint8]:
    if picture.mode.startswith(("I", "F")):
        from dd3g.picture.eight_bits import eight_bits

        try:
            picture = eight_bits(picture, "its texture")
        except UserError as error:
            raise ValueError(str(error)) from error
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def corner_normals(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """Normals that are smooth except across edges sharper than `CREASE`.

    Returns:
        (F, 3, 3): at each corner the area-weighted mean of the normals of those faces around the position
        that lie within `CREASE` of the corner's own face. Vertices at one position count as one, so that
        texture seams don't show.
    """
    a, b, c = vertices[faces].astype(np.float64).swapaxes(0, 1)
    area = np.cross(b - a, c - a)  # (F, 3) twice area x normal
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-20)
    _, place = np.unique(np.round(vertices.astype(np.float64), 5), axis=0, return_inverse=True)
    places = place.reshape(-1)[faces]  # (F, 3)
    order = np.argsort(places.reshape(-1), kind="stable")
    start = np.searchsorted(places.reshape(-1)[order], np.arange(places.max() + 2))
    return _crease_normals(
        area, unit, places, (order // 3).astype(np.int64), start, np.cos(np.radians(CREASE))
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _crease_normals(area, unit, places, around, start, cos_crease):  # type: ignore[no-untyped-def]
    """Corner normals (F, 3, 3); `around[start[p]:start[p + 1]]` are the faces at place p."""
    F = len(places)
    out = np.empty((F, 3, 3), np.float32)
    for f in range(F):
        for c in range(3):
            x = y = z = 0.0
            p = places[f, c]
            for k in range(start[p], start[p + 1]):
                g = around[k]
                if unit[f, 0] * unit[g, 0] + unit[f, 1] * unit[g, 1] + unit[f, 2] * unit[g, 2] >= cos_crease:
                    x += area[g, 0]
                    y += area[g, 1]
                    z += area[g, 2]
            n = (x * x + y * y + z * z) ** 0.5
            if n < 1e-20:
                x, y, z, n = unit[f, 0], unit[f, 1], unit[f, 2], 1.0
            out[f, c, 0], out[f, c, 1], out[f, c, 2] = x / n, y / n, z / n
    return out
