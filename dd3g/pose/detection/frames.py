"""The frames of a video, and who is who in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dd3g.errors import UserError, first_line
from dd3g.pose.detection.blazepose import overlap
from dd3g.pose.detection.people import Detection, detect

SAME_TRACK = 0.3  # overlap of boxes in consecutive frames
FPS = 25.0  # where a file has no frame rate


def detect_frames(path: Path, every: int, focal: float | None) -> list[list[Detection]]:
    """The people of every n-th frame, each looked for first where they were in the frame before.

    Args:
        path: the video.
        every: n.
        focal: px.

    Raises:
        UserError: when the file cannot be read.
    """
    found: list[list[Detection]] = []
    for _, frame in frames(path, every):
        people = detect(frame, None, focal, tiles=False, before=found[-1] if found else ())
        people = people or detect(frame, None, focal)
        # Heatmaps of a long video would not fit into memory.
        found.append([replace(p, heatmaps=None, box=None) for p in people])
    return found


def tracks(frames: Iterable[Sequence[Detection]]) -> list[list[tuple[int, int]]]:
    """Follow people from frame to frame by the overlap of their squares, best overlap first.

    Returns:
        Tracks of (frame, index in the frame) in consecutive frames; someone who vanishes for a frame comes
        back as another track.
    """
    done: list[list[tuple[int, int]]] = []
    open_tracks: list[tuple[list[tuple[int, int]], np.ndarray]] = []
    for f, people in enumerate(frames):
        boxes = [p.square.numpy() for p in people]
        pairs = [
            (float(overlap(last, box)), t, i)
            for t, (_, last) in enumerate(open_tracks)
            for i, box in enumerate(boxes)
        ]
        used_tracks: set[int] = set()
        used_people: set[int] = set()
        following = []
        for share, t, i in sorted(pairs, reverse=True):
            if share < SAME_TRACK or t in used_tracks or i in used_people:
                continue
            used_tracks.add(t)
            used_people.add(i)
            following.append(([*open_tracks[t][0], (f, i)], boxes[i]))
        done += [track for t, (track, _) in enumerate(open_tracks) if t not in used_tracks]
        following += [([(f, i)], box) for i, box in enumerate(boxes) if i not in used_people]
        open_tracks = following
    return sorted(done + [track for track, _ in open_tracks])


def frames(path: Path, every: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Every n-th frame with its index, RGB.

    Raises:
        UserError: when the file cannot be read, or there is no video decoder.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path")
    try:
        if path.suffix.lower() == ".gif":
            with Image.open(path, formats=("GIF",)) as image:
                for i in range(0, getattr(image, "n_frames", 1), every):
                    image.seek(i)
                    yield i, image.convert("RGB")
            return
        for i, frame in enumerate(_imageio(path).imiter(path, plugin="FFMPEG")):
            if i % every == 0:
                yield i, Image.fromarray(np.ascontiguousarray(frame[..., :3]))
    except UserError:
        raise
    except Exception as e:
        # Decoders raise nearly every type there is on damaged files.
        reason = first_line(e)
        raise UserError(f"{path} cannot be read as a video ({reason}): save it as .mp4 and try again") from e


def frame_rate(path: Path) -> float:
    """Frames a second."""
    if path.suffix.lower() == ".gif":
        with Image.open(path, formats=("GIF",)) as image:
            return 1000 / max(10, image.info.get("duration", 1000 / FPS) or 1000 / FPS)
    return float(_imageio(path).immeta(path, plugin="FFMPEG").get("fps") or FPS)


def _imageio(path: Path) -> Any:
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401, what imageio reads videos with
    except ImportError as e:
        raise UserError(f"{path}: videos need the extra 'video': pip install 'dd3g[video]'") from e
    return imageio.v3
