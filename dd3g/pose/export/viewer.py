"""A self-contained page that shows people in 3D."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from dd3g.io.atomic import replacing
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.export.figures import bone_colors
from dd3g.pose.hypotheses import PersonHypotheses


def save_viewer(
    frames: Sequence[Sequence[PersonHypotheses]], path: str | Path, title: str | None = None, fps: float = 0
) -> Path:
    """Write a self-contained page that shows the people in 3D: drag, zoom, spin; a video plays.

    Args:
        frames: the people of each frame; a picture is one frame.
        path: the .html file.
        title: shown on the page; None takes the file's name.
        fps: frames a second.
    """
    path = Path(path)
    drawn = [
        [
            [_millimetres((h + p.translation)[None])[0] for h in (p.pose, *p.hypotheses.poses[0])]
            if len(frames) == 1
            else [_millimetres((p.pose + p.translation)[None])[0]]
            for p in people
        ]
        for people in frames
    ]
    data = {
        "bones": H36M_17.bones,
        "colors": ["#{:02x}{:02x}{:02x}".format(*c) for c in bone_colors()],
        "frames": drawn,
        "fps": fps,
    }
    values = {
        "title": escape(path.stem if title is None else title),
        "data": json.dumps(data, separators=(",", ":")),
    }
    template = Path(__file__).with_name("viewer.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    with replacing(path) as part:
        part.write_bytes(page.encode("utf-8", "replace"))
    return path


def _millimetres(points: Tensor) -> list[Any]:
    return (points * 1000).round().long().tolist()
