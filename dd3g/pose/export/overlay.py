"""A video again, with the poses drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dd3g.pose.detection.frames import frames
from dd3g.pose.export.figures import draw_overlay
from dd3g.pose.hypotheses import PersonHypotheses


def save_overlay(
    path: Path, people: Sequence[Sequence[PersonHypotheses]], folder: Path, stem: str, every: int, fps: float
) -> str:
    """Write `stem`.mp4, or `stem`.gif for an animation.

    Args:
        path: the video.
        people: those of every n-th frame.
        folder: where the file goes.
        stem: of its name.
        every: n.
        fps: frames a second of what is written.

    Returns:
        The file's name.
    """
    drawn = (draw_overlay(here, frame) for here, (_, frame) in zip(people, frames(path, every), strict=False))
    if path.suffix.lower() == ".gif":
        small = [image.reduce(2) for image in drawn]
        small[0].save(
            folder / f"{stem}.gif", save_all=True, append_images=small[1:], duration=round(1000 / fps), loop=0
        )
        return f"{stem}.gif"
    from imageio.v2 import get_writer  # the one that takes frames one by one

    writer: Any = get_writer(folder / f"{stem}.mp4", format="FFMPEG", fps=fps, macro_block_size=2)
    with writer:
        for image in drawn:
            # The codec wants even sides.
            writer.append_data(np.asarray(image)[: image.height // 2 * 2, : image.width // 2 * 2])
    return f"{stem}.mp4"
