"""A folder of meshes as items to draw, and how each one is drawn: views, light, colours, shape."""

from __future__ import annotations

import io
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.picture.sources import DEPTH, DEPTH_UNIT, SHEET, VOLUME
from dd3g.rig import BAND, ELEVATION, PICTURED, SQUARE

if TYPE_CHECKING:
    from dd3g.meshes.layouts import FoundObject

FILL = 0.55  # radius of the object's bounding sphere; at radius 1.5 and fovy 49.1 it spans 86 % of the frame
HALF = 1.02 * FILL  # half the side of the cube whose matter is stored
ENDS = 1 << 16  # bytes of either end of a mesh's file that its fingerprint reads


@dataclass(frozen=True)
class Options:
    """What decides the pixels; stored beside the shards so that one folder never mixes two settings."""

    size: int = setting(64, "Pixels per side.", 8)
    variants: int = setting(2, "Variants per object; 0 is plain, the others are random.", 1)
    scan_variants: int = setting(0, "Variants of scans and PBR objects; 0: as --variants.", 0)
    seed: int = setting(0, "Seed of all random choices.", 0)
    quads: int = setting(4, "Sets of four views 90 degrees apart at elevation 10.", 0)
    free_quads: int = setting(1, "The same at a random elevation, -10 to 40.", 0)
    square_quads: int = setting(0, "The same within 10 degrees of azimuth of front, back and sides.", 0)
    novel: int = setting(8, "Free views, elevation -15 to 50.", 0)
    eval: bool = setting(False, "Evaluation views: variant 0, one quad and 16 fixed novel views.")
    supersample: int = setting(4, "s x s samples per pixel.", 1, 8)
    volumes: bool = setting(False, "Store the volume of each object, for train-shape.")
    per_shard: int = setting(50, "Items per shard.", 1)


@dataclass(frozen=True)
class Item:
    """One object in one variant."""

    found: FoundObject
    variant: int
    meta: tuple[tuple[str, str], ...]  # style, source, licence, cluster

    @property
    def key(self) -> str:
        """Sample key; dots would end it early."""
        return f"{self.found.id.replace('.', '_').replace('/', '-')}-{self.variant}"


def find_items(
    folder: Path, options: Options, styles: list[str], limit: int, layout: str = "auto"
) -> tuple[list[Item], dict[str, str]]:
    """Every mesh of a data set times its variants, in a fixed order; metadata from a manifest.csv if any.

    Args:
        folder: of the data set, or one above it.
        options: how many variants.
        styles: of the manifest; none for all.
        limit: only the first objects; 0 for all.
        layout: of the data set, see `find_objects`.

    Returns:
        items, and id -> what is missing of objects that are incomplete.

    Raises:
        UserError: when the folder holds no mesh, or two objects share a key.
    """
    from dd3g.meshes.layouts import find_objects, read_rows

    objects, missing = find_objects(folder, layout)
    if objects[0].layout.holds != "mesh":
        raise UserError(
            f"{folder} holds {objects[0].layout.title}, nothing to draw: `dd3g evaluate` reads them"
        )
    rows = read_rows(folder)
    objects.sort(key=lambda o: o.path)
    chosen = [o for o in objects if not styles or o.style in styles][: limit or None]
    items: list[Item] = []
    for found in chosen:
        row = rows.get(found.id.rpartition("/")[2], {})
        meta = {"style": found.style} | {k: row.get(k, "") for k in ("source", "licence", "cluster")}
        count = (options.scan_variants if found.style in ("scan", "pbr") else 0) or options.variants
        items += [Item(found, v, tuple(meta.items())) for v in range(1 if options.eval else count)]
    if not items:
        raise UserError(f"{folder} holds no meshes of style {', '.join(styles)}")
    keys = [i.key for i in items]
    if len(set(keys)) < len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise UserError(f"two objects would both be called {twice!r}: rename one of the files")
    return items, missing


def mesh_files(items: list[Item]) -> str:
    """Fingerprint of the meshes: sizes, first and last bytes, so that one that was replaced is noticed."""
    parts: list[str | bytes] = []
    for path in sorted({str(item.found.path) for item in items}):
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            parts += [str(size), stream.read(ENDS)]
            stream.seek(max(0, size - ENDS))
            parts.append(stream.read(ENDS))
    return fingerprint(*parts)


def view_plan(options: Options, rng: np.random.Generator, plain: bool, front: float = 0.0) -> dict[str, list]:
    """Azimuths, elevations, quads and novel views of one item, whose front is seen from `front`; degrees."""
    azimuth: list[float] = []
    elevation: list[float] = []
    quads: list[list[int]] = []

    def add_quad(first: float, height: float) -> None:
        quads.append([len(azimuth) + k for k in range(4)])
        azimuth.extend((first + 90 * k) % 360 for k in range(4))
        elevation.extend([height] * 4)

    count = 1 if options.eval else options.quads
    for q in range(count):
        jitter = 0.0 if q == 0 and plain else rng.uniform(-0.5, 0.5)
        add_quad((q + jitter) * 90 / count, ELEVATION)
    for _ in range(0 if options.eval else options.free_quads):
        add_quad(rng.uniform(0, 90), rng.uniform(*PICTURED))
    for _ in range(0 if options.eval else options.square_quads):
        add_quad(front + rng.uniform(-SQUARE, SQUARE), rng.uniform(*PICTURED))
    first = len(azimuth)
    if options.eval:
        # 7 and 16 share no factor: each of 16 even elevations occurs once, neighbours in azimuth differ.
        azimuth += [22.5 * (k + 0.5) for k in range(16)]
        elevation += [-8 + 48 * (7 * k % 16) / 15 for k in range(16)]
    else:
        azimuth += [(k + rng.random()) * 360 / options.novel for k in range(options.novel)]
        elevation += list(rng.uniform(*BAND, options.novel))
    return {
        "azimuth": [round(float(a), 4) for a in azimuth],
        "elevation": [round(float(e), 4) for e in elevation],
        "quads": quads,
        "novel": list(range(first, len(azimuth))),
    }


def render_item(item: Item, options: Options) -> dict[str, bytes | str]:
    """One sample of a shard; a pure function of the mesh, the seed, the object's id and the variant."""
    from data_gen.meshes import variation
    from dd3g.cameras import Cameras
    from dd3g.meshes.rendering import Light, render_mesh

    rng = np.random.default_rng([options.seed, zlib.crc32(item.found.id.encode()), item.variant])
    plain = item.variant == 0
    mesh = item.found.mesh()
    light, colors, texture, front = Light(), None, "original", 0.0
    if item.found.path.suffix.lower() == ".npz":
        mesh, texture = variation.painted(mesh, rng)
    if not plain:
        mesh, front = variation.reshaped(mesh, rng)
        light = variation.random_light(rng)
        colors = variation.random_color_matrix(rng)
    mesh.vertices = mesh.vertices * np.float32(FILL)
    plan = view_plan(options, rng, plain, front)
    cameras = Cameras.orbit(plan["azimuth"], plan["elevation"], options.size)
    rgba, depth = render_mesh(mesh, cameras, light, colors, options.supersample)
    if not rgba.any():
        raise ValueError("none of it is visible: its triangles have no area")
    meta = {
        "id": item.found.id,
        **dict(item.meta),
        "variant": item.variant,
        "size": options.size,
        "viewmats": np.round(cameras.viewmats.double().numpy(), 7).tolist(),
        "K": np.round(cameras.Ks[0].double().numpy(), 5).tolist(),
        **plan,
        "front": round(front, 4),
        "light": {
            "ambient": round(light.ambient, 4),
            "directions": np.round(light.directions, 4).tolist(),
            "colors": np.round(light.colors, 4).tolist(),
        },
        "texture": texture
        if colors is None
        else {"base": texture, "color_matrix": np.round(colors, 4).tolist()},
    }
    z = np.round(depth * DEPTH_UNIT).clip(0, 65535).astype(np.uint16)
    files: dict[str, bytes | str] = {SHEET: png_sheet(rgba), DEPTH: png_sheet(z)}
    if options.volumes:
        from data_gen.meshes.volumes import carve, filled, packed

        matter = filled(carve(mesh, HALF), HALF)
        meta["volume"] = {"resolution": len(matter), "half": HALF}
        files[VOLUME] = packed(matter)
    return {"__key__": item.key, **files, "json": json.dumps(meta)}


def png_sheet(views: NDArray) -> bytes:
    """(V, H, W[, 4]) -> PNG of the views side by side."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(views), 1)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
