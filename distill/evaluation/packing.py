"""What an evaluation stores of an object: features and pictures as text, and the input; and its sheets."""

from __future__ import annotations

import base64
import io
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.io.atomic import replacing, write_text
from distill.evaluation.predictors import Drawing, Pictures, Target
from distill.pictures import on_white, pixels, save_contact_sheet

TURNS, TURN_SIZE, STRIP_SIZE = 16, 96, 96  # of the page's pictures
NOT_ON_SHEETS = ("all white", "flat card", "mean-colour blob", "true shape in our decoder")


def packed(features: Tensor | NDArray) -> str:
    """(V, D) features as text for JSON, in half precision."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(features, dtype=np.float16), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpacked(text: str) -> NDArray:
    """The features of `packed`, in single precision."""
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False).astype(np.float32)


def save_input(target: Target, folder: Path, name: str) -> None:
    """Write what other tools need: the input picture, and the cameras from which it is predicted.

    NAME.png is the input as fine as there is; NAME.json holds `fovy` in degrees, and the matrices `input` and
    `test` (4, 4 each), from the world of `Target.cameras` to OpenCV cameras.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, viewmats = target.cameras[target.rig[0]], target.cameras.viewmats
    half = 0.5 * target.size / float(first.Ks[1, 1])
    cameras = {
        "fovy": round(2 * math.degrees(math.atan(half)), 4),
        "input": viewmats[target.rig[0]].tolist(),
        "test": viewmats[target.novel].tolist(),
    }
    with replacing(folder / f"{name}.png") as part:
        Image.fromarray(pixels(target.finest.image)).save(part, "PNG")
    write_text(folder / f"{name}.json", json.dumps(cameras))


def png(tiles: Tensor) -> str:
    """(K, 3, S, S) in 0..1 side by side, as text for JSON."""
    return _encoded(torch.cat(list(tiles), 2), "PNG", compress_level=3)


def from_png(text: str) -> Tensor:
    """The tiles of `png`."""
    image = Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",))
    whole = torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255
    return torch.stack(whole.split(whole.shape[1], 2))


def strip(tiles: Tensor) -> str:
    """Tiles (6, 3, S, S) in a row for the page."""
    small = torch.nn.functional.interpolate(tiles, (STRIP_SIZE, STRIP_SIZE), mode="bilinear", antialias=True)
    return _webp(torch.cat(list(small), 2))


def turn(target: Target, drawing: Drawing) -> str | None:
    """Frames of a full turn side by side, for whatever can be seen from anywhere."""
    if isinstance(drawing, Pictures):
        return None
    first = target.cameras[target.rig[0]].resized(TURN_SIZE)
    distance = float(first.positions.norm())
    rig = Cameras.orbit([360 * k / TURNS for k in range(TURNS)], size=TURN_SIZE, radius=distance)
    cameras = replace(rig, Ks=first.Ks.expand_as(rig.Ks).clone(), near=first.near, far=first.far)
    at = replace(target, cameras=cameras, rgba=torch.zeros(TURNS, 4, TURN_SIZE, TURN_SIZE), finer=())
    return _webp(torch.cat(list(drawing(at, list(range(TURNS))).rgb), 2))


def _webp(rgb: Tensor) -> str:
    """(3, H, W) in 0..1 as a data address."""
    return "data:image/webp;base64," + _encoded(rgb, "WEBP", quality=80)


def _encoded(rgb: Tensor, format: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels(rgb)).save(buffer, format, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def save_sheets(folder: Path, objects: Iterable[Sequence[tuple[str, Tensor]]], page: int = 10) -> list[Path]:
    """Pictures of rows below the truth, `page` objects on each sheet.png, sheet-2.png and so on.

    Of each object come its name with its true views, then labels of rows with theirs, (6, 3, S, S) each, as
    of `sheet_views`.
    """
    left = iter(objects)
    paths: list[Path] = []
    while rows := [row for one in islice(left, page) for row in one]:
        shown = torch.stack([torch.stack([_label(name, tiles.shape[-1]), *tiles]) for name, tiles in rows])
        name = f"sheet-{len(paths) + 1}.png" if paths else "sheet.png"
        paths.append(save_contact_sheet(shown, folder / name))
    return paths


def sheet_views(target: Target) -> list[int]:
    """Indices of the views at azimuth 0, near 45, at 90, near 135, at 180 and at 270, or nearest to those."""
    positions = target.cameras.positions
    rig = target.rig if len(target.rig) == 4 else []

    def nearest(azimuth: float, among: list[int]) -> int:
        return among[int((positions[among] @ Cameras.orbit([azimuth]).positions[0]).argmax())]

    among = rig or [target.rig[0], *target.novel]
    front, right, back, left = (nearest(a, among) for a in (0.0, 90.0, 180.0, 270.0))
    return [front, nearest(45.0, target.novel), right, nearest(135.0, target.novel), back, left]


def true_tiles(target: Target) -> Tensor:
    """(6, 3, S, S) the views of `sheet_views`, with as many pixels as there are."""
    return on_white(target.finest.rgba[sheet_views(target)])


def titled_tiles(target: Target) -> Tensor:
    """`true_tiles`, each with its azimuth from the input in a corner."""
    size, titled = target.finest.size, []
    for view, tile in zip(sheet_views(target), true_tiles(target), strict=True):
        azimuth = round(float(target.azimuth[view])) % 360
        titled.append(_written(Image.fromarray(pixels(tile)), f"{azimuth}°", 2, size // 16))
    return torch.stack(titled)


def sheet_tiles(target: Target, drawing: Drawing) -> Tensor:
    """(6, 3, S, S) the predicted ones, white where there is none."""
    views, finest = sheet_views(target), target.finest
    found = drawing(finest, sorted(set(views)))
    shown = dict(zip(found.views, found.rgb, strict=True))
    return torch.stack([shown.get(v, torch.ones(3, finest.size, finest.size)) for v in views])


def evenly(there: int, count: int) -> list[int]:
    """At most `count` of so many indices, the first and the last among them, none twice."""
    count = min(count, there)
    return [round(i * (there - 1) / max(count - 1, 1)) for i in range(count)]


def _label(text: str, size: int) -> Tensor:
    """(3, size, size) tile with a word on it."""
    height = max(10, size // 13)
    lines = "\n".join(textwrap.wrap(text.replace("_", " "), max(2 * size // height, 1)))
    return _written(Image.new("RGB", (size, size), "white"), lines, size // 2 - height, height)


def _written(image: Image.Image, text: str, top: int, height: int) -> Tensor:
    """(3, H, W) picture with text at its left edge."""
    font = ImageFont.load_default(max(10, height))
    ImageDraw.Draw(image).multiline_text((2, top), text, fill="black", font=font)
    return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0) / 255
