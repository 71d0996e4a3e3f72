"""People in a picture: 33 keypoints, confidences and heatmaps each, by BlazePose (Bazarevsky et al. 2020)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from dd3g.errors import needed
from dd3g.models import require_model

DETECTOR_SIDE, LANDMARK_SIDE = 224, 256
MIN_SCORE = 0.5  # of the detector
MIN_PRESENCE = 0.5  # of the landmark network
MIN_BOTH = 0.6  # their product; cats and cups reach 0.53
MAX_OVERLAP = 0.3  # intersection over union from which two boxes are one person
SAME_PERSON = 0.5  # the same, of the boxes around the final keypoints
# The detector sees 224 pixels, so small people show only in windows: how many a side, and their share of it.
LOOKS = ((1, 1.0), (2, 0.6))
CLOSE_LOOK = (3, 0.4)
SMALL = 0.85  # of the picture's shorter side: a person's square below this calls for the close look
WORKING_SIDE = 2048
MAX_PEOPLE = 20


@dataclass(frozen=True)
class Person:
    """One person as BlazePose sees them."""

    keypoints: np.ndarray  # (33, 2) px of the full picture, BlazePose order; may lie outside the picture
    confidence: np.ndarray  # (33,) in 0..1: visibility times presence, 0 outside the picture
    heatmaps: np.ndarray  # (33, 64, 64) in 0..1, one per keypoint, upright
    square: np.ndarray  # (4,) left, top, right, bottom of the heatmaps in px
    score: float  # how sure the networks are that this is a person, 0..1
    size: tuple[int, int]  # (width, height) of the picture in px
    region: Region | None = None  # where to look for them in the next frame of a video

    @property
    def box(self) -> np.ndarray:
        """(4,) left, top, right, bottom in px, around the keypoints."""
        return np.concatenate([self.keypoints.min(0), self.keypoints.max(0)])


@dataclass(frozen=True)
class Region:
    """A rotated square of the picture."""

    centre: np.ndarray  # (2,) px
    side: float  # px
    angle: float  # radians; the square's up direction, turned clockwise from the picture's

    @staticmethod
    def of(centre: np.ndarray, tip: np.ndarray) -> Region:
        """1.25 times the square around a body's circle, given its centre and its point above the head."""
        d = tip - centre
        return Region(centre, 2.5 * float(np.hypot(*d)), float(np.arctan2(d[0], -d[1])))

    def scaled(self, factor: float) -> Region:
        """The same in a picture that is `factor` times as large."""
        return Region(self.centre * factor, self.side * factor, self.angle)

    def matrix(self, cells: int) -> np.ndarray:
        """(2, 3) affine map from cells of the square (0..cells) to px of the picture."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[c, -s], [s, c]]) * self.side / cells
        return np.concatenate([turn, (self.centre - turn @ [cells / 2, cells / 2])[:, None]], 1)


def find_people(picture: Image.Image, tiles: bool = True, before: Sequence[Region] = ()) -> list[Person]:
    """Every person that the networks find, largest first.

    Args:
        picture: RGB, upright.
        tiles: also look through overlapping windows, which finds people of about a fifth of the picture's
            height; without, of half its height.
        before: where people of the frame before are looked for first; the detector, which needs a face,
            may miss them now.

    Raises:
        UserError: when the networks or their runtime are missing.
    """
    picture = picture.convert("RGB")
    # The networks need no more, and all that follows gets a bounded cost.
    shrink = max(1, -(-max(picture.size) // WORKING_SIDE))
    small = picture.reduce(shrink)
    people: list[Person] = []
    followed = [(region.scaled(1 / shrink), 1.0) for region in before]
    for region, score in followed + _regions(small, tiles):
        person = _landmarks(small, region, score, picture.size, shrink)
        if person is None or any(overlap(person.box, other.box) > SAME_PERSON for other in people):
            continue
        people.append(person)
        if len(people) == MAX_PEOPLE:
            break
    return sorted(people, key=lambda p: -float(np.prod(p.box[2:] - p.box[:2])))


def load() -> None:
    """Load both networks now.

    Raises:
        UserError: when they or their runtime are missing.
    """
    for name in ("pose_detection", "pose_landmark_full"):
        _network(name)


def anchors() -> np.ndarray:
    """(2254, 2) anchor centres in 0..1: 2 in each cell of 8 px, 2 in each of 16 px, 6 in each of 32 px."""
    centres = []
    for stride, count in ((8, 2), (16, 2), (32, 6)):
        n = DETECTOR_SIDE // stride
        y, x = np.divmod(np.arange(n * n).repeat(count), n)
        centres.append((np.stack([x, y], 1) + 0.5) / n)
    return np.concatenate(centres)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) left, top, right, bottom."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    return both / np.maximum(area_a + area_b - both, 1e-12)


def suppress(boxes: np.ndarray, scores: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blend boxes that mark one person, weighted by score (BlazeFace, Bazarevsky et al. 2019, section 4).

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,).
        values: (N, C) what to blend.

    Returns:
        (M, C) blended values and (M,) the best score of each, best first.
    """
    order = np.argsort(-scores, kind="stable")
    blended, best = [], []
    while len(order):
        same = overlap(boxes[order], boxes[order[0]]) > MAX_OVERLAP
        same[0] = True
        group = order[same]
        blended.append(np.average(values[group], axis=0, weights=scores[group]))
        best.append(scores[order[0]])
        order = order[~same]
    return np.array(blended).reshape(-1, values.shape[1]), np.array(best)


def _regions(picture: Image.Image, tiles: bool) -> list[tuple[Region, float]]:
    found = np.concatenate([_look(picture, *look) for look in (LOOKS if tiles else LOOKS[:1])])
    sides = 2.5 * np.hypot(*(found[:, 7:] - found[:, 5:7]).T)
    if tiles and not (len(sides) and sides.min() >= SMALL * min(picture.size)):
        found = np.concatenate([found, _look(picture, *CLOSE_LOOK)])
    points, scores = suppress(found[:, :4], found[:, 4], found[:, 5:])
    return [(Region.of(p[:2], p[2:]), float(s)) for p, s in zip(points, scores, strict=True)]


def _look(picture: Image.Image, count: int, share: float) -> np.ndarray:
    """People in count^2 windows, (N, 9) in px: box (4), score, and a body's circle as centre and point."""
    width, height = np.array(picture.size) * share
    corners = [np.linspace(0, side * (1 - share), count) for side in picture.size]
    centres = [np.array([x + width / 2, y + height / 2]) for y in corners[1] for x in corners[0]]
    side = float(max(width, height))
    return np.concatenate([_detect(picture, Region(centre, side, 0.0)) for centre in centres])


def _detect(picture: Image.Image, window: Region) -> np.ndarray:
    raw, logits = _run("pose_detection", _crop(picture, window, DETECTOR_SIDE) / 127.5 - 1)
    scores = _sigmoid(logits[0, :, 0])
    keep = scores >= MIN_SCORE
    values = raw[0, keep].reshape(-1, 6, 2) / DETECTOR_SIDE  # centre, size, four points
    centres = anchors()[keep]
    corner = window.centre - window.side / 2
    centre = (values[:, 0] + centres) * window.side + corner
    half = values[:, 1] * window.side / 2
    points = (values[:, 2:4] + centres[:, None]) * window.side + corner
    return np.concatenate([centre - half, centre + half, scores[keep, None], points.reshape(-1, 4)], 1)


def _landmarks(
    picture: Image.Image, region: Region, score: float, size: tuple[int, int], factor: int
) -> Person | None:
    """Run the landmark network twice: its own two body points give a tighter square than the detector's.

    The person is one of a picture of this size, `factor` times as large.
    """
    for _ in range(2):
        crop = _crop(picture, region, LANDMARK_SIDE) / 255
        flat, flag, _, logits, _ = _run("pose_landmark_full", crop)
        if float(flag[0, 0]) < MIN_PRESENCE:
            return None
        used, points = region, flat[0].reshape(39, 5)
        matrix = used.matrix(LANDMARK_SIDE)
        places = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]  # (39, 2) px
        region = Region.of(places[33], places[34])
        if not 1 < region.side < 4 * sum(picture.size):
            return None
    score *= float(flag[0, 0])
    if score < MIN_BOTH:
        return None
    probability = _sigmoid(points[:33, 3:])  # visibility, presence
    inside = ((places[:33] >= 0) & (places[:33] <= picture.size)).all(1)
    heatmaps, square = _upright(_sigmoid(logits[0, :, :, :33].transpose(2, 0, 1)), used)
    keypoints, square = places[:33].astype(np.float32) * factor, square * factor
    confidence = (probability.prod(1) * inside).astype(np.float32)
    return Person(keypoints, confidence, heatmaps, square, score, size, region.scaled(factor))


def _crop(picture: Image.Image, region: Region, cells: int) -> np.ndarray:
    """(1, cells, cells, 3) float32 in 0..255, black outside the picture."""
    # Bilinear lookups alone would skip pixels of a large square.
    coarse = max(1, int(region.side / cells))
    return _transformed(picture.reduce(coarse), region.matrix(cells) / coarse, cells)[None]


def _transformed(image: Image.Image, matrix: np.ndarray, cells: int) -> np.ndarray:
    """(cells, cells, ...) float32 by an affine map (2, 3) from cells to pixels, bilinear."""
    method, kernel = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(image.transform((cells, cells), method, tuple(matrix.ravel()), kernel), np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _upright(heatmaps: np.ndarray, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Maps (J, n, n) over a rotated square -> maps over the upright square around it, and its (4,) box."""
    half = region.side / 2 * (abs(np.cos(region.angle)) + abs(np.sin(region.angle)))
    n = heatmaps.shape[-1]
    into = np.linalg.inv(np.vstack([region.matrix(n), [0, 0, 1]]))
    matrix = (into @ np.vstack([Region(region.centre, 2 * half, 0.0).matrix(n), [0, 0, 1]]))[:2]
    matrix[:, 2] += 0.5  # the network puts cell i at i, Pillow at i + 0.5
    turned = [_transformed(Image.fromarray(h.astype(np.float32)), matrix, n) for h in heatmaps]
    square = np.concatenate([region.centre - half, region.centre + half])
    return np.stack(turned), square.astype(np.float32)


def _run(name: str, pixels: np.ndarray) -> list[np.ndarray]:
    network = _network(name)
    network.set_tensor(network.get_input_details()[0]["index"], pixels.astype(np.float32))
    network.invoke()
    return [network.get_tensor(output["index"]) for output in network.get_output_details()]


@lru_cache(maxsize=2)
def _network(name: str) -> Any:
    path = require_model(name)
    with needed(
        "finding people needs the extra 'pose': pip install 'dd3g[pose]', or give keypoints of another "
        "detector with --keypoints"
    ):
        from ai_edge_litert.interpreter import Interpreter
    network = Interpreter(str(path), num_threads=min(4, os.cpu_count() or 1))
    network.allocate_tensors()
    return network
