"""People in 2D, ready for any method: by BlazePose, or from another detector's keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dd3g.errors import UserError
from dd3g.picture.decoding import read_rgba
from dd3g.pose.body.skeletons import BLAZEPOSE_33, H36M_17, to_h36m
from dd3g.pose.detection.blazepose import Person, Region, find_people
from dd3g.pose.detection.camera import check_camera, intrinsics
from dd3g.pose.detection.keypoints import MIN_JOINTS, Keypoints, TooFewJointsError

MIN_CONFIDENCE = 0.3  # below it a joint is rather invented than seen


@dataclass(frozen=True)
class Detection:
    """One person in 2D, ready for any method."""

    keypoints: Tensor  # (17, 2) px, H36M-17
    confidence: Tensor  # (17,) in 0..1
    # (4,) left, top, right, bottom in px: what the detector saw, or a square around the keypoints
    square: Tensor
    size: tuple[int, int]  # (width, height) of the picture in px
    K: Tensor  # (3, 3) px
    K_source: str  # "flag", "file", "exif" or "default"
    score: float  # how sure the detector is of the person
    heatmaps: Tensor | None = None  # (17, h, w) over `boxes`
    box: Tensor | None = None  # (4,) left, top, right, bottom of the heatmaps in px
    region: Region | None = None  # where BlazePose looks for them in the next frame of a video
    track: int | str | None = None  # their number or name in a video, where another detector gave one
    # (24, 3, 3) SMPL-24 rotations that a regressor saw, the root's in the camera frame
    start: Tensor | None = None
    features: Tensor | None = None  # (F,) of the picture, beside them

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user about what was not seen."""
        hidden = [j for j, c in zip(H36M_17.joints, self.confidence.tolist(), strict=True) if c <= 0]
        return (f"not seen, so guessed: {', '.join(hidden)}",) if hidden else ()


def load(picture: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Any picture upright, on white where it is transparent; EXIF stays with it."""
    name = f"{picture}" if isinstance(picture, str | Path) else "the picture"
    rgba = read_rgba(picture, name)
    white = Image.new("RGBA", rgba.size, "white")
    image = Image.alpha_composite(white, rgba).convert("RGB")
    image.info = rgba.info
    return image


def detect(
    picture: Image.Image | None,
    keypoints: Keypoints | None = None,
    focal: float | None = None,
    tiles: bool = True,
    before: Sequence[Detection] = (),
    *,
    threshold: float = MIN_CONFIDENCE,
    size: tuple[int, int] | None = None,
) -> list[Detection]:
    """The people of a picture in 2D, by BlazePose, or from a file's keypoints.

    Args:
        picture: RGB; None with keypoints alone.
        keypoints: of another detector.
        focal: px.
        tiles: look for small people too.
        before: the people of the frame before, for BlazePose to follow.
        threshold: joints with less confidence count as not seen.
        size: (width, height) in px, where neither picture nor file tells it.

    Raises:
        UserError: neither picture nor keypoints, a picture's size that is unknown or differs, a camera of
            another size, or nobody with enough joints over the threshold.
    """
    if keypoints is None:
        if picture is None:
            raise UserError("nothing to look at: give a picture or keypoints")
        K, source = intrinsics(picture.size, focal, picture)
        regions = [person.region for person in before if person.region is not None]
        found = (
            _from_blazepose(person, K, source, threshold) for person in find_people(picture, tiles, regions)
        )
        return [person for person in found if person is not None]
    size = picture.size if picture is not None else keypoints.size or size
    if size is None:
        raise UserError(
            "the size of the picture is not known: give --size WIDTHxHEIGHT, or add 'size': [width, height] "
            "to the keypoints"
        )
    if keypoints.size not in (None, size):
        raise UserError(
            f"the keypoints belong to a picture of {keypoints.size[0]} x {keypoints.size[1]} pixels, this "
            f"one has {size[0]} x {size[1]}: give the picture that the detector saw"
        )
    keypoints = _sound(keypoints)
    if keypoints.K is not None and focal is None:
        check_camera(keypoints.K, size)
        K, source = keypoints.K, "file"
    else:
        K, source = intrinsics(size, focal, picture)
    _check_inside(keypoints, size)
    rows = (_from_file(keypoints, i, size, K, source, threshold) for i in range(len(keypoints.points)))
    people = [person for person in rows if person is not None]
    if not people:
        raise TooFewJointsError(
            f"nobody has {MIN_JOINTS} joints with a confidence of {threshold:g} or more: lower --confidence"
        )
    return people


def _sound(keypoints: Keypoints) -> Keypoints:
    """In float32, with zeros where a joint does not count.

    Raises:
        UserError: when one that counts is not a number.
    """
    confidence = keypoints.confidence.float().nan_to_num(0)
    points = torch.where(confidence[..., None] > 0, keypoints.points.float(), 0.0)
    if not points.isfinite().all():
        raise UserError(
            "a joint is not a number of pixels: give it confidence 0 where the detector missed it"
        )
    K = None if keypoints.K is None else keypoints.K.float()
    return replace(keypoints, points=points, confidence=confidence, K=K)


def _check_inside(keypoints: Keypoints, size: tuple[int, int]) -> None:
    """Refuse keypoints of another picture: who walks out of one is at most as far away as it is large."""
    shares = keypoints.points / torch.tensor(size)
    pairs = zip(shares, keypoints.confidence, strict=True)
    seen = [p[c > 0].median(0).values for p, c in pairs if (c > 0).any()]
    if not seen:
        return
    middles = torch.stack(seen)
    outside = ((middles < -1) | (middles > 2)).any(-1)
    if outside.all():
        x, y = (middles[0] * torch.tensor(size)).tolist()
        raise UserError(
            f"its keypoints lie about ({x:.0f}, {y:.0f}), far outside a picture of {size[0]} x {size[1]} "
            "pixels: give that picture's size, and pixels"
        )


def _from_file(
    keypoints: Keypoints, i: int, size: tuple[int, int], K: Tensor, source: str, threshold: float
) -> Detection | None:
    points, confidence = keypoints.points[i], keypoints.confidence[i]
    confidence = torch.where(confidence < threshold, 0.0, confidence)
    if int((confidence > 0).sum()) < MIN_JOINTS:
        return None
    low, high = points[confidence > 0].aminmax(dim=0)
    middle, side = (low + high) / 2, 1.5 * (high - low).amax().clamp(min=1)
    square = torch.cat([middle - side / 2, middle + side / 2])
    score = 1.0 if keypoints.scores is None else float(keypoints.scores[i])
    heatmaps, box = (None if x is None else x[i] for x in (keypoints.heatmaps, keypoints.boxes))
    track = keypoints.tracks[i] if keypoints.tracks else None
    return Detection(points, confidence, square, size, K, source, score, heatmaps, box, track=track)


def _from_blazepose(person: Person, K: Tensor, source: str, threshold: float) -> Detection | None:
    confidence = torch.from_numpy(person.confidence)
    confidence = torch.where(confidence < threshold, 0.0, confidence)
    points, seen = to_h36m(torch.from_numpy(person.keypoints), confidence, "blazepose-33")
    if int((seen > 0).sum()) < MIN_JOINTS:
        return None
    square = torch.from_numpy(person.square)
    # Joints that BlazePose has keep its maps; hip, spine, thorax and head are mixes of several.
    heatmaps = heatmaps_from_keypoints(points[None], square[None])[0]
    for joint, name in enumerate(H36M_17.joints):
        if name in BLAZEPOSE_33.joints:
            heatmaps[joint] = torch.from_numpy(person.heatmaps[BLAZEPOSE_33.joints.index(name)])
    return Detection(
        points, seen, square, person.size, K, source, person.score, heatmaps, square, person.region
    )


def heatmaps_from_keypoints(keypoints: Tensor, boxes: Tensor, size: int = 64, sigma: float = 1.5) -> Tensor:
    """Gaussian heatmaps where a detector gives keypoints only.

    Args:
        keypoints: (B, J, 2) pixels.
        boxes: (B, 4) left, top, right, bottom in pixels.
        size: cells a side.
        sigma: of the Gaussians, in cells.

    Returns:
        (B, J, size, size), peaks up to 1.
    """
    cells = (keypoints - boxes[:, None, :2]) / (boxes[:, None, 2:] - boxes[:, None, :2]) * size
    away = cells[..., None] - (torch.arange(size).to(cells) + 0.5)  # (B, J, 2, size)
    columns, rows = torch.exp(-away.square() / (2 * sigma**2)).unbind(-2)
    return rows[..., :, None] * columns[..., None, :]


def stacked(people: Sequence[Detection], name: str) -> Tensor:
    """One field of everyone, (B, ...)."""
    return torch.stack([getattr(person, name) for person in people])
