"""The files of other detectors, one parser a format: pictures or frames, and the people in each.

| format | how a file of it is told |
|---|---|
| OpenPose | `people` with `pose_keypoints_2d`; for a video a folder with a file a frame |
| COCO data set, results | `annotations` with `images`; a list with `image_id` |
| Detectron2 | a list with `image_id`; `pred_keypoints`, alone or in `instances` |
| AlphaPose | a list with `image_id` that is a name, a track in `idx`; `bodies` or `people` by name |
| MMPose | `keypoint_scores`; a video has `frame_id` and `instances`; a demo `instance_info`; `predictions` |
| Ultralytics (YOLO) | `keypoints` with `x`, `y` and `visible`; .txt, for a video a folder of NAME_1.txt |
| ViTPose | `skeleton` and `keypoints`, a list of frames {track: [[y, x, score], ...]} |
| VideoPose3D | npz with `positions_2d` and `metadata` |
| ours | `people` with `keypoints`, beside them `layout`, `size`, `K`, `distortion`; `frames` of such; npz |
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.data.arrays import read_npz
from dd3g.pose.detection.detected import KeypointFile, Seen, Someone, layout_by_count, stem
from dd3g.pose.detection.json_keypoints import parse_json

# Beside the keypoints, in npz files.
BESIDE = ("confidence", "layout", "size", "K", "distortion", "heatmaps", "boxes", "scores", "tracks")
# What programs that take a video apart call its frames.
FRAMES = ("", "frame", "frame_", "frame-", "img", "img_", "image", "image_")


def read_file(path: Path) -> KeypointFile:
    """Read a .json, .npz or .txt of any of the formats above; nothing is checked but its form.

    Raises:
        UserError: another suffix, damaged, or of no known form; FileNotFoundError and OSError as they are.
    """
    parse = PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"keypoints come as .json, .npz or .txt, not {path.suffix or 'that'}")
    return parse(path)


def read_folder(folder: Path, video: str) -> KeypointFile:
    """The frames of a video, one file each.

    Args:
        folder: the folder; it may hold those of other videos too. OpenPose counts the frames from 0,
            NAME_000000000000_keypoints.json, Ultralytics from 1, NAME_1.txt; frame_0001_keypoints.json and
            the like are of a video that was taken apart into pictures.
        video: name of the video without suffix.

    Raises:
        UserError: no such files, or one that cannot be read.
    """
    first: int | None
    for suffix, first in ((".json", 0), (".txt", 1)):
        if found := _counted(folder, suffix, [f"{video}_"], first):
            break
    else:
        first = None
        found = _counted(folder, ".json", FRAMES) or _counted(folder, ".txt", FRAMES)
    if not found:
        raise UserError(f"{folder} has no {video}_000000000000_keypoints.json or {video}_1.txt and the like")
    files, frames = [], []
    for number, path in sorted(found.items()):
        try:
            files.append(read_file(path))
        except UserError as e:
            raise UserError(f"{path.name}: {e}") from e
        people = [person for seen in files[-1].pictures for person in seen.people]
        frames.append(Seen(people, number=number))
    layouts = [files[0].layout, *(layout_by_count(seen.people) for seen in frames)]
    layout = next((name for name in layouts if name), None)
    return KeypointFile(frames, layout, True, files[0].beside, files[0].shares, first)


def _counted(folder: Path, suffix: str, names: Sequence[str], first: int = 0) -> dict[int, Path]:
    """The files whose names are one of these and a number, by that number."""
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, names))})(\d+)(?:_keypoints)?")
    matches = [(pattern.fullmatch(path.stem), path) for path in sorted(folder.glob(f"*{suffix}"))]
    return {int(match[1]): path for match, path in matches if match and int(match[1]) >= first}


def _npz(path: Path) -> KeypointFile:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "positions_2d" in arrays:
                return _videopose(path)
            if "keypoints" not in arrays:
                maps = ": heatmaps alone do not do" if "heatmaps" in arrays else ""
                raise UserError(f"no array 'keypoints' in it, only {', '.join(arrays) or 'nothing'}{maps}")
            points = np.asarray(arrays["keypoints"])
            content: dict[str, Any] = {name: arrays[name] for name in BESIDE if name in arrays}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as e:
        if "allow_pickle" in str(e):
            raise UserError("holds pickled objects, which are never read: save plain arrays") from e
        raise UserError(f"damaged or cut short ({e}): save or copy it again") from e
    layout = str(content.pop("layout")) if "layout" in content else None
    confidence, scores, tracks = (content.pop(name, None) for name in ("confidence", "scores", "tracks"))
    if points.ndim == 4:  # frames of a video, (frames, people, joints, 2 or 3)
        trust = confidence if confidence is not None else [[None] * points.shape[1]] * len(points)
        numbers = tracks if tracks is not None else [range(points.shape[1])] * len(points)
        frames = [
            Seen([Someone(p, c, None, int(t)) for p, c, t in zip(*row, strict=True) if np.isfinite(p).any()])
            for row in zip(points, trust, numbers, strict=True)
        ]
        return KeypointFile(frames, layout, True, content)
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3:
        raise UserError(f"keypoints must be (people, joints, 2 or 3), got {points.shape}")
    if not len(points):
        raise UserError("no person in it: nothing to estimate")
    trust = [None] * len(points)
    if confidence is not None:
        flat = confidence[None] if confidence.ndim == 1 else confidence
        if len(flat) != len(points):
            raise UserError(
                f"confidence must be {points.shape[:2]} like the keypoints, got {confidence.shape}"
            )
        trust = list(flat)
    sure = [None] * len(points) if scores is None else np.ravel(scores).tolist()
    if len(sure) != len(points):
        raise UserError(f"scores must be one for each of {len(points)} people, got {len(sure)}")
    people = [Someone(p, c, s) for p, c, s in zip(points, trust, sure, strict=True)]
    return KeypointFile([Seen(people)], layout, False, content, bare=True)


def _videopose(path: Path) -> KeypointFile:
    """VideoPose3D's custom data sets: positions_2d[video]["custom"] = [(T, 17, 2)], sizes in the metadata."""
    found = read_npz(path, ["positions_2d", "metadata"])
    videos, metadata = found["positions_2d"], found["metadata"]
    if not isinstance(videos, dict) or not videos:
        raise UserError("positions_2d must be {video: {'custom': [(frames, joints, 2)]}}, it has nothing")
    frames: list[Seen] = []
    for video, views in videos.items():
        take = next(iter(views.values())) if isinstance(views, dict) and views else None
        if not isinstance(take, list) or len(take) != 1 or np.ndim(take[0]) != 3:
            raise UserError("positions_2d must be {video: {'custom': [(frames, joints, 2)]}}")
        information = (metadata.get("video_metadata") or {}).get(video) or {}
        size = [information["w"], information["h"]] if {"w", "h"} <= set(information) else None
        frames += [
            Seen([Someone(points, track=0)] if np.isfinite(points).any() else [], None, size, i, stem(video))
            for i, points in enumerate(np.asarray(take[0]))
        ]
    layout = {"coco": "coco-17", "h36m": "h36m-17"}.get(str(metadata.get("layout_name")))
    return KeypointFile(frames, layout, True, first=0)


def _yolo(path: Path) -> KeypointFile:
    """A line a person: class, box (4), 17 times x, y or x, y, confidence; then the box's score and the track.

    Score and track are there where Ultralytics was asked for them.
    """
    people = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            values = [float(word) for word in line.split()]
        except ValueError as e:
            raise UserError(f"line {number} has something else than numbers: save it with save_txt") from e
        if not values:
            continue
        step = next((step for step in (3, 2) if 0 <= len(values) - 5 - 17 * step <= 2), None)
        if step is None:
            raise UserError(
                f"line {number} has {len(values)} numbers: a class, a box and 17 keypoints are 39 or 56; use "
                "a pose model of COCO's joints"
            )
        table = values[5 : 5 + 17 * step]
        after = values[5 + 17 * step :]
        # One number alone is a track where it is whole: a score of exactly 1 does not come out of a sigmoid.
        track = int(after.pop()) if after and after[-1] >= 1 else None
        rows = [table[i : i + step] for i in range(0, len(table), step)]
        people.append(Someone(rows, score=after[0] if after else None, track=track))
    return KeypointFile([Seen(people)], COCO_17.name, shares=True)


PARSERS = {".json": parse_json, ".npz": _npz, ".txt": _yolo}
