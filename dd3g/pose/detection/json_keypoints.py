"""JSON of detectors: a picture's people, a video's frames, or a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.detection.detected import (
    LAYOUT_OF_COUNT,
    NOBODY,
    KeypointFile,
    Seen,
    Someone,
    coco_names,
    grouped,
    in_coco_order,
    numbered,
    stem,
)
from dd3g.pose.detection.long_json import Items, read_json

BESIDE = ("layout", "size", "K", "distortion", "heatmaps", "boxes")  # beside `people` in our own
POINTS = ("pose_keypoints_2d", "pose_keypoints", "keypoints", "joints")  # what files call a person's joints
LISTS = (list, Items)
UNKNOWN = "no list of people in it: see `dd3g pose --help` for the formats"


def parse_json(path: Path) -> KeypointFile:
    """Read any of them.

    Raises:
        UserError: no JSON, or of no known form.
    """
    try:
        data = read_json(path)
    except (ValueError, RecursionError) as e:
        raise UserError(f"not JSON, or cut short ({e}): save or copy it again") from e
    return _parsed(data)


def _parsed(data: Any) -> KeypointFile:
    if isinstance(data, dict):
        return _of_dict(data)
    if isinstance(data, Items) and data.names:
        return _of_names(data.names, data)
    if isinstance(data, LISTS):
        return _of_list(data)
    raise UserError(UNKNOWN)


def _of_dict(data: dict[str, Any]) -> KeypointFile:
    for key, parse in (("annotations", _coco), ("instance_info", _mmpose_demo), ("skeleton", _vitpose)):
        if key in data:
            return parse(data)
    if isinstance(data.get("predictions"), LISTS):  # MMPose's inferencer
        return _of_list(data["predictions"])
    if "instances" in data:  # one frame of MMPose's, or Detectron2's instances
        return _parsed(data["instances"])
    if isinstance(data.get("frames"), LISTS) or "people" in data or "bodies" in data:
        return _own(data)
    joints = data.get("pred_keypoints", data.get("keypoints"))
    if isinstance(joints, LISTS) and joints:
        if all(isinstance(frame, dict) for frame in joints):
            return _vitpose(data)
        if _depth(joints) == 3:
            return _of_arrays(data, joints)
    if any(name in data for name in POINTS):
        return _of_list([data])
    if data and all(isinstance(people, list | dict) for people in data.values()):
        return _of_names(list(data), list(data.values()))
    raise UserError(UNKNOWN)


def _own(data: dict[str, Any]) -> KeypointFile:
    """The people of a picture, or frames of such, and what stands beside them."""
    beside = {name: data[name] for name in BESIDE if data.get(name) is not None}
    layout = beside.pop("layout", None)
    frames = data.get("frames")
    if isinstance(frames, LISTS):
        seen = [
            Seen((i,), number=_number(frame.get("index", i)))
            for i, frame in enumerate(frames)
            if isinstance(frame, dict)
        ]
        return KeypointFile(lambda i: _people(frames[i].get("people")), seen, layout, True, beside, first=0)
    people = data.get("people", data.get("bodies"))
    people = _people([people] if isinstance(people, dict) else people)
    return KeypointFile.of_picture(people, layout=layout, beside=beside)


def _of_list(data: Sequence[Any]) -> KeypointFile:
    if not data:
        raise UserError(NOBODY)
    kinds = {type(entry) for entry in data}
    if kinds == {dict}:
        known = {name for entry in data for name in entry}
        if "image_id" in known:
            return _results(data)
        if "predictions" in known:  # MMPose's inferencer, called frame by frame
            return _of_batches(data)
        if "instances" in known:
            return _mmpose_video(data)
        tables = any(isinstance(entry.get("keypoints"), dict) for entry in data)  # Ultralytics
        coco = tables or bool({"keypoint_scores", "scores", "bbox", "box"} & known)
        return KeypointFile.of_picture(_people(data), coco=coco)
    if kinds != {list}:
        raise UserError(UNKNOWN)
    if all(isinstance(person, dict) for frame in data for person in frame):
        return _in_frames(len(data), lambda i: _people(data[i]))  # a list a frame, as of Ultralytics
    if _depth(data) == 2:  # one person's rows
        return KeypointFile.of_picture([Someone(data)])
    return KeypointFile(lambda i: [Someone(data[i], track=0)], [Seen(range(len(data)))], bare=True)


def _of_batches(data: Sequence[dict[str, Any]]) -> KeypointFile:
    """{"predictions": [people of a frame, ...]} a batch of frames."""

    def frames(batch: dict[str, Any]) -> list[Any]:
        return batch.get("predictions") or [[]]

    at = [(i, k) for i, batch in enumerate(data) for k in range(len(frames(batch)))]
    return _in_frames(len(at), lambda n: _people(frames(data[at[n][0]])[at[n][1]]))


def _in_frames(
    count: int, read: Callable[[int], list[Someone]], numbers: Callable[[int], Any] = lambda i: None
) -> KeypointFile:
    """The people of a frame an entry; one frame alone is a picture."""
    seen = [Seen((i,), number=_number(numbers(i))) for i in range(count)]
    return KeypointFile(read, seen, video=count > 1, coco=True)


def _of_arrays(data: dict[str, Any], joints: Sequence[Any]) -> KeypointFile:
    """Everyone's joints in one array, their confidences and scores in others: Detectron2, rtmlib."""
    given = [data.get(name) for name in ("keypoint_scores", "keypoints_scores", "scores")]
    trust = next((v for v in given if isinstance(v, LISTS) and v and isinstance(v[0], list)), ())
    sure = data["scores"] if isinstance(data.get("scores"), LISTS) else ()
    people = [
        Someone(points, c, float(score) if isinstance(score, int | float) else None)
        for points, c, score in zip_longest(joints, trust[: len(joints)], sure[: len(joints)])
    ]
    return KeypointFile.of_picture(people, coco=True)


def _of_names(names: Sequence[str], pictures: Sequence[Any]) -> KeypointFile:
    """People by the name or number of their picture; AlphaPose writes {"bodies": ...} for each."""

    def read(i: int) -> list[Someone]:
        entry = pictures[i]
        return _people(entry.get("people", entry.get("bodies")) if isinstance(entry, dict) else entry)

    seen = numbered([Seen((i,), stem(name)) for i, name in enumerate(names)])
    frames = len(seen) > 1 and all(stem(name).isdecimal() for name in names)
    return KeypointFile(read, seen, video=frames, coco=True)


def _dicts(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, LISTS) else iter(())


def _depth(values: Any) -> int:
    return 1 + _depth(values[0]) if isinstance(values, LISTS) and values else 0


def _number(value: Any) -> int | None:
    """A whole number, also where it is written as text."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return int(value) if isinstance(value, int | float) and value == value // 1 else None


def _people(people: Any, first: int = 0) -> list[Someone]:
    """The people of a list, whose entries are counted from `first` in what is said about them."""
    if not isinstance(people, LISTS):
        raise UserError(UNKNOWN)
    # Boxes without joints stand beside people in some files.
    some = any(any(name in p for name in POINTS) for p in _dicts(people))
    found = [
        _someone(p, i)
        for i, p in enumerate(people, first)
        if not (some and isinstance(p, dict) and all(p.get(name) is None for name in POINTS))
    ]
    return [p for p in found if p is not None]


def _someone(person: Any, i: int) -> Someone | None:
    """One person; None for an empty entry, which OpenPose writes where a hand or face was all that it saw."""
    if isinstance(person, list):
        return Someone(person)
    values = _first(person, POINTS, object) if isinstance(person, dict) else None
    if isinstance(values, dict):
        values = _columns(values)
    if not isinstance(values, LISTS):
        raise UserError(f"person {i} has no list of 'keypoints'")
    if not values:
        return None
    confidence = _first(person, ("confidence", "keypoint_scores", "scores", "keypoints_visible"), LISTS)
    if _depth(values) == 3 and len(values) == 1:
        values = values[0]
    if not isinstance(values[0], list):
        values = _table(values, confidence)
    score = _first(person, ("score", "bbox_score", "confidence"), (int, float))
    return Someone(values, confidence, None if score is None else float(score), _track(person))


def _first(person: dict[str, Any], names: Sequence[str], kinds: Any) -> Any:
    """The first entry of these names that is of these kinds; None where there is none."""
    given = (person.get(name) for name in names)
    return next((value for value in given if value is not None and isinstance(value, kinds)), None)


def _columns(values: dict[str, Any]) -> list[list[Any]] | None:
    """Rows of Ultralytics' columns `x`, `y` and `visible`."""
    x, y = values.get("x"), values.get("y")
    if not isinstance(x, list) or not isinstance(y, list):
        return None
    return [list(row) for row in zip(x, y, values.get("visible") or [1.0] * len(x), strict=False)]


def _table(values: Sequence[Any], confidence: Sequence[Any] | None) -> list[Sequence[Any]]:
    """Rows of x, y, confidence that stand in one list, or of x, y where confidences stand beside it."""
    known = (17, *LAYOUT_OF_COUNT)
    pairs = confidence is not None and len(values) == 2 * len(confidence)
    step = 2 if pairs or (len(values) // 3 not in known and len(values) // 2 in known) else 3
    return [values[k : k + step] for k in range(0, len(values), step)]


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
    entries = data["annotations"]
    if not isinstance(entries, LISTS):
        raise UserError("'annotations' is not a list: get the file again")
    categories = [c for c in _dicts(data.get("categories")) if c.get("keypoints")]
    joints = {c.get("id"): dict(enumerate(c["keypoints"])) for c in categories}
    bodies = {key: own for key, own in joints.items() if set(COCO_17.joints) <= set(coco_names(own.values()))}

    def people(kinds: Collection[Any] | None) -> Iterator[tuple[int, str]]:
        # Crowds and things have no joints.
        for i, entry in enumerate(entries):
            if isinstance(entry, dict) and entry.get("keypoints") is not None:
                if kinds is None or entry.get("category_id") in kinds:
                    yield i, str(entry.get("image_id"))

    # Hands and animals have joints too.
    by_image = grouped(people(bodies)) or grouped(people(None))
    if not by_image:
        raise UserError(NOBODY)
    pictures = _pictures(by_image, data.get("images"))
    found = KeypointFile(lambda i: _people([entries[i]], i), pictures, coco=True)
    names = next(iter((bodies or joints).values()), None)
    return in_coco_order(found, joints.get(entries[pictures[0].at[0]].get("category_id"), names))


def _pictures(by_image: dict[str, list[int]], images: Any) -> list[Seen]:
    """The pictures that entries are of, by id, with what a data set tells of them."""
    known = {}
    for image in _dicts(images):
        if (key := str(image.get("id"))) in by_image:
            size = (image["width"], image["height"]) if {"width", "height"} <= set(image) else None
            known[key] = stem(image.get("file_name", key)), size, _number(image.get("frame_id"))
    pictures = [Seen(at, *known.get(key, (stem(key),))) for key, at in by_image.items()]
    return numbered(pictures) if any(seen.number is None for seen in pictures) else pictures


def _results(entries: Sequence[dict[str, Any]]) -> KeypointFile:
    """COCO results, Detectron2's, AlphaPose's: one entry a person, with the picture's id or name."""
    by_image = grouped((i, entry.get("image_id")) for i, entry in enumerate(entries))
    pictures = numbered([Seen(at, stem(key)) for key, at in by_image.items()])
    # AlphaPose numbers the frames of a video from 0: 0.jpg, 1.jpg, ...
    frames = len(by_image) > 1 and all(isinstance(key, str) and stem(key).isdecimal() for key in by_image)
    return KeypointFile(
        lambda i: _people([entries[i]], i), pictures, video=frames, coco=True, first=0 if frames else None
    )


def _mmpose_video(frames: Sequence[dict[str, Any]]) -> KeypointFile:
    return _in_frames(
        len(frames), lambda i: _people(frames[i].get("instances") or []), lambda i: frames[i].get("frame_id")
    )


def _mmpose_demo(data: dict[str, Any]) -> KeypointFile:
    entries = data["instance_info"]
    if not isinstance(entries, LISTS):
        raise UserError("'instance_info' is not a list: save it again with --save-predictions")
    if any("instances" in entry for entry in _dicts(entries)):
        found = _mmpose_video(entries)
    else:
        found = KeypointFile.of_picture(_people(entries), coco=True)
    return in_coco_order(found, (data.get("meta_info") or {}).get("keypoint_id2name"))


def _vitpose(data: dict[str, Any]) -> KeypointFile:
    """easy_ViTPose: its keypoints are y, x, score."""
    frames = data.get("keypoints")
    if not isinstance(frames, LISTS) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError("'keypoints' must be a list of frames {track: [[y, x, score], ...]}")

    def read(i: int) -> list[Someone]:
        return [
            Someone([[row[1], row[0], *row[2:]] for row in rows], track=_track({"track": track}))
            for track, rows in frames[i].items()
        ]

    return in_coco_order(_in_frames(len(frames), read), data.get("skeleton"))
