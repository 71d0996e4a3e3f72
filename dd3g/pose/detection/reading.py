"""The files of other detectors, a picture or a frame at a time, checked; one parser a format.

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

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.data.arrays import read_npz
from dd3g.pose.detection.detected import NOBODY, KeypointFile, Seen, Someone, stem
from dd3g.pose.detection.json_keypoints import parse_json
from dd3g.pose.detection.keypoints import NEAREST, Keypoints, TooFewJointsError, checked

# Beside the keypoints, in npz files.
BESIDE = ("confidence", "layout", "size", "K", "distortion", "heatmaps", "boxes", "scores", "tracks")
# What programs that take a video apart call its frames.
FRAMES = ("", "frame", "frame_", "frame-", "img", "img_", "image", "image_")


def read_keypoints(
    path: str | Path,
    layout: str | None = None,
    picture: str | None = None,
    size: tuple[int, int] | None = None,
) -> Keypoints:
    """Read one picture's keypoints.

    Args:
        path: a file of any format in the table above.
        layout: one of `SKELETONS` or `WHOLE_BODY`; None takes the file's word, or the number of joints where
            only one layout has it.
        picture: its name without folder and suffix, for files of several pictures.
        size: (width, height) of the picture in px, for files whose places are shares of it.

    Raises:
        UserError: unreadable, truncated or pickled content, an unknown layout, a wrong number of joints, NaN
            at joints with confidence, confidences that are none, units other than pixels, or nobody with
            confidence in enough joints.
    """
    path = Path(path)
    with _named(path):
        content = read_file(path)
        if picture is None and len(content.pictures) > 1:
            what = "the frames of a video" if content.video else "several pictures"
            raise UserError(f"holds {what}: give it with --keypoints, beside what it was seen in")
        found = _checked(content, content.of(picture or path.stem), layout, size)
        if found is None:
            raise UserError(NOBODY)
        return found


def read_frames(
    path: str | Path, video: str, layout: str | None = None, size: tuple[int, int] | None = None
) -> VideoKeypoints:
    """Read a video's keypoints, frame by frame; None for frames without anybody.

    `path` may be a folder with a file a frame, `video` is a name without folder and suffix; the rest as for
    `read_keypoints`.

    Raises:
        UserError: see `read_keypoints`; what a frame's people are is checked when that frame is asked for.
    """
    path = Path(path)
    with _named(path):
        content = read_folder(path, video) if path.is_dir() else read_file(path)
        frames = content.frames(video)
        if not any(content.people(seen) for seen in frames):
            raise UserError(NOBODY)
        return VideoKeypoints(path, replace(content, pictures=[]), frames, layout, size)


@dataclass(frozen=True)
class VideoKeypoints(Sequence[Keypoints | None]):
    """The frames of a video as a file has them, checked one by one."""

    path: Path
    content: KeypointFile
    frames: list[Seen]
    layout: str | None
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: Any) -> Any:
        try:
            return _checked(self.content, self.frames[number], self.layout, self.size)
        except TooFewJointsError:
            return None  # someone who walks out of the picture
        except UserError as e:
            raise UserError(f"{self.path}: frame {number}: {e}") from e


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read, or holds what it should not."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: check the path") from e
    except OSError as e:
        raise UserError(
            f"{path} cannot be read ({e.strerror or e}): check the path and its permissions"
        ) from e


def _checked(
    content: KeypointFile, seen: Seen, layout: str | None, size: tuple[int, int] | None
) -> Keypoints | None:
    """The people of one picture of a file; None where there are none."""
    people = content.people(seen)
    if not people:
        return None
    beside = dict(content.beside)
    if seen.size is not None:
        beside["size"] = seen.size
    if content.shares:
        people, beside["size"] = _in_pixels(people, size), size
    layout = layout or content.layout
    if not layout and content.coco and len(people[0].points) == 17:
        layout = COCO_17.name
    return checked(people, layout, **beside)


def _in_pixels(people: list[Someone], size: tuple[int, int] | None) -> list[Someone]:
    """The same with places that were shares of the picture."""
    if size is None:
        raise UserError(
            "gives positions as fractions of the picture: give --size WIDTHxHEIGHT, or the picture"
        )
    shares = [np.array(person.points) for person in people]
    if max(np.abs(rows[:, :2]).max() for rows in shares) > NEAREST:
        raise UserError("its positions must be fractions of the picture, 0..1, as Ultralytics saves them")
    pixels = [rows * np.array([*size, 1])[: rows.shape[1]] for rows in shares]
    return [replace(person, points=rows) for person, rows in zip(people, pixels, strict=True)]


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

    def file(number: int) -> KeypointFile:
        try:
            return read_file(folder / found[number])
        except UserError as e:
            raise UserError(f"{found[number]}: {e}") from e

    def read(number: int) -> list[Someone]:
        content = file(number)
        return [person for seen in content.pictures for person in content.people(seen)]

    seen = [Seen((number,), number=number) for number in sorted(found)]
    return replace(file(min(found)), read=read, pictures=seen, video=True, first=first, bare=False)


def _counted(folder: Path, suffix: str, names: Sequence[str], first: int = 0) -> dict[int, str]:
    """The files whose names are one of these and a number, by that number."""
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, names))})(\d+)(?:_keypoints)?{re.escape(suffix)}")
    matches = (pattern.fullmatch(name) for name in sorted(os.listdir(folder)))
    return {number: match[0] for match in matches if match and (number := int(match[1])) >= first}


def _npz(path: Path) -> KeypointFile:
    """Our arrays: (people or frames, joints, 2 or 3), or (frames, people, joints, 2 or 3)."""
    content = _arrays(path)
    if "positions_2d" in content:
        return _videopose(path)
    points = content.pop("keypoints")
    layout = str(content.pop("layout")) if "layout" in content else None
    confidence, scores, tracks = (content.pop(name, None) for name in ("confidence", "scores", "tracks"))
    if points.ndim == 4:
        trust = confidence if confidence is not None else [[None] * points.shape[1]] * len(points)
        numbers = tracks if tracks is not None else [range(points.shape[1])] * len(points)

        def people(i: int) -> list[Someone]:
            row = zip(points[i], trust[i], numbers[i], strict=True)
            return [Someone(p, c, None, int(t)) for p, c, t in row if np.isfinite(p).any()]

        return KeypointFile(people, [Seen((i,)) for i in range(len(points))], layout, True, content)
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3:
        raise UserError(f"keypoints must be (people, joints, 2 or 3), got {points.shape}")
    if not len(points):
        raise UserError(NOBODY)
    trust = [None] * len(points) if confidence is None else list(np.atleast_2d(confidence))
    sure = [None] * len(points) if scores is None else np.ravel(scores).tolist()
    if len(trust) != len(points):
        raise UserError(f"confidence must be {points.shape[:2]} like the keypoints, got {confidence.shape}")
    if len(sure) != len(points):
        raise UserError(f"scores must be one for each of {len(points)} people, got {len(sure)}")

    def rows(i: int) -> list[Someone]:
        return [Someone(points[i], trust[i], sure[i], track=0)]

    return KeypointFile(rows, [Seen(range(len(points)))], layout, beside=content, bare=True)


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays that say something of keypoints, of a file that is whole and not pickled."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "positions_2d" in arrays:
                return {"positions_2d": None}  # pickled, see `_videopose`
            if "keypoints" not in arrays:
                maps = ": heatmaps alone are not enough" if "heatmaps" in arrays else ""
                raise UserError(f"no array 'keypoints' in it, only {', '.join(arrays) or 'nothing'}{maps}")
            return {name: np.asarray(arrays[name]) for name in ("keypoints", *BESIDE) if name in arrays}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as e:
        if "allow_pickle" in str(e):
            raise UserError("holds pickled objects, which are never read: save plain arrays") from e
        raise UserError(f"damaged or cut short ({e}): save or copy it again") from e


def _videopose(path: Path) -> KeypointFile:
    """VideoPose3D's custom data sets: positions_2d[video]["custom"] = [(T, 17, 2)], sizes in the metadata."""
    found = read_npz(path, ["positions_2d", "metadata"])
    videos, metadata = found["positions_2d"], found["metadata"]
    if not isinstance(videos, dict) or not videos:
        raise UserError("positions_2d must be {video: {'custom': [(frames, joints, 2)]}}, it has nothing")
    frames: list[Seen] = []
    rows: list[np.ndarray] = []
    for video, views in videos.items():
        take = next(iter(views.values())) if isinstance(views, dict) and views else None
        if not isinstance(take, list) or len(take) != 1 or np.ndim(take[0]) != 3:
            raise UserError("positions_2d must be {video: {'custom': [(frames, joints, 2)]}}")
        information = (metadata.get("video_metadata") or {}).get(video) or {}
        size = [information["w"], information["h"]] if {"w", "h"} <= set(information) else None
        name, before = stem(video), len(rows)
        rows.extend(np.asarray(take[0]))
        frames += [Seen((before + i,), None, size, i, name) for i in range(len(rows) - before)]

    def people(i: int) -> list[Someone]:
        return [Someone(rows[i], track=0)] if np.isfinite(rows[i]).any() else []

    layout = {"coco": "coco-17", "h36m": "h36m-17"}.get(str(metadata.get("layout_name")))
    return KeypointFile(people, frames, layout, True, first=0)


def _yolo(path: Path) -> KeypointFile:
    """A line a person: class, box (4), 17 times x, y or x, y, confidence; then the box's score and the track.

    Score and track are there where Ultralytics was asked for them.
    """
    people = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            values = [float(word) for word in line.split()]
        except ValueError as e:
            raise UserError(f"line {number} has something other than numbers: save it with save_txt") from e
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
    return KeypointFile.of_picture(people, layout=COCO_17.name, shares=True)


PARSERS = {".json": parse_json, ".npz": _npz, ".txt": _yolo}
