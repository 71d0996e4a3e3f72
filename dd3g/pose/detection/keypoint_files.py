"""The files of other detectors, one parser a format: pictures or frames, and the people in each.

| format | how a file of it is told |
|---|---|
| OpenPose | `people` with `pose_keypoints_2d`; for a video a folder with a file a frame |
| COCO data set, results; Detectron2 | `annotations` with `images`; a list with `image_id` |
| AlphaPose | a list with `image_id` that is a name, a track in `idx` |
| MMPose | `keypoint_scores`; a video has `frame_id` and `instances`, a demo `instance_info` and `meta_info` |
| Ultralytics (YOLO) | `keypoints` with `x`, `y` and `visible`; .txt, for a video a folder of NAME_1.txt |
| ViTPose | `skeleton` and `keypoints`, a list of frames {track: [[y, x, score], ...]} |
| VideoPose3D | npz with `positions_2d` and `metadata` |
| ours | `people` with `keypoints`, beside them `layout`, `size`, `K`, `distortion`; npz with `keypoints` |
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.data.arrays import read_npz

# Beside the keypoints, in npz files.
BESIDE = ("confidence", "layout", "size", "K", "distortion", "heatmaps", "boxes", "scores", "tracks")
LAYOUT_OF_COUNT = {
    18: "coco-18", 25: "openpose-25", 26: "halpe-26", 33: "blazepose-33", 133: "coco-wholebody-133",
    136: "halpe-136",
}  # fmt: skip


@dataclass(frozen=True)
class Someone:
    """A person as a file has them.

    Args:
        points: J rows of x and y, or of x, y and confidence.
        confidence: J numbers.
        score: how sure the detector is of the person.
        track: their number in a video.
    """

    points: Any
    confidence: Any = None
    score: float | None = None
    track: int | None = None


@dataclass(frozen=True)
class Seen:
    """The people in one picture or frame.

    Args:
        people: in the file's order.
        name: of the picture, without folder and suffix; None where the file does not say.
        size: (width, height) in px.
    """

    people: list[Someone]
    name: str | None = None
    size: Any = None


@dataclass(frozen=True)
class KeypointFile:
    """What a detector wrote.

    Args:
        pictures: or the frames of a video, in order.
        layout: of the joints; None where the file does not say.
        video: whether the pictures are the frames of a video.
        beside: `size`, `K`, `distortion`, `heatmaps` and `boxes` where the file has them.
        shares: whether places are shares of the picture's width and height, and not pixels.
    """

    pictures: list[Seen]
    layout: str | None = None
    video: bool = False
    beside: dict[str, Any] = field(default_factory=dict)
    shares: bool = False

    def of(self, picture: str) -> Seen:
        """The people in a picture, by its name without folder and suffix.

        Raises:
            UserError: several pictures, none of which has this name.
        """
        named = [seen for seen in self.pictures if seen.name is not None and _same(seen.name, picture)]
        if named:
            return replace(named[0], people=[p for seen in named for p in seen.people])
        if len(self.pictures) == 1:
            return self.pictures[0]
        names = [seen.name for seen in self.pictures if seen.name is not None]
        if self.video or not names:
            raise UserError(
                f"holds {len(self.pictures)} frames: give the video that they were seen in, not {picture}"
            )
        raise UserError(
            f"holds several pictures, none of which is {picture}: {', '.join(names[:4])}"
            f"{' …' if len(names) > 4 else ''}"
        )


def _same(name: str, picture: str) -> bool:
    """Whether these name one picture; COCO's results give 397133 for 000000397133.jpg."""
    if name.isdecimal() and picture.isdecimal():
        return int(name) == int(picture)
    return name == picture


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
            NAME_000000000000_keypoints.json, Ultralytics from 1, NAME_1.txt.
        video: name of the video without suffix.

    Raises:
        UserError: no such files.
    """
    found: dict[int, Path] = {}
    for suffix, first_frame in ((".json", 0), (".txt", 1)):
        for path in sorted(folder.glob(f"*{suffix}")) if not found else ():
            match = re.fullmatch(rf"{re.escape(video)}_(\d+)(_keypoints)?", path.stem)
            if match and int(match[1]) >= first_frame:
                found[int(match[1]) - first_frame] = path
    if not found:
        raise UserError(f"{folder} has no {video}_000000000000_keypoints.json or {video}_1.txt and the like")
    frames: list[Seen] = [Seen([]) for _ in range(max(found) + 1)]
    first = None
    for number, path in found.items():
        content = read_file(path)
        first = first or content
        frames[number] = content.pictures[0] if content.pictures else Seen([])
    assert first is not None
    layouts = [_layout_by_count(seen.people) for seen in frames]
    layout = first.layout or next((name for name in layouts if name), None)
    return KeypointFile(frames, layout, True, first.beside, first.shares)


def _json(path: Path) -> KeypointFile:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"not JSON, or cut short ({e}): save or copy it again") from e
    if isinstance(data, dict):
        for key, parse in (("annotations", _coco), ("instance_info", _mmpose_demo), ("skeleton", _vitpose)):
            if key in data:
                return parse(data)
        beside = {name: data[name] for name in BESIDE if data.get(name) is not None}
        layout = beside.pop("layout", None)
        people = _people(data.get("people"))
        openpose = any("pose_keypoints_2d" in p for p in data["people"] if isinstance(p, dict))
        if openpose and layout is None:
            layout = _layout_by_count(people)
        return KeypointFile([Seen(people)], layout, False, beside)
    if not isinstance(data, list):
        raise UserError("no list of people in it: see `dd3g pose --help` for the formats")
    if not data:
        raise UserError("no person in it: nothing to estimate")
    dicts = [entry for entry in data if isinstance(entry, dict)]
    if len(dicts) == len(data):
        if any("image_id" in entry for entry in dicts):
            return _results(dicts)
        if any("instances" in entry for entry in dicts):
            return _mmpose_video(dicts)
        people = _people(data)
        known = any({"keypoint_scores", "scores", "bbox", "box"} & set(entry) for entry in dicts)
        return KeypointFile([Seen(people)], _coco_or(people) if known else None)
    if all(isinstance(frame, list) and all(isinstance(p, dict) for p in frame) for frame in data):
        frames = [Seen(_people(frame)) for frame in data]  # Ultralytics, a list a frame
        return KeypointFile(frames, _coco_or(p for seen in frames for p in seen.people), True)
    return KeypointFile([Seen([Someone(points) for points in data])])


def _people(people: Any) -> list[Someone]:
    if not isinstance(people, list):
        raise UserError("no list of people in it: see `dd3g pose --help` for the formats")
    found = [_someone(p, i) for i, p in enumerate(people)]
    return [p for p in found if p is not None]


def _someone(person: Any, i: int) -> Someone | None:
    """One person; None for an empty entry, which OpenPose writes where a hand or face was all that it saw."""
    if isinstance(person, list):
        return Someone(person)
    values = person.get("pose_keypoints_2d", person.get("keypoints")) if isinstance(person, dict) else None
    if isinstance(values, dict) and "x" in values and "y" in values:  # Ultralytics
        table = [values["x"], values["y"], values.get("visible", [1.0] * len(values["x"]))]
        values = [list(row) for row in zip(*table, strict=False)]
    if not isinstance(values, list):
        raise UserError(f"person {i} has no list of 'keypoints'")
    if not values:
        return None
    given = [person.get(name) for name in ("confidence", "keypoint_scores", "scores", "keypoints_visible")]
    confidence = next((value for value in given if isinstance(value, list)), None)
    if not isinstance(values[0], list):  # x, y, confidence in turns, or x, y where those stand beside
        step = 2 if confidence is not None and len(values) == 2 * len(confidence) else 3
        values = [values[k : k + step] for k in range(0, len(values), step)]
    sure = [person.get(name) for name in ("score", "bbox_score", "confidence")]
    score = next((float(value) for value in sure if isinstance(value, int | float)), None)
    return Someone(values, confidence, score, _track(person))


def _track(person: dict[str, Any]) -> int | None:
    for name in ("track_id", "track", "idx", "person_id"):
        value = person.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, int | float) and value >= 0:  # OpenPose without tracking writes -1
            return int(value)
    return None


def _layout_by_count(people: Iterable[Someone]) -> str | None:
    return next((LAYOUT_OF_COUNT[n] for p in people if (n := len(p.points)) in LAYOUT_OF_COUNT), None)


def _coco_or(people: Iterable[Someone]) -> str | None:
    """COCO's order of 17, or what the number of joints tells."""
    people = list(people)
    return "coco-17" if any(len(p.points) == 17 for p in people) else _layout_by_count(people)


def _stem(name: Any) -> str:
    return Path(str(name).replace("\\", "/")).stem


def _coco(data: dict[str, Any]) -> KeypointFile:
    """A data set: annotations, images with names and sizes, the joints' names in the category."""
    images = {i.get("id"): i for i in data.get("images") or [] if isinstance(i, dict)}
    by_image: dict[Any, list[Any]] = {}
    for annotation in data["annotations"] if isinstance(data["annotations"], list) else []:
        by_image.setdefault(annotation.get("image_id") if isinstance(annotation, dict) else None, []).append(
            annotation
        )
    if not by_image:
        raise UserError("no person in it: nothing to estimate")
    pictures = []
    for key, people in by_image.items():
        image = images.get(key, {})
        size = [image["width"], image["height"]] if {"width", "height"} <= set(image) else None
        pictures.append(Seen(_people(people), _stem(image.get("file_name", key)), size))
    categories = [c for c in data.get("categories") or [] if isinstance(c, dict) and c.get("keypoints")]
    everyone = [p for seen in pictures for p in seen.people]
    if categories:
        return _named(KeypointFile(pictures), categories[0]["keypoints"])
    return KeypointFile(pictures, _coco_or(everyone))


def _results(entries: list[dict[str, Any]]) -> KeypointFile:
    """COCO results, Detectron2's, AlphaPose's: one entry a person, with the picture's id or name."""
    by_image: dict[Any, list[Any]] = {}
    for entry in entries:
        by_image.setdefault(entry.get("image_id"), []).append(entry)
    names = {key: _stem(key) for key in by_image}
    numbered = all(name.isdigit() for name in names.values())
    frames = len(by_image) > 1 and numbered and any(isinstance(key, str) for key in by_image)
    pictures = [Seen(_people(people), names[key]) for key, people in by_image.items()]
    everyone = [p for seen in pictures for p in seen.people]
    if frames:  # AlphaPose numbers the frames of a video: 0.jpg, 1.jpg, ...
        placed: list[Seen] = [Seen([]) for _ in range(max(int(name) for name in names.values()) + 1)]
        for seen in pictures:
            placed[int(seen.name or 0)] = seen
        pictures = placed
    return KeypointFile(pictures, _coco_or(everyone), frames)


def _mmpose_video(frames: list[dict[str, Any]], layout: str | None = None) -> KeypointFile:
    ordered = sorted(frames, key=lambda frame: frame.get("frame_id", 0))
    pictures = [Seen(_people(frame.get("instances"))) for frame in ordered]
    return KeypointFile(
        pictures, layout or _coco_or(p for s in pictures for p in s.people), len(pictures) > 1
    )


def _mmpose_demo(data: dict[str, Any]) -> KeypointFile:
    entries = data["instance_info"]
    if not isinstance(entries, list):
        raise UserError("'instance_info' is no list: save it again with --save-predictions")
    video = any(isinstance(e, dict) and "instances" in e for e in entries)
    found = _mmpose_video(entries) if video else KeypointFile([Seen(_people(entries))])
    names = (data.get("meta_info") or {}).get("keypoint_id2name")
    if not isinstance(names, dict):
        return replace(found, layout=_coco_or(p for s in found.pictures for p in s.people))
    return _named(found, _in_order(names))


def _vitpose(data: dict[str, Any]) -> KeypointFile:
    """easy_ViTPose: its keypoints are y, x, score."""
    frames = data.get("keypoints")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError("'keypoints' must be a list of frames {track: [[y, x, score], ...]}")
    pictures = []
    for frame in frames:
        people = []
        for track, rows in frame.items():
            turned = [[row[1], row[0], *row[2:]] for row in rows]
            people.append(Someone(turned, track=int(track) if str(track).isdigit() else None))
        pictures.append(Seen(people))
    return _named(KeypointFile(pictures, None, len(pictures) > 1), _in_order(data["skeleton"]))


def _in_order(names: dict[str, Any]) -> list[str]:
    return [str(names[key]) for key in sorted(names, key=int)]


def _named(found: KeypointFile, names: list[Any]) -> KeypointFile:
    """Joints that a file names, in the order of COCO-17, whatever their own.

    Raises:
        UserError: when a joint of COCO-17 is not among them.
    """
    own = [
        re.sub(r"^(left|right)_", lambda m: m[1][0] + "_", str(n).lower().replace(" ", "_")) for n in names
    ]
    missing = [joint for joint in COCO_17.joints if joint not in own]
    if missing:
        raise UserError(
            f"has no joint {', '.join(missing)}, only {', '.join(own)}: use a model of COCO's joints"
        )
    order = [own.index(joint) for joint in COCO_17.joints]

    def chosen(values: Any) -> Any:
        if values is None or len(values) < len(own):
            return values
        return [values[i] for i in order]

    def renamed(seen: Seen) -> Seen:
        people = [replace(p, points=chosen(p.points), confidence=chosen(p.confidence)) for p in seen.people]
        return replace(seen, people=people)

    return replace(found, pictures=[renamed(seen) for seen in found.pictures], layout=COCO_17.name)


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
    return KeypointFile([Seen(people)], layout, False, content)


def _videopose(path: Path) -> KeypointFile:
    """VideoPose3D's custom data sets: positions_2d[video]["custom"] = [(T, 17, 2)], sizes in the metadata."""
    found = read_npz(path, ["positions_2d", "metadata"])
    videos, metadata = found["positions_2d"], found["metadata"]
    if not isinstance(videos, dict) or len(videos) != 1:
        names = ", ".join(map(str, videos)) if isinstance(videos, dict) else "nothing"
        raise UserError(f"must hold one video, it has {names}: save one file a video")
    ((video, views),) = videos.items()
    take = next(iter(views.values())) if isinstance(views, dict) and views else None
    if not isinstance(take, list) or len(take) != 1 or np.ndim(take[0]) != 3:
        raise UserError("positions_2d must be {video: {'custom': [(frames, joints, 2)]}}")
    information = (metadata.get("video_metadata") or {}).get(video) or {}
    size = [information["w"], information["h"]] if {"w", "h"} <= set(information) else None
    layout = {"coco": "coco-17", "h36m": "h36m-17"}.get(str(metadata.get("layout_name")))
    frames = [Seen([Someone(points, track=0)], size=size) for points in np.asarray(take[0])]
    return KeypointFile(frames, layout, True)


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


PARSERS = {".json": _json, ".npz": _npz, ".txt": _yolo}
