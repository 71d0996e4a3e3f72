"""Rows of other tools: a folder with one file, or one folder of pictures, an object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.errors import UserError, first_line
from dd3g.gaussians import Gaussians
from dd3g.io.glb import holds_splats
from dd3g.io.splats import AXES, world_turn
from dd3g.picture.decoding import SUFFIXES
from distill.evaluation.predictors import Drawing, Pictures, Prediction, Target, drawing_of, mesh_drawing
from distill.evaluation.targets import frame
from distill.pictures import on_white

SPLATS, MESHES = (".ply", ".compressed.ply", ".splat", ".spz", ".sog"), (".obj",)  # .glb holds either
OBJECTS = (*SPLATS, ".glb", *MESHES)


@dataclass(frozen=True)
class Predictions:
    """A predictor that reads what another tool made of the input pictures."""

    name: str  # of the row
    # Holds `ID` with one of `OBJECTS` behind it, or a folder `ID` with one of these or with a picture for
    # each test view, in the protocol's order when sorted by name
    folder: Path
    # Of the files; "auto" believes a .ply's comment, and takes "opencv" for .ply and .splat, "opengl" for the
    # others
    axes: str = "auto"
    azimuth: float = 0.0  # where the tool's input camera stands in its world after `axes`, degrees
    elevation: float | None = None  # the same; None: the object stands upright, so that it is the true one
    radius: float = RADIUS  # distance of that camera, in units of the file
    fovy: float = FOVY  # its field of view, degrees

    def __call__(self, target: Target) -> Drawing:
        """The prediction of one object."""
        place = self.find(target.id)
        if place is None:
            raise UserError(f"{self.folder} has nothing for {target.id}")
        if place.is_dir():
            return _pictures(place, target)
        elevation = target.elevation if self.elevation is None else self.elevation
        rig = Cameras.orbit([self.azimuth], [elevation], 64, self.radius, self.fovy)
        turn, factor = frame(rig, 0)
        suffix = place.suffix.lower()
        try:
            if suffix in MESHES or (suffix == ".glb" and not holds_splats(place.read_bytes())):
                return mesh_drawing(_mesh(place, self.axes, turn, factor))
            gaussians = Gaussians.load(place, None if self.axes == "auto" or suffix == ".glb" else self.axes)
        except UserError:
            raise
        except Exception as error:  # a stranger's file can make a loader fail in any way
            raise UserError(f"{place} cannot be read: {first_line(error)}") from error
        if suffix == ".glb" and self.axes not in ("auto", "opengl"):
            gaussians = gaussians.transformed(world_turn(self.axes))
        if not len(gaussians):
            raise UserError(f"{place} holds no Gaussian whose numbers are all finite")
        return drawing_of(gaussians.transformed(turn, scale=factor))

    def find(self, id: str) -> Path | None:
        """The file or the folder of pictures of an object, or None."""
        for name in dict.fromkeys((id, id.replace("/", "-"), id.rpartition("/")[2])):
            for suffix in OBJECTS:
                if (path := self.folder / f"{name}{suffix}").is_file():
                    return path
            inside = self.folder / name
            if inside.is_dir():
                files = _objects_in(inside)
                if not files and not any(p.suffix.lower() in SUFFIXES for p in inside.iterdir()):
                    # TripoSR and SF3D number the pictures of each call: ID/0/mesh.glb.
                    files = [p for deeper in sorted(inside.iterdir()) for p in _objects_in(deeper)]
                if len(files) > 1:
                    names = ", ".join(p.relative_to(inside).as_posix() for p in files)
                    raise UserError(f"{inside} holds {names}: keep one of them")
                return files[0] if files else inside
        return None

    def check(self, ids: Sequence[str]) -> None:
        """Raise UserError when some objects have no prediction."""
        lacking = [id for id in ids if self.find(id) is None]
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            raise UserError(
                f"{self.name}: {self.folder} lacks {len(lacking)} of {len(ids)} objects: "
                f"{', '.join(lacking[:5])}{more}; expected NAME{', NAME'.join(OBJECTS)}, or a folder NAME"
            )


def parse_predictions(value: str) -> Predictions:
    """NAME=FOLDER[,axes=opengl][,azimuth=0][,elevation=0][,radius=1.5][,fovy=49.1] -> the row.

    Raises:
        UserError: another key, a wrong value, or no such folder.
    """
    name, equals, rest = value.partition("=")
    folder, *options = rest.split(",")
    if not equals or not folder:
        raise UserError(f"predictions {value!r}: give NAME=FOLDER")
    found: dict[str, Any] = {}
    for option in options:
        key, _, text = option.partition("=")
        if key == "axes" and text in ("auto", *AXES):
            found[key] = text
            continue
        try:
            number = found[key] = float(text)
        except ValueError as error:
            raise UserError(f"predictions {name}: {option!r} is not an option: {_OPTIONS}") from error
        if key not in _RANGES:
            raise UserError(f"predictions {name}: no option {key!r}: {_OPTIONS}")
        low, high = _RANGES[key]
        if not low < number < high:
            raise UserError(f"predictions {name}: {key} lies between {low:g} and {high:g}, not {number:g}")
    if not Path(folder).is_dir():
        raise UserError(f"predictions {name}: {folder} is not a folder")
    return Predictions(name, Path(folder), **found)


_RANGES = {
    "azimuth": (-math.inf, math.inf),
    "elevation": (-90, 90),
    "radius": (0, math.inf),
    "fovy": (0, 180),
}
_OPTIONS = (
    f"options are axes (auto, {', '.join(AXES)}), azimuth, elevation, radius and fovy, the last in numbers"
)


def _objects_in(folder: Path) -> list[Path]:
    there = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
    return [p for p in there if p.is_file() and p.suffix.lower() in OBJECTS]


def _pictures(folder: Path, target: Target) -> Drawing:
    from dd3g.picture import resize_rgba
    from dd3g.picture.decoding import read_rgba

    paths = sorted(p for p in folder.glob("[!.]*") if p.suffix.lower() in SUFFIXES)
    if len(paths) != len(target.novel):
        raise UserError(
            f"{folder} holds {len(paths)} pictures, and the protocol has {len(target.novel)} test views of "
            f"{target.id}: one for each is needed, or one of {', '.join(OBJECTS)}"
        )
    images = [np.asarray(read_rgba(path, str(path))) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape[0] != image.shape[1]:
            shape = f"{image.shape[1]} x {image.shape[0]}"
            raise UserError(f"{path} is {shape}: test views are square, at any number of pixels")
    solid = any(image[..., 3].min() < 255 for image in images)

    def draw(at: Target, views: list[int]) -> Prediction:
        chosen = [v for v in views if v in target.novel]
        sources = (torch.from_numpy(images[target.novel.index(v)].copy()) for v in chosen)
        small = [resize_rgba(rgba.movedim(-1, 0).float() / 255, at.size) for rgba in sources]
        rgba = torch.stack(small) if small else torch.zeros(0, 4, at.size, at.size)
        return Prediction(chosen, on_white(rgba), rgba[:, 3:] if solid else None)

    return Pictures(draw)


def _mesh(path: Path, axes: str, turn: Tensor, factor: float) -> Any:
    from dd3g.meshes.mesh import corner_normals, load_mesh

    mesh = load_mesh(path, normal=False)
    rotation = turn.double().numpy() @ world_turn("opengl" if axes == "auto" else axes).double().numpy()
    vertices = (factor * mesh.vertices.astype(np.float64) @ rotation.T).astype(np.float32)
    return replace(mesh, vertices=vertices, normals=corner_normals(vertices, mesh.faces))
