"""Videos: people followed over time, their poses refined together, and an overlay to watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dd3g.errors import UserError, first_line
from dd3g.pose.detection.blazepose import overlap
from dd3g.pose.detection.people import Detection, detect
from dd3g.pose.estimation import PersonHypotheses, lift
from dd3g.pose.export import results as export
from dd3g.pose.export.figures import draw_overlay

if TYPE_CHECKING:
    from dd3g.pose.__main__ import Request

SAME_TRACK = 0.3  # overlap of boxes in consecutive frames
CHUNK = 64  # frames of a track that are refined together
FPS = 25.0  # where a file does not tell


def estimate_video(path: Path, folder: Path, stem: str, request: Request) -> dict[str, Any]:
    """Everything for one video, written into `folder`.

    Returns:
        `{"people", "warnings", "files"}`; people counts tracks.

    Raises:
        UserError: a video that cannot be read, or nobody in it.
    """
    if request.keypoints is not None:
        raise UserError(f"{path}: --keypoints is for pictures; leave it out to look at the video")
    found: list[list[Detection]] = []
    for _, frame in frames(path, request.every):
        people = detect(frame, None, request.focal, tiles=False, before=found[-1] if found else ())
        people = people or detect(frame, None, request.focal)
        # Heatmaps of a long video would not fit into memory.
        found.append([replace(p, heatmaps=None, box=None) for p in people])
    if not any(found):
        raise UserError(f"no person was found in {path}: give a clearer video")
    fps = frame_rate(path) / request.every
    tracked = lift_tracks(found, request.method, request.m, request.seed)
    files = [f"{stem}.pose.json"]
    detection = next(p for people in found for p in people)
    content = {"video": str(path), "fps": fps, "every": request.every, "size": list(detection.size)}
    content |= export.head(request.method)
    content["frames"] = [
        {
            "index": i * request.every,
            "people": [
                {"track": track, **entry}
                for (track, _), entry in zip(
                    people, export.as_json([p for _, p in people], hypotheses=False), strict=True
                )
            ],
        }
        for i, people in enumerate(tracked)
    ]
    export.save_json(content, folder / files[0])
    files.append(
        _overlay(path, [[p for _, p in people] for people in tracked], folder, stem, request.every, fps)
    )
    if request.viewer:
        files.append(f"{stem}.pose.html")
        export.save_viewer([[p for _, p in people] for people in tracked], folder / files[-1], stem, fps)
    numbers = sorted({track for people in tracked for track, _ in people})
    for number in numbers:
        body = [p for people in tracked for track, p in people if track == number]
        name = stem if len(numbers) == 1 else f"{stem}-{number}"
        files += export.save_bodies(body, folder, f"{name}.pose", fps)
    return {"people": len(numbers), "warnings": [], "files": files}


def lift_tracks(
    frames: Sequence[Sequence[Detection]], method: str, m: int, seed: int = 0
) -> list[list[tuple[int, PersonHypotheses]]]:
    """The people of a video in 3D, each followed over time.

    Args:
        frames: the people of each frame.
        method: one of `METHODS`.
        m: hypotheses a person and frame.
        seed: of all draws.

    Returns:
        For each frame the people in it with their track's number, which stays the same over time.
    """
    result: list[list[tuple[int, PersonHypotheses]]] = [[] for _ in frames]
    for number, track in enumerate(tracks(frames)):
        for start in range(0, len(track), CHUNK):
            part = track[start : start + CHUNK]
            lifted = lift([frames[f][i] for f, i in part], method, m, seed, video=True)
            for (f, _), person in zip(part, lifted, strict=True):
                result[f].append((number, person))
    return result


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


def _overlay(path: Path, people: list[list[Any]], folder: Path, stem: str, every: int, fps: float) -> str:
    """The video again with the poses drawn in; an animation for an animation."""
    drawn = (draw_overlay(here, frame) for here, (_, frame) in zip(people, frames(path, every), strict=False))
    if path.suffix.lower() == ".gif":
        name = f"{stem}.pose.gif"
        small = [image.reduce(2) for image in drawn]
        small[0].save(
            folder / name, save_all=True, append_images=small[1:], duration=round(1000 / fps), loop=0
        )
        return name
    from imageio.v2 import get_writer  # the one that takes frames one by one

    name = f"{stem}.pose.mp4"
    writer: Any = get_writer(folder / name, format="FFMPEG", fps=fps, macro_block_size=2)
    with writer:
        for image in drawn:
            # The codec wants even sides.
            writer.append_data(np.asarray(image)[: image.height // 2 * 2, : image.width // 2 * 2])
    return name
