"""What `dd3g evaluate` is asked for, and its protocol: all else that decides a number, with a hash.

Loads nothing heavy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from dd3g.command.configuration import find_config, parse
from dd3g.command.setting import check_ranges, setting
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.rig import ELEVATION, FOVY, RADIUS

CODE = 1  # raise it when a metric or the renderer changes what it says: old and new numbers must not mix
FOLDER = "evaluation"
# What holds for every protocol.
RULES = {
    "novel": "the test views, the input view is never among them; mean over views, then over objects",
    "psnr": "dB of RGB over white, per view; Gaussians are drawn antialiased, as their low-pass asks for",
    "foreground": "fg_psnr and fg_ssim over pixels whose true alpha exceeds 0.5",
    "ssim": "Gaussian window 11 x 11, sigma 1.5, full picture over white without the window's margin",
    "iou": "of alpha > 0.5",
    "holes": "share of the true mask with predicted alpha < 0.5; holes_eroded: mask shrunk by one pixel",
    "leak": "mean predicted alpha outside the true mask",
    "color_error": "mean absolute difference of the foregrounds' mean colours",
    "st_lpips": "ST-LPIPS with AlexNet (shift-tolerant; not LPIPS); st_lpips_S: at S pixels per side",
    "alpha_fuzz": "pixels with .05 < alpha < .95 beyond one pixel of the true and the predicted edge "
    "(alpha 0.5), by those of the true mask",
    "input": "the input view; psnr_S is measured at S pixels per side",
    "picture": "generators get the input as fine as it was rendered and reduce it themselves",
    "frame": "a method knows the input picture only: its world is turned and scaled so that the input camera "
    "becomes the generator's own (azimuth 0, elevation 10, the frame as wide at the origin)",
    "geometry": "points that 24 cameras around the object see, of truth and prediction alike; chamfer is the "
    "mean of both mean distances, f_T the F-score at distance T, normals the mean angle in degrees",
    "raw": "the network's own splats; without it, the solid body that `dd3g infer` writes",
    "inflated silhouette": "no network: the mask inflated, the picture in front and mirrored behind",
    "true shape in our decoder": "hull of all true masks, coloured in the same way: the ceiling",
    "teacher + LGM": "LGM's splats of the views in the row teacher; its seconds are without the teacher's",
    "seconds": "to predict an object, before any view of it is drawn",
    "peak_mb": "highest memory while an object is predicted: the process's on a CPU, the device's on CUDA",
    "bands": "by distance in azimuth from the input, degrees, lower end included",
    "interval": "95 % percentile bootstrap over objects, 2000 resamples",
    "rig": "front, sides (90 and 270 degrees) and back views at the input's elevation, where they were drawn",
}


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated by a protocol, and how; see `distill.evaluation.compare.evaluate`."""

    protocol: str = setting(
        "house", "house, grm, spar3d, syncdreamer, splatter, or a file; see docs/evaluation.md."
    )
    changes: list[str] = setting(
        [], "KEY=VALUE to change in the protocol; its hash changes too.", option="--set"
    )
    layout: str = setting(
        "auto", "Layout of the data set: auto, or gso, gso-zip, omniobject3d, ycb, nerf and so on."
    )
    generator: list[str] = setting([], "LABEL=NAME_OR_FOLDER, or just the name; may be repeated.")
    predictions: list[str] = setting(
        [], "NAME=FOLDER of another tool's results, with options: ,axes=opengl,elevation=0"
    )
    row: list[str] = setting([], "Another row, KIND=VALUE; see distill/evaluation/rows.py.")
    baselines: bool = setting(True, "Add the rows that need no network.")
    teacher: str | None = setting(None, "Teacher whose own views make a row.")
    teacher_steps: int | None = setting(None, "DDIM steps; default: the teacher's.", 1)
    guidance_scale: float | None = setting(None, "Guidance scale of the teacher; default: its own.")
    quadruples: Path | None = setting(
        None, "Held-out quadruples: generators against the teacher on the same noise."
    )
    size: int = setting(0, "Pixels per side of what is scored; 0: the protocol's.", 0)
    limit: int = setting(0, "Only the first objects (and quadruples); 0: all.", 0)
    seed: int = setting(0, "Seed of the noise and the bootstrap.", 0)
    seeds: int = setting(1, "Noises for each object; two or more show diversity and best-of-K.", 1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.")
    processes: int = setting(0, "Objects at a time; 0: one per core, one on a GPU.", 0)
    sheet_objects: int = setting(10, "Objects on contact sheets, ten each; 0: no sheet.", 0)
    page: bool = setting(True, "Write index.html.")

    @property
    def generators(self) -> dict[str, str]:
        """["A=path", "nano"] -> {"A": "path", "nano": "nano"}.

        Raises:
            UserError: when two share a label.
        """
        result: dict[str, str] = {}
        for value in self.generator:
            label, path = labelled(value)
            if label in result:
                raise UserError(f"two generators are called {label!r}: give each its own LABEL=PATH")
            result[label] = path
        return result

    @property
    def rows(self) -> list[str]:
        """Every row as KIND=VALUE, in the order of tables.

        Raises:
            UserError: when there is none.
        """
        rows = [
            *["baseline"] * self.baselines,
            *([f"teacher={self.teacher}"] if self.teacher else []),
            *self.row,
            *(f"predictions={words}" for words in self.predictions),
            *(f"generator={label}={path}" for label, path in self.generators.items()),
        ]
        if not rows:
            raise UserError("there is nothing to evaluate: give --generator, --predictions or --row")
        return rows


def labelled(value: str) -> tuple[str, str]:
    """Label and path: "A=path" -> A and path, "nano" -> nano twice."""
    label, _, path = value.partition("=")
    return label, path or value


def _check_numbers(name: str, values: list[float], least: float = -math.inf) -> None:
    """Raise ValueError for a number of a list that is not finite, or below the least."""
    for value in values:
        if not (value >= least and abs(value) < math.inf):
            raise ValueError(
                f"{name} must be finite numbers{f', at least {least:g}' * (least > -math.inf)}, got {value}"
            )


@dataclass
class LightSettings:
    """Light fixed in the world: shade = ambient + sum of color x max(0, n . direction), at most 1."""

    ambient: float = setting(0.55, "share that reaches every point", 0)
    directions: list[list[float]] = setting([[0.45, 0.7, 0.55], [-0.55, 0.3, -0.78]], "towards each light")
    colors: list[float] = setting([0.45, 0.2], "grey intensity of each light")

    def __post_init__(self) -> None:
        check_ranges(self, "light.")
        _check_numbers("light.colors", self.colors, 0)
        for direction in self.directions:
            _check_numbers("light.directions", direction)
            if len(direction) != 3 or not any(direction):
                raise ValueError(f"light.directions: each is [x, y, z], not all zero, got {direction}")
        if len(self.colors) != len(self.directions):
            raise ValueError(
                f"light.colors must be one for each of light.directions, got {len(self.colors)} for "
                f"{len(self.directions)}"
            )


@dataclass
class Protocol:
    """How objects become pictures, and pictures numbers."""

    name: str = setting("", "what tables call it")
    about: str = setting("", "whose protocol it is, and what it measures")
    chosen: list[str] = setting([], "what its source leaves open or does differently, and what is done here")
    sizes: list[int] = setting([256], "pixels per side; the first is scored, the last is the input's")
    fovy: float = setting(FOVY, "vertical field of view, degrees", 1, 179)
    radius: float = setting(RADIUS, "of the cameras' sphere", 0.01)
    extent: float = setting(0.55, "of the object: farthest vertex from the middle of its bounding box", 0.01)
    box: bool = setting(False, "extent is the longest side of the bounding box instead")
    input_azimuths: list[float] = setting([0.0], "of the input view; one is drawn for each object")
    input_elevation: float = setting(ELEVATION, "of the input view, degrees", -89, 89)
    rig: bool = setting(False, "draw and score the views at 90, 180 and 270 degrees from the input too")
    test_rings: list[list[float]] = setting(
        [], "test views: [elevation, number, first azimuth] of each ring; one at an input view is left out"
    )
    input_view: int = setting(0, "which one is the input, where a data set brings its own views", 0)
    light: LightSettings = field(default_factory=LightSettings)
    supersample: int = setting(4, "s x s samples per pixel", 1, 32)
    alignment: Literal["none", "input"] = setting(
        "none", "of every row to the input view's mask: none, or input (scale, and shift across the view)"
    )
    geometry: bool = setting(False, "compare surfaces too, where the data are meshes")
    geometry_side: float = setting(
        2.0, "longest side of the true surface in units of chamfer and F-score", 0.01
    )
    geometry_alignment: Literal["none", "icp"] = setting(
        "none", "of predicted surfaces: none, or icp (24 headings, then rigid ICP with scale)"
    )
    thresholds: list[float] = setting([0.1, 0.2, 0.5], "of the F-score")
    metrics: list[str] = setting(
        ["st-lpips"], "besides those of pixels: st-lpips, lpips-vgg, lpips-alex, clip, fid, kid"
    )
    objects: list[str] = setting([], "ids that must be present, each alone or as `id hash`; none: all")

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.input_azimuths:
            raise ValueError("input_azimuths must be one or more degrees, such as [0], got []")
        _check_numbers("input_azimuths", self.input_azimuths)
        _check_numbers("thresholds", self.thresholds, 1e-6)
        for ring in self.test_rings:
            _check_numbers("test_rings", ring)

    @property
    def hash(self) -> str:
        """16 hex digits of all that decides a number; prose does not."""
        decisive = {k: v for k, v in asdict(self).items() if k not in ("name", "about", "chosen")}
        return fingerprint(json.dumps([CODE, decisive], sort_keys=True))

    def pinned(self) -> dict[str, str]:
        """Id -> hash, or "" where any will do, of the objects that must be there; an id may hold spaces."""
        found = {}
        for line in self.objects:
            id, _, hash = line.strip().rpartition(" ")
            known = bool(id) and re.fullmatch("[0-9a-f]{16}", hash) is not None
            found[id.strip() if known else line.strip()] = hash if known else ""
        return found

    def test_views(self) -> list[tuple[float, float]]:
        """(azimuth, elevation) of each test view, degrees."""
        return [
            ((first + 360 * k / count) % 360, elevation)
            for elevation, count, first in self.test_rings
            for k in range(int(count))
        ]


def load_protocol(name: str, changes: Sequence[str] = (), size: int = 0) -> Protocol:
    """A protocol by the name of one that ships, or from a file.

    Args:
        name: "house", or the path of a YAML file.
        changes: "key=value" each; they change the hash.
        size: pixels per side of what is scored; 0 takes the protocol's.

    Raises:
        UserError: no such file, an unknown key, or a value that cannot be.
    """
    keys = ", ".join(f.name for f in fields(Protocol))
    words = ["--config", str(find_config(name, FOLDER)), *changes]
    protocol = parse(words, Protocol, f"keys are {keys}")
    from distill.evaluation.learned import METRICS

    for metric in protocol.metrics:
        if metric not in METRICS:
            raise UserError(f"{name}: no metric {metric!r}: choose from {', '.join(METRICS)}")
    if size:
        sizes = [size, *(larger for larger in protocol.sizes[1:] if larger > size)]
        protocol = replace(protocol, sizes=sizes)
    if not protocol.sizes or min(protocol.sizes) < 16 or sorted(set(protocol.sizes)) != protocol.sizes:
        raise UserError(f"{name}: sizes must rise from 16 pixels on (--size too), got {protocol.sizes}")
    if any(len(ring) != 3 or ring[1] < 1 for ring in protocol.test_rings) or not protocol.test_rings:
        raise UserError(f"{name}: each of test_rings is [elevation, number, first azimuth], at least one")
    return protocol
