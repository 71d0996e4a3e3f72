"""A self-contained page that shows people in 3D."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dd3g.io.atomic import replacing
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.export.figures import bone_colors
from dd3g.pose.hypotheses import PersonHypotheses


def save_viewer(
    frames: Iterable[Sequence[PersonHypotheses]],
    path: str | Path,
    title: str | None = None,
    fps: float = 0,
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
                poses = [p.pose] if fps else [p.pose, *p.hypotheses.poses[0]]
                millimetres = [(1000 * (pose + p.translation)).round().long() for pose in poses]
                drawn.append([points.tolist() for points in millimetres])
            file.write(("," if i else "") + _compact(drawn))
        file.write(f'],"fps":{_compact(fps)}}}' + below)
    return path


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))
