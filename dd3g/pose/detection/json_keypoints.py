"""JSON of detectors: a picture's people, a video's frames, or a data set."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.detection.detected import (
    LAYOUT_OF_COUNT,
    KeypointFile,
    Seen,
    Someone,
    coco_or,
    layout_by_count,
    numbered,
    stem,
)

BESIDE = ("layout", "size", "K", "distortion", "heatmaps", "boxes")  # beside `people` in our own
POINTS = ("pose_keypoints_2d", "pose_keypoints", "keypoints", "joints")  # what files call a person's joints
UNKNOWN = "no list of people in it: see `dd3g pose --help` for the formats"


def parse_json(path: Path) -> KeypointFile:
    """Read any of them.

    Raises:
        UserError: no JSON, or of no known form.
    """
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"not JSON, or cut short ({e}): save or copy it again") from e
    return _parsed(data)


def _parsed(data: Any) -> KeypointFile:
    if isinstance(data, dict):
        return _of_dict(data)
    if isinstance(data, list):
        return _of_list(data)
    raise UserError(UNKNOWN)


def _of_dict(data: dict[str, Any]) -> KeypointFile:
    for key, parse in (("annotations", _coco), ("instance_info", _mmpose_demo), ("skeleton", _vitpose)):
        if key in data:
            return parse(data)
    if isinstance(data.get("predictions"), list):  # MMPose's inferencer
        return _of_list(data["predictions"])
    if "instances" in data:  # one frame of MMPose's, or Detectron2's instances
        return _parsed(data["instances"])
    beside = {name: data[name] for name in BESIDE if data.get(name) is not None}
    layout = beside.pop("layout", None)
    if isinstance(data.get("frames"), list):
        frames = [
            Seen(_people(frame.get("people")), number=_number(frame.get("index", i)))
            for i, frame in enumerate(data["frames"])
            if isinstance(frame, dict)
        ]
        return KeypointFile(frames, layout, True, beside, first=0)
    if "people" in data or "bodies" in data:
        entries = data.get("people", data.get("bodies"))
        people = _people([entries] if isinstance(entries, dict) else entries)
        if layout is None and any("keypoints" not in p for p in _dicts(entries)):
            layout = layout_by_count(people)  # OpenPose's
        return KeypointFile([Seen(people)], layout, False, beside)
    joints = data.get("pred_keypoints", data.get("keypoints"))
    if isinstance(joints, list) and joints:
        if all(isinstance(frame, dict) for frame in joints):
            return _vitpose(data)
        if _depth(joints) == 3:
            return _of_arrays(data, joints)
    if any(name in data for name in POINTS):
        return _of_list([data])
    if data and all(isinstance(people, list | dict) for people in data.values()):
        return _of_names(data)
    raise UserError(UNKNOWN)


def _of_list(data: list[Any]) -> KeypointFile:
    if not data:
        raise UserError("no person in it: nothing to estimate")
    dicts = _dicts(data)
    if len(dicts) == len(data):
        if any("image_id" in entry for entry in dicts):
            return _results(dicts)
        if all("predictions" in entry for entry in dicts):  # MMPose's inferencer, called frame by frame
            return _of_list([people for entry in dicts for people in entry["predictions"] or [[]]])
        if any("instances" in entry for entry in dicts):
            return _mmpose_video(dicts)
        people = _people(data)
        known = any({"keypoint_scores", "scores", "bbox", "box"} & set(entry) for entry in dicts)
        return KeypointFile([Seen(people)], coco_or(people) if known else None)
    if all(isinstance(frame, list) and len(_dicts(frame)) == len(frame) for frame in data):
        frames = [Seen(_people(frame)) for frame in data]  # a list a frame, as of Ultralytics
        return KeypointFile(frames, coco_or(p for seen in frames for p in seen.people), len(frames) > 1)
    if _depth(data) == 2:  # one person's rows
        return KeypointFile([Seen([Someone(data)])])
    return KeypointFile([Seen([Someone(points) for points in data])], bare=True)


def _of_arrays(data: dict[str, Any], joints: list[Any]) -> KeypointFile:
    """Everyone's joints in one array, their confidences and scores in others: Detectron2, rtmlib."""
    given = [data.get(name) for name in ("keypoint_scores", "keypoints_scores", "scores")]
    trust = next((v for v in given if isinstance(v, list) and v and isinstance(v[0], list)), None)
    sure = data.get("scores")
    people = []
    for i, points in enumerate(joints):
        score = sure[i] if isinstance(sure, list) and i < len(sure) else None
        people.append(
            Someone(
                points,
                trust[i] if trust is not None and i < len(trust) else None,
                float(score) if isinstance(score, int | float) else None,
            )
        )
    return KeypointFile([Seen(people)], coco_or(people))


def _of_names(data: dict[str, Any]) -> KeypointFile:
    """People by the name or number of their picture; AlphaPose writes {"bodies": ...} for each."""
    pictures = []
    for name, entry in data.items():
        people = entry.get("people", entry.get("bodies")) if isinstance(entry, dict) else entry
        pictures.append(Seen(_people(people), stem(name)))
    frames = len(pictures) > 1 and all(stem(name).isdecimal() for name in data)
    everyone = [p for seen in pictures for p in seen.people]
    return KeypointFile(numbered(pictures), coco_or(everyone), frames)


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _depth(values: Any) -> int:
    return 1 + _depth(values[0]) if isinstance(values, list) and values else 0


def _number(value: Any) -> int | None:
    """A whole number, also where it is written as text."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return int(value) if isinstance(value, int | float) and value == value // 1 else None


def _people(people: Any) -> list[Someone]:
    if not isinstance(people, list):
        raise UserError(UNKNOWN)
    # Boxes without joints stand beside people in some files.
    some = any(any(name in p for name in POINTS) for p in _dicts(people))
    found = [
        _someone(p, i)
        for i, p in enumerate(people)
        if not (some and isinstance(p, dict) and all(p.get(name) is None for name in POINTS))
    ]
    return [p for p in found if p is not None]


def _someone(person: Any, i: int) -> Someone | None:
    """One person; None for an empty entry, which OpenPose writes where a hand or face was all that it saw."""
    if isinstance(person, list):
        return Someone(person)
    given = [person.get(name) for name in POINTS] if isinstance(person, dict) else []
    values = next((value for value in given if value is not None), None)
    if isinstance(values, dict) and isinstance(values.get("x"), list) and isinstance(values.get("y"), list):
        seen = values.get("visible") or [1.0] * len(values["x"])  # Ultralytics
        values = [list(row) for row in zip(values["x"], values["y"], seen, strict=False)]
    if not isinstance(values, list):
        raise UserError(f"person {i} has no list of 'keypoints'")
    if not values:
        return None
    given = [person.get(name) for name in ("confidence", "keypoint_scores", "scores", "keypoints_visible")]
    confidence = next((value for value in given if isinstance(value, list)), None)
    if _depth(values) == 3 and len(values) == 1:
        values = values[0]
    if not isinstance(values[0], list):  # x, y, confidence in turns, or x, y where those stand beside
        step = 3
        if confidence is not None and len(values) == 2 * len(confidence):
            step = 2
        elif len(values) // 3 not in (17, *LAYOUT_OF_COUNT) and len(values) // 2 in (17, *LAYOUT_OF_COUNT):
            step = 2
        values = [values[k : k + step] for k in range(0, len(values), step)]
    sure = [person.get(name) for name in ("score", "bbox_score", "confidence")]
    score = next((float(value) for value in sure if isinstance(value, int | float)), None)
    return Someone(values, confidence, score, _track(person))


def _track(person: dict[str, Any]) -> int | str | None:
    for name in ("track_id", "track", "idx", "person_id"):
        value = person.get(name)
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        number = _number(value)
        if number is not None and number >= 0:  # OpenPose without tracking writes -1
            return number
        if isinstance(value, str) and value.strip() and not re.fullmatch(r"\s*-\d+\s*", value):
            return value.strip()
    return None


def _coco(data: dict[str, Any]) -> KeypointFile:
    """A data set: annotations, images with names and sizes, the joints' names in the categories."""
    images = {str(i.get("id")): i for i in data.get("images") or [] if isinstance(i, dict)}
    joints = {c.get("id"): c["keypoints"] for c in _dicts(data.get("categories")) if c.get("keypoints")}
    bodies = {key: names for key, names in joints.items() if not _missing(names)}
    # Hands and animals have joints too, crowds and things have none.
    entries = [a for a in _dicts(data["annotations"]) if a.get("keypoints") is not None]
    entries = [a for a in entries if a.get("category_id") in bodies] or entries
    by_image: dict[str, list[Any]] = {}
    for annotation in entries:
        by_image.setdefault(str(annotation.get("image_id")), []).append(annotation)
    if not by_image:
        raise UserError("no person in it: nothing to estimate")
    pictures = []
    for key, people in by_image.items():
        image = images.get(key, {})
        size = [image["width"], image["height"]] if {"width", "height"} <= set(image) else None
        name = stem(image.get("file_name", key))
        pictures.append(Seen(_people(people), name, size, _number(image.get("frame_id"))))
    if any(seen.number is None for seen in pictures):
        pictures = numbered(pictures)
    everyone = [p for seen in pictures for p in seen.people]
    if joints:
        names = next(iter((bodies or joints).values()))
        return _named(KeypointFile(pictures), joints.get(entries[0].get("category_id"), names))
    return KeypointFile(pictures, coco_or(everyone))


def _results(entries: list[dict[str, Any]]) -> KeypointFile:
    """COCO results, Detectron2's, AlphaPose's: one entry a person, with the picture's id or name."""
    by_image: dict[Any, list[Any]] = {}
    for entry in entries:
        by_image.setdefault(entry.get("image_id"), []).append(entry)
    pictures = numbered([Seen(_people(people), stem(key)) for key, people in by_image.items()])
    everyone = [p for seen in pictures for p in seen.people]
    # AlphaPose numbers the frames of a video from 0: 0.jpg, 1.jpg, ...
    frames = len(by_image) > 1 and all(isinstance(key, str) and stem(key).isdecimal() for key in by_image)
    return KeypointFile(pictures, coco_or(everyone), frames, first=0 if frames else None)


def _mmpose_video(frames: Sequence[dict[str, Any]], layout: str | None = None) -> KeypointFile:
    pictures = [
        Seen(_people(frame.get("instances") or []), number=_number(frame.get("frame_id"))) for frame in frames
    ]
    everyone = [p for seen in pictures for p in seen.people]
    return KeypointFile(pictures, layout or coco_or(everyone), len(pictures) > 1)


def _mmpose_demo(data: dict[str, Any]) -> KeypointFile:
    entries = data["instance_info"]
    if not isinstance(entries, list):
        raise UserError("'instance_info' is no list: save it again with --save-predictions")
    video = any("instances" in entry for entry in _dicts(entries))
    found = _mmpose_video(_dicts(entries)) if video else KeypointFile([Seen(_people(entries))])
    names = (data.get("meta_info") or {}).get("keypoint_id2name")
    if not isinstance(names, dict):
        return replace(found, layout=coco_or(p for s in found.pictures for p in s.people))
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
            people.append(Someone(turned, track=_track({"track": track})))
        pictures.append(Seen(people))
    found = KeypointFile(pictures, coco_or(p for s in pictures for p in s.people), len(pictures) > 1)
    names = data.get("skeleton")
    return _named(found, _in_order(names)) if isinstance(names, dict) else found


def _in_order(names: dict[str, Any]) -> list[str]:
    return [str(names[key]) for key in sorted(names, key=int)]


def _cocos(names: Sequence[Any]) -> list[str]:
    """Names of joints as COCO_17 has them."""
    lower = (str(name).lower().replace(" ", "_") for name in names)
    return [re.sub(r"^(left|right)_", lambda m: m[1][0] + "_", name) for name in lower]


def _missing(names: Sequence[Any]) -> list[str]:
    """The joints of COCO-17 that are not among these."""
    return [joint for joint in COCO_17.joints if joint not in _cocos(names)]


def _named(found: KeypointFile, names: Sequence[Any]) -> KeypointFile:
    """Joints that a file names, in the order of COCO-17, whatever their own.

    Raises:
        UserError: when a joint of COCO-17 is not among them.
    """
    own = _cocos(names)
    if missing := _missing(names):
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
