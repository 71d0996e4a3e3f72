"""Keypoints of any detector from JSON or npz: one parser a format, and one check of what they read."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import skeleton, to_h36m

MIN_JOINTS = 4
FARTHEST = 1e6  # px that a keypoint may lie from the picture's corner; NaN is farther
LAYOUT_OF_COUNT = {25: "openpose-25", 33: "blazepose-33"}
BESIDE = ("confidence", "layout", "size", "K", "heatmaps", "boxes", "scores")  # the keypoints, in npz files


@dataclass(frozen=True)
class Keypoints:
    """The output of a detector for the people in one picture.

    Args:
        points: (P, 17, 2) px of the full picture, H36M-17; 0 where the confidence is 0.
        confidence: (P, 17) in 0..1.
        size: (width, height) of the picture in px; None when it is not in the file.
        K: (3, 3) px; None when it is not in the file.
        heatmaps: (P, 17, h, w) >= 0.
        boxes: (P, 4) left, top, right, bottom of the heatmaps in px.
        scores: (P,) how sure the detector is of each person.
        warnings: sentences for the user about people that are left out, having too few joints.
    """

    points: Tensor  # (P, 17, 2)
    confidence: Tensor  # (P, 17)
    size: tuple[int, int] | None = None
    K: Tensor | None = None  # (3, 3)
    heatmaps: Tensor | None = None  # (P, 17, h, w)
    boxes: Tensor | None = None  # (P, 4)
    scores: Tensor | None = None  # (P,)
    warnings: tuple[str, ...] = ()


def read_keypoints(path: str | Path, layout: str | None = None) -> Keypoints:
    """Read one picture's keypoints.

    JSON may be OpenPose's ({"people": [{"pose_keypoints_2d": [x, y, c, ...]}]}), COCO's annotations or
    results ([{"keypoints": [x, y, v, ...]}]), or {"layout", "size": [w, h], "K": 3x3, "people":
    [{"keypoints": [[x, y], ...], "confidence": [...]}]}, of which only the people are needed. An npz holds
    `keypoints` (P, J, 2) or (P, J, 3), and may hold `confidence` (P, J), `layout`, `size`, `K`, and
    `heatmaps` (P, 17, h, w) with `boxes` (P, 4).

    Args:
        path: the file.
        layout: one of `SKELETONS`; None takes the file's word, or the number of joints where only one layout
            has it.

    Raises:
        UserError: unreadable, truncated or pickled content, an unknown layout, a wrong number of joints, NaN
            at joints with confidence, or nobody with confidence in enough joints.
    """
    path = Path(path)
    parse = PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"{path}: keypoints come as {' or '.join(PARSERS)}, not {path.suffix or 'that'}")
    try:
        content = parse(path)
        return checked(**content | {"layout": layout or content.get("layout")})
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: check the path") from e
    except OSError as e:
        reason = e.strerror or e
        raise UserError(f"{path} cannot be read ({reason}): check the path and its permissions") from e
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def checked(
    points: Any,
    confidence: Any = None,
    layout: str | None = None,
    size: Any = None,
    K: Any = None,
    heatmaps: Any = None,
    boxes: Any = None,
    scores: Any = None,
) -> Keypoints:
    """Check keypoints of any layout and turn them into the canonical one, H36M-17.

    Args:
        points: (P, J, 2) or (P, J, 3) with confidences, or without P; array-like.
        confidence: (P, J) or (J,).
        layout: name of the layout; None infers it from J.
        size: (width, height).
        K: (3, 3).
        heatmaps: (P, 17, h, w).
        boxes: (P, 4).
        scores: (P,).

    Raises:
        UserError: see `read_keypoints`.
    """
    xy, trust = _points(points, confidence)
    layout = str(layout) if layout else _layout_of(xy.shape[1])
    canonical, seen = to_h36m(xy, trust, layout)
    broken = (~(xy.abs() < FARTHEST).all(-1) & (trust > 0)).nonzero()
    if len(broken):
        person, joint = broken[0].tolist()
        raise UserError(
            f"joint {skeleton(layout).joints[joint]} of person {person} is not a number of pixels: give it "
            "confidence 0 where the detector missed it"
        )
    maps, squares = (None, None) if heatmaps is None else _heatmaps(heatmaps, boxes, len(xy))
    sure = None if scores is None else _numbers(scores, "scores").flatten()
    if sure is not None and len(sure) != len(xy):
        raise UserError(f"scores must be one for each of {len(xy)} people, got {len(sure)}")
    counts = (seen > 0).sum(-1)
    keep = counts >= MIN_JOINTS
    few = [
        f"person {i} has {f'only {counts[i]} of 17 joints' if counts[i] else 'confidence 0 everywhere'}"
        for i in (~keep).nonzero()[:, 0].tolist()
    ]
    if not keep.any():
        raise UserError(f"{few[0]}: give at least {MIN_JOINTS}")
    return Keypoints(
        canonical[keep],
        seen[keep],
        None if size is None else _size(size),
        None if K is None else _camera(K),
        None if maps is None else maps[keep],
        None if squares is None else squares[keep],
        None if sure is None else sure[keep],
        tuple(f"{person}, and is left out: {MIN_JOINTS} are needed" for person in few),
    )


def _points(points: Any, confidence: Any) -> tuple[Tensor, Tensor]:
    """Pixels (P, J, 2) and confidences (P, J) in 0..1."""
    xy = _numbers(points, "keypoints")
    xy = xy[None] if xy.dim() == 2 else xy
    if xy.dim() != 3 or xy.shape[-1] not in (2, 3):
        raise UserError(f"keypoints must be (people, joints, 2 or 3), got {tuple(xy.shape)}")
    if not len(xy):
        raise UserError("no person in it: nothing to estimate")
    if confidence is not None:
        c = _numbers(confidence, "confidence")
        c = c.reshape(xy.shape[:2]) if c.numel() == xy[..., 0].numel() else c
    elif xy.shape[-1] == 3:
        c = xy[..., 2]
    else:
        # Detectors that give no confidence write a joint that they missed as (0, 0).
        c = (xy != 0).any(-1).float()
    if c.shape != xy.shape[:2]:
        raise UserError(f"confidence must be {tuple(xy.shape[:2])} like the keypoints, got {tuple(c.shape)}")
    # COCO's flags are 0 (not labelled), 1 (hidden), 2 (visible).
    return xy[..., :2], torch.where(torch.isnan(c), 0.0, c).clamp(0, 1)


def _heatmaps(heatmaps: Any, boxes: Any, people: int) -> tuple[Tensor, Tensor]:
    """Heatmaps (P, 17, h, w) and their boxes (P, 4)."""
    if boxes is None:
        raise UserError("'heatmaps' need 'boxes' (P, 4), where they lie in the picture")
    maps, squares = _numbers(heatmaps, "heatmaps"), _numbers(boxes, "boxes")
    if maps.shape[:2] != (people, 17) or maps.dim() != 4 or squares.shape != (people, 4) or not maps.numel():
        raise UserError(
            f"heatmaps must be ({people}, 17, h, w) in H36M-17 order with boxes ({people}, 4), got "
            f"{tuple(maps.shape)} and {tuple(squares.shape)}"
        )
    if not torch.isfinite(maps).all() or (maps < 0).any():
        raise UserError("heatmaps must be finite and not negative")
    if not (squares.isfinite().all() and (squares[:, 2:] > squares[:, :2]).all()):
        raise UserError(
            "boxes must be left, top, right, bottom in pixels, left before right and top above bottom"
        )
    return maps, squares


def _layout_of(count: int) -> str:
    if count == 17:
        raise UserError("17 joints may be coco-17 or h36m-17: say which with --layout")
    if count not in LAYOUT_OF_COUNT:
        raise UserError(f"no layout has {count} joints: known are 17 (coco-17, h36m-17), 25 and 33")
    return LAYOUT_OF_COUNT[count]


def _parse_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "keypoints" not in arrays:
                raise UserError(f"no array 'keypoints' in it, only {', '.join(arrays) or 'nothing'}")
            content: dict[str, Any] = {name: arrays[name] for name in BESIDE if name in arrays}
            layout = {"layout": str(content["layout"])} if "layout" in content else {}
            return {"points": arrays["keypoints"], **content, **layout}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as e:
        if "allow_pickle" in str(e):
            raise UserError("holds pickled objects, which are never read: save plain arrays") from e
        raise UserError(f"damaged or cut short ({e}): save or copy it again") from e


def _parse_json(path: Path) -> dict[str, Any]:
    """COCO's annotations or results, or people with what is beside them, OpenPose's or our own."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"not JSON, or cut short ({e}): save or copy it again") from e
    if isinstance(data, dict) and "annotations" in data:
        return _parse_people(data["annotations"]) | {"layout": "coco-17"}
    if not isinstance(data, dict):
        coco = isinstance(data, list) and any("image_id" in p for p in data if isinstance(p, dict))
        return _parse_people(data) | ({"layout": "coco-17"} if coco else {})
    beside = {name: data[name] for name in ("layout", "size", "K") if data.get(name) is not None}
    return _parse_people(data.get("people")) | beside


def _parse_people(people: Any) -> dict[str, Any]:
    """Keypoints of everyone, with confidences: tables of either, or the keypoints themselves."""
    if not isinstance(people, list):
        raise UserError("no list of people in it: see `dd3g pose --help` for the formats")
    if not people:
        raise UserError("no person in it: nothing to estimate")
    if not isinstance(people[0], dict):
        return {"points": people}
    pictures = {str(p["image_id"]) for p in people if isinstance(p, dict) and "image_id" in p}
    if len(pictures) > 1:
        raise UserError("holds several pictures: save one file a picture")
    content: dict[str, Any] = {"points": []}
    for i, p in enumerate(people):
        values = p.get("pose_keypoints_2d", p.get("keypoints")) if isinstance(p, dict) else None
        if not isinstance(values, list):
            raise UserError(f"person {i} has no list of 'keypoints'")
        if values and not isinstance(values[0], list):  # x, y, confidence in turns
            values = [values[k : k + 3] for k in range(0, len(values), 3)]
        content["points"].append(values)
    if len({len(p) for p in content["points"]}) > 1:
        raise UserError("its people have different numbers of joints")
    if all("confidence" in p for p in people):
        content["confidence"] = [p["confidence"] for p in people]
    return content


PARSERS = {".json": _parse_json, ".npz": _parse_npz}


def _numbers(values: Any, name: str) -> Tensor:
    try:
        # None is how JSON writes NaN.
        array = np.asarray(values, np.float32) if values is not None else np.zeros(0, np.float32)
    except (ValueError, TypeError) as e:
        raise UserError(f"{name} must be a regular array of numbers ({e})") from e
    return torch.from_numpy(np.array(array))


def _size(values: Any) -> tuple[int, int]:
    size = _numbers(values, "size").flatten().tolist()
    if len(size) != 2 or not all(math.isfinite(s) and s >= 1 for s in size):
        raise UserError(f"size must be [width, height] in pixels, got {size}")
    return round(size[0]), round(size[1])


def _camera(values: Any) -> Tensor:
    K = _numbers(values, "K")
    if K.shape != (3, 3) or not torch.isfinite(K).all():
        raise UserError(f"K must be 3 x 3 finite numbers, got {K.tolist()}")
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise UserError(f"the focal lengths in K must be positive, got {K[0, 0]:g} and {K[1, 1]:g}")
    if K[2].tolist() != [0, 0, 1] or K[1, 0] != 0:
        raise UserError(f"K must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]], got {K.tolist()}")
    return K
