"""What the command writes for a picture or a video: JSON, figure or overlay, page and posed skeletons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dd3g.io.atomic import replacing
from dd3g.pose.body.geometry import matrix_to_axis_angle
from dd3g.pose.body.skeletons import H36M_17, SMPL_24
from dd3g.pose.detection.frames import Clip
from dd3g.pose.export.figures import figure, save_overlay, save_viewer
from dd3g.pose.export.skeletons import save_bodies
from dd3g.pose.ground import Ground
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.request import RESULT, Request
from dd3g.pose.series import Track

FRAME = "camera: x right, y down, z forward, metres"
STILL = "taken as standing still; places are relative to it"
MOVING = "moves; places are relative to where it is in each frame"


def write_results(
    frames: Iterable[Sequence[PersonHypotheses]],
    tracks: Sequence[Track],
    path: Path,
    folder: Path,
    stem: str,
    request: Request,
    picture: Image.Image | None = None,
    clip: Clip | None = None,
    ground: Ground | None = None,
    tick: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write all files of a picture or a video, as `stem`.pose.json and so on.

    Args:
        frames: the people of every n-th frame of a video, with their tracks; or those of one picture.
        tracks: the same people, each over time.
        path: the input.
        folder: where the files go.
        stem: of their names.
        request: what to write, and n.
        picture: RGB, the background of the figure; None where only keypoints were given.
        clip: the video that the frames are of; None for a picture.
        ground: the floor of the video, where it was found.
        tick: called with 1 for every frame that is drawn.

    Returns:
        `{"people", "warnings", "files"}`: the number of people or tracks, and the files' names.
    """
    name = stem + RESULT
    fps = 0.0 if clip is None else clip.fps / request.every
    content: dict[str, Any] = {"size": None, **head(request.method)}
    warnings = []
    if clip is not None:
        content = {"video": str(path), "fps": fps, "every": request.every, **content, "size": list(clip.size)}
        content |= {"camera": MOVING if request.moving else STILL, "ground": _floor(ground)}
        content["frames"] = (
            {"index": i * request.every, "time": time, "people": [as_json(p, False) for p in people]}
            for i, (time, people) in enumerate(zip(clip.times[:: request.every], frames, strict=False))
        )
        files = [f"{name}.json", save_overlay(path, frames, folder, name, request.every, fps, tick)]
    else:
        (everyone,) = frames
        size = list(everyone[0].detection.size)
        content = {"picture": str(path), **content, "size": size, "people": [as_json(p) for p in everyone]}
        files = [f"{name}.json", f"{name}.png"]
        with replacing(folder / files[1]) as part:
            figure(everyone, picture).save(part, format="PNG")
        warnings = [f"{path}: person {i}: {w}" for i, p in enumerate(everyone) for w in p.detection.warnings]
    save_json(content, folder / files[0])
    if request.viewer:
        files.append(f"{name}.html")
        save_viewer(frames, folder / files[-1], stem, fps)
    for number, track in enumerate(tracks):
        own = name if len(tracks) == 1 else f"{stem}-{number}{RESULT}"
        files += save_bodies(track, folder, own, request.export, ground)
    return {"people": len(tracks), "warnings": warnings, "files": files}


def _floor(ground: Ground | None) -> dict[str, Any] | None:
    """The plane normal · x = -height of the camera frame, and the way into the world that stands on it."""
    if ground is None:
        return None
    world = {"R": ground.rotation, "t": ground.offset}
    names = "normal", "height", "spread", "seconds"
    return {**{name: getattr(ground, name) for name in names}, "world_from_camera": world}


def save_json(content: dict[str, Any], path: str | Path) -> Path:
    """Write standard JSON: no NaN, numbers with six digits.

    What is an iterator becomes a list; its items are written as they come, for an hour of video has many.
    """
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_encoded(content))
    return Path(path)


def head(method: str) -> dict[str, Any]:
    """What every result file begins with: joints, axes and units."""
    return {"method": method, "layout": H36M_17.name, "joints": list(H36M_17.joints), "frame": FRAME}


def as_json(person: PersonHypotheses, hypotheses: bool = True) -> dict[str, Any]:
    """2D, the recommended answer, all hypotheses, and the body where there is one."""
    d, h = person.detection, person.hypotheses
    result: dict[str, Any] = {} if person.track is None else {"track": person.track}
    result |= {name: getattr(d, name) for name in ("score", "keypoints", "confidence", "K", "K_source")}
    answer = "pose", "translation", "expected_error"
    result["recommended"] = {name: getattr(person, name) for name in answer}
    if hypotheses:
        # The root is on the pelvis' ray also where the method gave no translation of its own.
        where = [None] * h.poses.shape[1] if h.translation is None else h.translation[0]
        result["hypotheses"] = [
            {"pose": pose, "energy": energy, "translation": place}
            for pose, energy, place in zip(h.poses[0], h.energy[0], where, strict=True)
        ]
    if person.rotations is not None:
        rotations = matrix_to_axis_angle(person.rotations)
        result["body"] = {"joints": list(SMPL_24.joints), "rotations": rotations, "betas": person.betas}
    if d.warnings:
        result["warnings"] = list(d.warnings)
    return result


def _encoded(content: dict[str, Any]) -> Iterator[str]:
    for i, (key, value) in enumerate(content.items()):
        yield f"{', ' if i else '{'}{json.dumps(key)}: "
        if isinstance(value, Iterator):
            yield "["
            for k, item in enumerate(value):
                yield (", " if k else "") + json.dumps(_rounded(item), allow_nan=False)
            yield "]"
        else:
            yield json.dumps(_rounded(value), allow_nan=False)
    yield "}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
