"""Small data made on the spot: ray-traced ellipsoids in the formats of renders and quadruples; a cube."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dd3g.cameras import Cameras
from dd3g.io.shards import write_shard
from dd3g.picture.sources import DEPTH_UNIT
from distill.quadruples import Quadruple, encode, noise_of

QUADS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]  # two level ones, one at a free elevation
AZIMUTHS = [a + q for a in (0.0, 30.0, 50.0) for q in (0.0, 90.0, 180.0, 270.0)] + [77.0, 200.0]
ELEVATIONS = [10.0] * 8 + [30.0] * 4 + [-5.0, 25.0]


def ellipsoid(cameras, axes, colour):
    """Straight RGBA (V, 4, S, S) and depth (V, S, S), sharp; the colour depends on the surface normal."""
    origins, directions = cameras.rays()
    o, d = origins / axes, directions / axes
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    root = (b * b - a * c).clamp(min=0)
    depth = (-b - root.sqrt()) / a
    hit = (root > 0).float()
    normal = o + depth[..., None] * d  # on the unit sphere
    rgb = (0.6 * colour + 0.2 * (1 + normal)).clamp(0, 1).movedim(-1, 1)
    return torch.cat([rgb, hit[:, None]], 1) * hit[:, None], depth * hit


def _png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def ellipsoid_volume(axes, resolution=64, half=0.6):
    """(n, n, n) bool: where the matter of the ellipsoid is."""
    a = (torch.arange(resolution) + 0.5) / resolution * 2 * half - half
    grid = torch.stack(torch.meshgrid(a, a, a, indexing="ij"), -1)
    return (grid / axes).square().sum(-1) < 1


def write_renders(folder, count=3, size=32, styles=("scan", "game"), volumes=False):
    """One shard of rendered ellipsoids, with their volumes if asked for; returns its folder."""
    cameras = Cameras.orbit(AZIMUTHS, ELEVATIONS, size)
    samples = []
    for i in range(count):
        g = torch.Generator().manual_seed(i)
        axes, colour = 0.25 + 0.3 * torch.rand(3, generator=g), torch.rand(3, generator=g)
        rgba, depth = ellipsoid(cameras, axes, colour)
        sheet = torch.cat(list((rgba * 255).round().byte()), -1).movedim(0, -1).contiguous().numpy()
        deep = torch.cat(list((depth * DEPTH_UNIT).round().int()), -1).numpy().astype("uint16")
        meta = {
            "id": f"object{i}", "style": styles[i % len(styles)], "source": "test", "licence": "none",
            "cluster": i, "variant": 0, "size": size, "viewmats": cameras.viewmats.tolist(),
            "K": cameras.Ks[0].tolist(), "azimuth": AZIMUTHS, "elevation": ELEVATIONS, "quads": QUADS,
            "novel": [12, 13], "light": {}, "texture": "plain",
        }  # fmt: skip
        files = {"rgba.png": _png(sheet), "depth.png": _png(deep)}
        if volumes:
            meta["volume"] = {"resolution": 64, "half": 0.6}
            files["volume.bits"] = zlib.compress(np.packbits(ellipsoid_volume(axes).numpy()).tobytes())
        samples.append({"__key__": f"object{i}", "json": json.dumps(meta), **files})
    write_shard(folder / "renders-00000.tar", samples)
    return folder


def write_quadruples(folder, count=3, size=32):
    """One shard of quadruples whose answers are ellipsoids; returns its folder."""
    rig = Cameras.default_rig(size)
    samples = []
    for i in range(count):
        g = torch.Generator().manual_seed(100 + i)
        rgba, _ = ellipsoid(rig, 0.25 + 0.3 * torch.rand(3, generator=g), torch.rand(3, generator=g))
        noise = noise_of((4, 64, size // 4, size // 4), i)
        meta = {"source": f"q{i}", "seed": i, "teacher": "test", "steps": 10, "guidance_scale": 1.0}
        samples.append(encode(Quadruple(noise, rig, rgba[0], rgba, meta), f"q{i}"))
    write_shard(folder / "quadruples-00000.tar", samples)
    return folder


CUBE = {"+z": [255, 0, 0], "+x": [0, 255, 0], "-z": [0, 0, 255], "-x": [255, 255, 0], "+y": [255, 0, 255]}


def write_cube(path: Path, scale: float = 1.0) -> None:
    """A cube whose five visible faces have known colours; separate vertices, vertex colours."""
    import trimesh

    box = trimesh.creation.box((scale, scale, scale))
    vertices, colors = [], []
    for face, normal in zip(box.faces, box.face_normals, strict=True):
        axis = int(np.abs(normal).argmax())
        name = ("+" if normal[axis] > 0 else "-") + "xyz"[axis]
        vertices.append(box.vertices[face])
        colors += [CUBE.get(name, [0, 255, 255]) + [255]] * 3
    mesh = trimesh.Trimesh(
        np.concatenate(vertices), np.arange(36).reshape(-1, 3), vertex_colors=colors, process=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)
