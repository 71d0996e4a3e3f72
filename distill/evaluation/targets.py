"""The objects of an evaluation: meshes drawn by the protocol, pictures with cameras, or renders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import ELEVATION, FOVY, RADIUS, Cameras
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.meshes.layouts import FoundObject, find_objects
from distill.evaluation.predictors import Target
from distill.evaluation.protocol import Protocol
from distill.samples.renders import RenderedObjects
from distill.simulation.inputs import seed_of

PROBES, PROBE_SIZE = 24, 128  # cameras that see a surface from all around


class Targets(Sequence[Target]):
    """Plain variants of the rendered objects, or the first of them, decoded when they are asked for.

    There is a folder of shards a size, of the same objects and views; the smallest is the protocol's.

    Raises:
        UserError: there is no plain variant, or the folders don't hold the same views.
    """

    layout = "renders"

    def __init__(self, sources: Sequence[Path], limit: int = 0) -> None:
        self._sources = sorted((_PlainRenders(source) for source in sources), key=lambda s: s.size)
        first = self._sources[0]
        if not first.indices:
            raise UserError(
                "there is no plain variant (variant 0) among these renders: render them with --eval"
            )
        for other in self._sources[1:]:
            if other.size == first.size:
                raise UserError(f"{other.source} and {first.source} have one size: give each size once")
            if other.views != first.views:
                raise UserError(
                    f"{other.source} does not hold the objects and views of {first.source}: render both from "
                    "the same meshes, with the same options but for --size"
                )
        self.ids: list[str] = [view[0] for view in first.views[: limit or None]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Target:  # type: ignore[override]
        index = range(len(self))[index]  # raises IndexError
        sizes = [source.renders[source.indices[index]] for source in self._sources]
        first = sizes[0]
        meta = first.meta
        if not meta["quads"] or not meta["novel"]:
            raise UserError(
                f"{meta.get('id')} has no quad or no novel views: render with --eval, or at "
                "least --quads 1 and --novel 1"
            )
        pictures = [(item.rgba.float() / 255, item.cameras) for item in sizes]
        hash, style = fingerprint(first.rgba.numpy().tobytes()), meta.get("style", "unknown")
        return assembled(meta["id"], style, pictures, meta["quads"][0], meta["novel"], hash)

    def files(self, index: int) -> list[Path]:
        """What an object is read from: the shards."""
        folders = [one.source for one in self._sources]
        return sorted(p for s in folders for p in (s.glob("*.tar") if s.is_dir() else [s]))

    def protocol(self, asked: Protocol) -> Protocol:
        """The protocol that these renders follow: `asked` where they are drawn so, another hash otherwise."""
        item = self._sources[0].renders[self._sources[0].indices[0]]
        meta, camera = item.meta, item.cameras[item.meta["quads"][0][0]]
        rings = [[meta["elevation"][v], 1, meta["azimuth"][v]] for v in meta["novel"]]
        first, half = meta["quads"][0][0], 0.5 * camera.height / float(camera.Ks[1, 1])
        there = replace(
            asked, sizes=[source.size for source in self._sources],
            test_rings=[[float(x) for x in ring] for ring in rings],
            input_azimuths=[float(meta["azimuth"][first])], input_elevation=float(meta["elevation"][first]),
            rig=len(meta["quads"][0]) == 4,
            fovy=round(2 * math.degrees(math.atan(half)), 3), radius=round(float(camera.positions.norm()), 3),
        )  # fmt: skip
        return there if there.hash == asked.hash else replace(there, name=f"renders as {asked.name}")


class _PlainRenders:
    """The plain variants (variant 0) of one size: which they are, and what must agree with other sizes."""

    def __init__(self, source: Path) -> None:
        self.source, self.renders = source, RenderedObjects(source)
        metas = [self.renders.meta(i) for i in range(len(self.renders))]
        self.size: int = metas[0]["size"]
        self.indices = [i for i, meta in enumerate(metas) if meta.get("variant", 0) == 0]
        keys = ("id", "azimuth", "elevation", "quads", "novel")
        self.views: list[tuple[Any, ...]] = [tuple(metas[i].get(key) for key in keys) for i in self.indices]


@dataclass(frozen=True)
class FoundTargets(Sequence[Target]):
    """Objects on disk, drawn or read when they are asked for."""

    found: Sequence[FoundObject]  # the objects, which hold meshes or views
    asked: Protocol  # the protocol

    @property
    def ids(self) -> list[str]:
        """Names of the objects."""
        return [o.id for o in self.found]

    @property
    def layout(self) -> str:
        """What the data set is called."""
        return self.found[0].layout.title

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Target:  # type: ignore[override]
        found = self.found[index]
        return drawn(found, self.asked) if found.layout.holds == "mesh" else seen(found, self.asked)

    def files(self, index: int) -> list[Path]:
        """What an object is read from."""
        return self.found[index].files()

    def protocol(self, asked: Protocol) -> Protocol:
        """The protocol itself; where the data bring their own views, it says so."""
        if self.found[0].layout.holds == "mesh":
            return asked
        return replace(asked, name=f"{asked.name}, own views", test_rings=[], geometry=False, rig=False)


def open_targets(
    source: Path | Sequence[Path], protocol: Protocol, layout: str = "auto", limit: int = 0
) -> tuple[Targets | FoundTargets, dict[str, str]]:
    """What is to be predicted, or the first of it, and why some objects of the folder are not.

    The source is a folder of a data set, see `find_objects`; or folders of renders by `dd3g data render`, one
    a size.

    Raises:
        UserError: no objects, not those of the protocol, or renders that do not belong together.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    rendered = [next(s.glob("*.tar"), None) is not None or s.suffix == ".tar" for s in sources]
    if all(rendered):
        return Targets(sources, limit), {}
    if len(sources) > 1:
        raise UserError(
            f"{sources[rendered.index(False)]} holds no renders: give one folder of a data set, or folders "
            "of renders only, one a size"
        )
    found, failed = find_objects(sources[0], layout, list(protocol.pinned()))
    return FoundTargets(found[: limit or None], protocol), failed


def drawn(found: FoundObject, protocol: Protocol) -> Target:
    """A mesh, drawn from the protocol's views.

    Raises:
        ValueError: when the mesh cannot be drawn.
    """
    from dd3g.meshes.rendering import Light, render_mesh

    p, mesh = protocol, found.mesh()
    hash = fingerprint(mesh.vertices.tobytes(), mesh.faces.tobytes(), *(t.tobytes() for t in mesh.textures))
    sides = np.ptp(mesh.vertices, 0)
    scale = p.extent / float(sides.max()) if p.box else p.extent
    mesh.vertices = mesh.vertices * np.float32(scale)
    side = float(sides.max()) * scale
    azimuth, elevation, rig, novel = plan(p, found.id)
    light = Light(
        p.light.ambient,
        np.array(p.light.directions, dtype=np.float64).reshape(-1, 3),
        np.repeat(np.array(p.light.colors, dtype=np.float64)[:, None], 3, 1),
    )
    pictures = []
    for size in p.sizes:
        cameras = Cameras.orbit(azimuth, elevation, size, p.radius, p.fovy)
        rgba, _ = render_mesh(mesh, cameras, light, supersample=p.supersample)
        if not rgba.any():
            raise ValueError("none of it is visible: its triangles have no area")
        pictures.append((torch.from_numpy(rgba).movedim(-1, 1).float() / 255, cameras))
    target = assembled(found.id, found.style, pictures, rig, novel, hash)
    if not p.geometry:
        return target
    probes = probe_cameras(1.1 * float(np.linalg.norm(mesh.vertices, axis=1).max()))
    _, depth = render_mesh(mesh, probes, light, supersample=1)
    turn, factor = frame(pictures[0][1], rig[0])
    from distill.evaluation.geometry import visible_points

    points = visible_points(torch.from_numpy(depth)[:, None], torch.from_numpy(depth > 0)[:, None], probes)
    moved = torch.cat([factor * points[:, :3] @ turn.T, points[:, 3:] @ turn.T], 1)
    return replace(target, surface=moved, side=factor * side)


def seen(found: FoundObject, protocol: Protocol) -> Target:
    """An object of a data set that brings its own pictures; the protocol says which one is the input."""
    from dd3g.meshes.views import read_views

    drawn = [read_views(found, size) for size in protocol.sizes]
    rgba, _ = drawn[-1]
    V, first = len(rgba), protocol.input_view
    if first >= V or V < 2:
        raise UserError(f"{found.path} has {V} views: the input is view {first}, and another must be left")
    hash = fingerprint((rgba * 255).round().byte().numpy().tobytes())
    novel = [v for v in range(V) if v != first]
    return assembled(found.id, found.style, drawn, [first], novel, hash)


def plan(protocol: Protocol, id: str) -> tuple[list[float], list[float], list[int], list[int]]:
    """Azimuths and elevations of all views of an object, its rig (the input first), and its test views."""
    p, choices = protocol, protocol.input_azimuths
    first, count = choices[seed_of(0, *id.encode()) % len(choices)], 4 if p.rig else 1
    rig = [((first + 90 * k) % 360, p.input_elevation) for k in range(count)]
    tests = [v for v in p.test_views() if abs(v[0] - first) > 1e-3 or abs(v[1] - p.input_elevation) > 1e-3]
    azimuth, elevation = map(list, zip(*rig, *tests, strict=True))
    return azimuth, elevation, list(range(count)), list(range(count, len(azimuth)))


def assembled(
    id: str,
    style: str,
    pictures: Sequence[tuple[Tensor, Cameras]],
    rig: list[int],
    novel: list[int],
    hash: str = "",
) -> Target:
    """A target in the world that its input picture defines, see `frame`; other arguments as its fields.

    Of each size there are pictures (V, 4, S, S), straight RGBA, and (V,) cameras of the same views.
    """
    made = []
    position = pictures[0][1].positions[rig[0]]
    elevation = round(math.degrees(math.asin(float(position[1] / position.norm()))), 3)
    for rgba, cameras in pictures:
        turn, factor = frame(cameras, rig[0])
        p = cameras.positions.double()
        azimuth = torch.rad2deg(torch.atan2(p[:, 0], p[:, 2]))
        distance = (azimuth - azimuth[rig[0]]).float()
        placed = moved(cameras, turn, factor)
        made.append(Target(id, style, rgba, placed, distance, rig, novel, hash=hash, elevation=elevation))
    return replace(made[0], finer=tuple(made[1:]))


def frame(cameras: Cameras, first: int) -> tuple[Tensor, float]:
    """Rotation (3, 3) and scale from the world of some cameras to the one that the input picture defines.

    There the input camera (view `first`) stands at azimuth 0 and elevation 10 and sees a frame as wide at the
    origin as the generator's camera does. Only for a camera at elevation 10 is the new world upright too.
    """
    position = cameras.positions[first].double()
    distance = float(position.norm())
    azimuth = float(torch.atan2(position[0], position[2]))
    tilt = math.asin(float(position[1]) / distance) - math.radians(ELEVATION)
    ca, sa = math.cos(azimuth), math.sin(azimuth)
    turn = torch.tensor([[ca, 0, -sa], [0, 1, 0], [sa, 0, ca]], dtype=torch.float64)
    if abs(tilt) > 1e-5:
        c, s = math.cos(tilt), math.sin(tilt)
        turn = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64) @ turn
    half = distance * 0.5 * cameras.width / float(cameras.Ks[first, 0, 0])
    factor = RADIUS * math.tan(math.radians(FOVY) / 2) / half
    return turn.float(), 1.0 if abs(factor - 1) < 1e-3 else factor


def moved(cameras: Cameras, turn: Tensor, factor: float) -> Cameras:
    """Cameras after x -> factor * turn @ x of their world; depth grows by the factor as well."""
    viewmats = cameras.viewmats.double().clone()
    viewmats[:, :3, :3] = viewmats[:, :3, :3] @ turn.double().T
    viewmats[:, :3, 3] *= factor
    distances = factor * cameras.positions.norm(dim=-1)
    near, far = max(0.05, float(distances.min()) - 1), float(distances.max()) + 1
    return replace(cameras, viewmats=viewmats.float(), near=near, far=far)


def probe_cameras(reach: float) -> Cameras:
    """(24,) cameras all around that see all within `reach` of the origin."""
    distance = 4.0 * reach
    cameras = Cameras.all_around(PROBES, PROBE_SIZE, distance, 2 * math.degrees(math.asin(1 / 4)))
    return replace(cameras, near=max(0.02, distance - 2 * reach), far=distance + 2 * reach)
