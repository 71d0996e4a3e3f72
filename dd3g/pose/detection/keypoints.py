"""Keypoints of any detector, checked: one form for whatever `reading` reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import WHOLE_BODY, skeleton, to_h36m
from dd3g.pose.detection.camera import undistorted
from dd3g.pose.detection.detected import LAYOUT_OF_COUNT, Someone

MIN_JOINTS = 4
FARTHEST = 1e6  # px that a keypoint may lie from the picture's corner; NaN is farther
NEAREST = 2.0  # px; with all keypoints this near to the corner they are fractions of the picture
POINT = 0.1  # px; someone as small is none
BEST = 10.0  # AlphaPose's scores of people are sums of several and go beyond 1
SURE = 1.1  # detectors that regress their confidence overshoot 1 by a little


@dataclass(frozen=True)
class Keypoints:
    """The output of a detector for the people in one picture."""

    points: Tensor  # (P, 17, 2) px of the full picture, H36M-17; 0 where the confidence is 0
    confidence: Tensor  # (P, 17) in 0..1
    # (width, height) of the picture in px; None when it is not in the file
    size: tuple[int, int] | None = None
    K: Tensor | None = None  # (3, 3) px; None when it is not in the file
    heatmaps: Tensor | None = None  # (P, 17, h, w) >= 0
    boxes: Tensor | None = None  # (P, 4) left, top, right, bottom of the heatmaps in px
    scores: Tensor | None = None  # (P,) how sure the detector is of each person
    # Their numbers or names in a video, None for whom the file does not number
    tracks: tuple[int | str | None, ...] = ()
    warnings: tuple[str, ...] = ()  # sentences for the user about people that are left out


class TooFewJointsError(UserError):
    """Nobody with confidence in enough joints."""


def checked(
    people: Sequence[Someone],
    layout: str | None = None,
    size: Any = None,
    K: Any = None,
    heatmaps: Any = None,
    boxes: Any = None,
    distortion: Any = None,
) -> Keypoints:
    """Check keypoints of any layout and turn them into the canonical one, H36M-17.

    Args:
        people: P >= 1 of one picture.
        layout: name of the layout; None infers it from the number of joints.
        size: (width, height).
        K: (3, 3).
        heatmaps: (P, 17, h, w).
        boxes: (P, 4).
        distortion: 4 to 8 coefficients of the lens in OpenCV's order, with K; points come out without it.

    Raises:
        UserError: see `reading.read_keypoints`.
    """
    rows = [_person(person) for person in people]
    if len({len(xy) for xy, _ in rows}) > 1:
        raise UserError("its people have different numbers of joints")
    xy, trust = (torch.stack(values) for values in zip(*rows, strict=True))
    trust = _confidence(trust.nan_to_num())
    xy, trust, layout = _bodies(xy, trust, str(layout).lower() if layout else _layout_of(xy.shape[1]))
    camera = None if K is None else _camera(K)
    _check_units(xy, trust)
    if distortion is not None:
        xy = _straightened(xy, trust, camera, distortion)
    canonical, seen = to_h36m(xy, trust, layout)
    _check_places(xy, trust, layout)
    maps, squares = (None, None) if heatmaps is None else _heatmaps(heatmaps, boxes, len(xy))
    sure = _scores(people)
    keep, left_out = _usable(canonical, seen)
    maps, squares, sure = (None if values is None else values[keep] for values in (maps, squares, sure))
    tracks = tuple(person.track for person, kept in zip(people, keep.tolist(), strict=True) if kept)
    size = None if size is None else _size(size)
    return Keypoints(canonical[keep], seen[keep], size, camera, maps, squares, sure, tracks, left_out)


def _bodies(xy: Tensor, trust: Tensor, layout: str) -> tuple[Tensor, Tensor, str]:
    """The joints of the body alone, of layouts with hands and faces, and the layout that these have."""
    if layout not in WHOLE_BODY:
        return xy, trust, layout
    body = WHOLE_BODY[layout]
    if len(body) > xy.shape[1]:
        raise UserError(f"{layout} has {layout.rpartition('-')[2]} joints, got {xy.shape[1]}")
    return xy[:, : len(body)], trust[:, : len(body)], body.name


def _straightened(xy: Tensor, trust: Tensor, K: Tensor | None, distortion: Any) -> Tensor:
    """Keypoints without the distortion of their lens."""
    found = _numbers(distortion, "distortion").flatten()
    if len(found) > 8 and not found[8:].any():  # OpenCV's 12 and 14 also have prisms and tilted sensors
        found = found[:8]
    if K is None:
        raise UserError("'distortion' needs 'K', the camera matrix that was calibrated with it")
    if not 4 <= len(found) <= 8 or not found.isfinite().all():
        raise UserError(
            f"distortion must be 4 to 8 numbers k1, k2, p1, p2, k3, k4, k5, k6, got {found.tolist()}"
        )
    straight, away = undistorted(xy, K, found)
    if not (away[trust > 0] < NEAREST).all():
        raise UserError(
            "'distortion' describes no lens that could show these keypoints: give k1, k2, p1, p2 "
            "and so on as OpenCV has them"
        )
    return straight


def _check_places(xy: Tensor, trust: Tensor, layout: str) -> None:
    """Refuse joints that count and are not a number, or far outside of any picture."""
    broken = (~(xy.abs() < FARTHEST).all(-1) & (trust > 0)).nonzero()
    if len(broken):
        person, joint = broken[0].tolist()
        raise UserError(
            f"joint {skeleton(layout).joints[joint]} of person {person} is not a number of pixels: give it "
            "confidence 0 where the detector missed it"
        )


def _scores(people: Sequence[Someone]) -> Tensor | None:
    """(P,) in 0..1; None where the detector scored nobody."""
    if all(person.score is None for person in people):
        return None
    sure = _numbers([1.0 if person.score is None else person.score for person in people], "scores")
    if not ((sure >= 0) & (sure <= BEST)).all():
        worst = sure[(sure - 0.5).abs().argmax()]
        raise UserError(f"the scores of people must lie in 0..1, one is {worst:g}")
    return sure.clamp(max=1)


def _usable(points: Tensor, seen: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Who has joints enough and is of some size, (P,), and a sentence about each of the others."""
    counts = (seen > 0).sum(-1)
    keep = counts >= MIN_JOINTS
    left_out = [
        f"person {i} has {f'only {counts[i]} of 17 joints' if counts[i] else 'confidence 0 everywhere'}, and "
        f"is left out: {MIN_JOINTS} are needed"
        for i in (~keep).nonzero()[:, 0].tolist()
    ]
    if not keep.any():
        raise TooFewJointsError(f"{left_out[0].partition(',')[0]}: give at least {MIN_JOINTS}")
    low, high = (torch.where(seen[..., None] > 0, points, s * torch.inf) for s in (1, -1))
    extent = (high.amax(1) - low.amin(1)).amax(-1)  # (P,)
    if (extent[keep] < POINT).all():
        raise UserError("all joints of a person lie at one point: give their positions in the picture")
    tiny = keep & (extent < NEAREST)
    if tiny[keep].all():  # they are in other units, and none is small
        return keep, tuple(left_out)
    left_out += [
        f"person {i} is {extent[i]:.2g} px large, and is left out: give everyone in pixels"
        for i in tiny.nonzero()[:, 0].tolist()
    ]
    return keep & ~tiny, tuple(left_out)


def _person(person: Someone) -> tuple[Tensor, Tensor]:
    """Places (J, 2) and confidences (J,), each person by itself."""
    xy, confidence = _numbers(person.points, "keypoints"), person.confidence
    if xy.dim() != 2 or xy.shape[1] not in (2, 3):
        raise UserError(f"keypoints must be (people, joints, 2 or 3), got {(1, *xy.shape)}")
    if confidence is not None and any(value is not None for value in confidence):
        c = _numbers(confidence, "confidence").flatten()
    elif xy.shape[1] == 3:
        c = xy[:, 2]
    else:
        # Detectors that give no confidence write a joint that they missed as (0, 0), or as NaN.
        c = ((xy != 0).any(-1) & xy.isfinite().all(-1)).float()
    if len(c) != len(xy):
        raise UserError(f"confidence must be {(1, len(xy))} like the keypoints, got {(1, len(c))}")
    return xy[:, :2], c


def _confidence(c: Tensor) -> Tensor:
    """Confidences in 0..1; COCO's flags 0 (not labelled), 1 (hidden), 2 (visible) are as good as those.

    Percentages, logits and the like are refused.
    """
    flags = bool(torch.isin(c, torch.tensor([0.0, 1.0, 2.0])).all())
    worst = c.flatten()[(c - 0.5).abs().argmax()].item() if c.numel() else 0.0
    if not flags and not 0 <= worst <= SURE:
        raise UserError(f"confidences must lie in 0..1, one is {worst:g}: divide them, or leave them out")
    return c.clamp(0, 1)


def _check_units(xy: Tensor, confidence: Tensor) -> None:
    """Refuse coordinates that are shares of the picture, and not pixels."""
    known = xy[(confidence > 0) & xy.isfinite().all(-1)]
    if len(known) and (largest := known.abs().max().item()) <= NEAREST:
        raise UserError(
            f"its keypoints lie within {largest:.3g} px of the picture's corner: give pixels, not fractions "
            "of the picture"
        )


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
        known = ", ".join(f"{n} ({name})" for n, name in LAYOUT_OF_COUNT.items())
        raise UserError(f"no layout has {count} joints: known are 17 (coco-17, h36m-17), {known}")
    return LAYOUT_OF_COUNT[count]


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
    K = K.reshape(3, 3) if K.numel() == 9 else K
    if K.shape != (3, 3) or not torch.isfinite(K).all():
        raise UserError(f"K must be 3 x 3 finite numbers, got {K.tolist()}")
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise UserError(f"the focal lengths in K must be positive, got {K[0, 0]:g} and {K[1, 1]:g}")
    if K[2].tolist() != [0, 0, 1] or K[1, 0] != 0:
        raise UserError(f"K must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]], got {K.tolist()}")
    return K
