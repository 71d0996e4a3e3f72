"""Poses to look at: drawn into the picture or video, in three views, and on a page that shows them in 3D."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dd3g.io.atomic import replacing
from dd3g.pose.body.geometry import project
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.detection.frames import frames
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.request import ANIMATIONS

LEFT, RIGHT, MIDDLE = (38, 110, 230), (222, 60, 52), (70, 70, 76)
HEIGHT = 640
FINE = 2  # drawn twice as large and reduced, which smooths the lines
VIEWS = {"front": (0, 1), "side": (2, 1), "top": (0, 2)}  # camera axes to the right and down


def bone_colors() -> list[tuple[int, int, int]]:
    """A colour for each of `H36M_17.bones`: the person's left, right, or neither."""
    sides = {**dict.fromkeys(H36M_17.left, LEFT), **dict.fromkeys(H36M_17.right, RIGHT)}
    return [sides.get(child, MIDDLE) for _, child in H36M_17.bones]


def figure(people: Sequence[PersonHypotheses], picture: Image.Image | None) -> Image.Image:
    """The overlay on the left; on the right a row for each person with front, side and top view."""
    background = draw_overlay(people, picture)
    width = min(round(background.width * HEIGHT / background.height), 2 * HEIGHT)
    height = round(background.height * width / background.width)
    panel = 220
    whole = Image.new("RGB", (width + 3 * panel, max(height, len(people) * panel)), "white")
    whole.paste(background.resize((width, height), Image.Resampling.LANCZOS), (0, 0))
    for row, person in enumerate(people):
        for column, name in enumerate(VIEWS):
            whole.paste(draw_view(person, name, panel, row), (width + column * panel, row * panel))
    return whole


def draw_overlay(people: Sequence[PersonHypotheses], picture: Image.Image | None) -> Image.Image:
    """What was seen as dots, filled where confident, and the recommended poses as projected lines.

    Without a picture (RGB) it is drawn on grey.
    """
    if picture is None:
        picture = Image.new("RGB", people[0].detection.size if people else (HEIGHT, HEIGHT), (236, 236, 238))
    scale = 2 * HEIGHT / max(picture.size)
    image = picture.convert("RGB").resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.LANCZOS,
    )
    draw = ImageDraw.Draw(image)
    for i, person in enumerate(people):
        number = i if person.track is None else person.track
        detection = person.detection
        points = project(person.pose + person.translation, detection.K) * scale
        side = float(detection.square[2] - detection.square[0]) * scale
        width = max(2, round(side / 110))
        draw_skeleton(draw, points, width)
        radius = max(2.5, side / 130)
        keypoints = (detection.keypoints * scale).tolist()
        for (x, y), confidence in zip(keypoints, detection.confidence.tolist(), strict=True):
            if confidence > 0:
                box = (x - radius, y - radius, x + radius, y + radius)
                draw.ellipse(box, fill="white" if confidence > 0.5 else None, outline="black", width=1)
        head = points[10].tolist()
        draw.text(
            (head[0], max(14.0, head[1] - radius)),
            str(number),
            "white",
            ImageFont.load_default(26),
            anchor="mb",
            stroke_width=3,
            stroke_fill="black",
        )
    return image


def save_overlay(
    path: Path,
    people: Iterable[Sequence[PersonHypotheses]],
    folder: Path,
    stem: str,
    every: int,
    fps: float,
    tick: Callable[[int], None] = lambda count: None,
) -> str:
    """Write every n-th frame of a video with its people as `stem`.mp4, or `stem`.gif for an animation.

    `fps` are those of what is written; `tick` is called with 1 for every frame. Returns the file's name.
    """

    def draw() -> Iterator[Image.Image]:
        for here, (_, frame) in zip(people, frames(path, every), strict=False):
            yield draw_overlay(here, frame)
            tick(1)

    drawn = draw()
    if path.suffix.lower() in ANIMATIONS:
        small = [image.reduce(2) for image in drawn]
        small[0].save(
            folder / f"{stem}.gif", save_all=True, append_images=small[1:], duration=round(1000 / fps), loop=0
        )
        return f"{stem}.gif"
    from imageio.v2 import get_writer  # the one that takes frames one by one

    writer: Any = get_writer(
        folder / f"{stem}.mp4", format="FFMPEG", fps=fps, macro_block_size=2, ffmpeg_log_level="error"
    )
    with writer:
        for image in drawn:
            # The codec wants even sides.
            writer.append_data(np.asarray(image)[: image.height // 2 * 2, : image.width // 2 * 2])
    return f"{stem}.mp4"


def draw_view(person: PersonHypotheses, view: str, side: int, number: int = 0) -> Image.Image:
    """All hypotheses thin, the recommended pose thick, root in the middle, 2.2 m across."""
    size = side * FINE
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image, "RGBA")
    draw.rectangle((0, 0, size - 1, size - 1), outline=(225, 225, 228))
    axes = list(VIEWS[view])
    poses = torch.cat([person.hypotheses.poses[0], person.pose[None]])
    extent = max(1.1, 1.1 * float(poses.abs().amax()))
    flat = poses[..., axes] * size / (2 * extent) + size / 2
    if view == "top":  # the camera is below, so what is near comes low
        flat[..., 1] = size - flat[..., 1]
    m = len(flat) - 1
    for hypothesis in flat[:-1]:
        draw_skeleton(draw, hypothesis, FINE, max(14, min(120, 900 // m)))
    draw_skeleton(draw, flat[-1], 3 * FINE)
    text = (
        f"{number}  {view}" if view != "front" else f"{number}  front, ±{1000 * person.expected_error:.0f} mm"
    )
    draw.text((8 * FINE, 5 * FINE), text.replace(", ±nan mm", ""), MIDDLE, ImageFont.load_default(12 * FINE))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def draw_skeleton(draw: ImageDraw.ImageDraw, points: Tensor, width: int, alpha: int = 255) -> None:
    """Lines between joints (17, 2) px."""
    rows = [tuple(row) for row in points.clamp(-1e4, 1e4).tolist()]
    for (a, b), color in zip(H36M_17.bones, bone_colors(), strict=True):
        draw.line([rows[a], rows[b]], (*color, alpha) if alpha < 255 else color, width)


def save_viewer(
    frames: Iterable[Sequence[PersonHypotheses]], path: str | Path, title: str | None = None, fps: float = 0
) -> Path:
    """Write a self-contained page that shows the people in 3D: drag, zoom, spin; a video plays.

    Args:
        frames: the people of each frame; a picture is one frame, and shows the hypotheses too.
        path: the .html file.
        title: shown on the page; None takes the file's name.
        fps: frames a second; 0 for a picture.
    """
    path = Path(path)
    shown = escape(path.stem if title is None else title)
    template = Path(__file__).with_name("viewer.html").read_text("utf-8")
    above, below = (half.replace("{{title}}", shown) for half in template.split("{{data}}"))
    colors = ["#{:02x}{:02x}{:02x}".format(*c) for c in bone_colors()]
    opening = _compact({"bones": H36M_17.bones, "colors": colors})[:-1] + ',"frames":['
    with replacing(path) as part, part.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(above + opening)
        for i, people in enumerate(frames):
            drawn = []
            for p in people:
                poses = p.pose[None] if fps else torch.cat([p.pose[None], p.hypotheses.poses[0]])
                drawn.append((1000 * (poses + p.translation)).round().long().tolist())
            file.write(("," if i else "") + _compact(drawn))
        file.write(f'],"fps":{_compact(fps)}}}' + below)
    return path


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))
