"""What an evaluation stores of an object: features and pictures as text for JSON, and the input as files."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.io.atomic import replacing
from distill.evaluation.predictors import Drawing, Pictures, Target
from distill.pictures import pixels

TURNS, TURN_SIZE, STRIP_SIZE = 16, 96, 96  # of the page's pictures


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

    Args:
        target: the object.
        folder: for NAME.png, the input as fine as there is, and NAME.json: `fovy` in degrees, and the
            matrices `input` and `test` (4, 4 each), from the world of `Target.cameras` to OpenCV cameras.
        name: of both.
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
    with replacing(folder / f"{name}.json") as part:
        part.write_text(json.dumps(cameras))


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
    first = target.cameras[target.rig[0]]
    distance = float(first.positions.norm())
    rig = Cameras.orbit([360 * k / TURNS for k in range(TURNS)], size=TURN_SIZE, radius=distance)
    K = first.Ks * torch.tensor([TURN_SIZE / target.size, TURN_SIZE / target.size, 1.0])[:, None]
    cameras = replace(rig, Ks=K.expand_as(rig.Ks).clone(), near=first.near, far=first.far)
    at = replace(target, cameras=cameras, rgba=torch.zeros(TURNS, 4, TURN_SIZE, TURN_SIZE), finer=())
    return _webp(torch.cat(list(drawing(at, list(range(TURNS))).rgb), 2))


def _webp(rgb: Tensor) -> str:
    """(3, H, W) in 0..1 as a data address."""
    return "data:image/webp;base64," + _encoded(rgb, "WEBP", quality=80)


def _encoded(rgb: Tensor, format: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels(rgb)).save(buffer, format, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
