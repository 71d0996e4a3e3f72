"""Keypoints of any detector from JSON or npz, and a camera's intrinsics from EXIF, a number or a default."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.skeletons import skeleton, to_h36m

SUFFIXES = (".json", ".npz")
MIN_JOINTS = 4
FARTHEST = 1e6  # px that a keypoint may lie from the picture's corner; NaN is farther
LAYOUT_OF_COUNT = {25: "openpose-25", 33: "blazepose-33"}
FILM_DIAGONAL = 43.27  # mm of 35 mm film, which EXIF's equivalent focal length refers to
LENSES = 0.1, 50.0  # picture diagonals: what EXIF says beyond the focal lengths of cameras is not believed


@dataclass(frozen=True)
class Keypoints:
    """What a detector said about the people in one picture.

    Args:
        points: (P, 17, 2) px of the full picture, H36M-17; 0 where the confidence is 0.
        confidence: (P, 17) in 0..1.
        size: (width, height) of the picture in px; None when the file does not say.
        K: (3, 3) px; None when the file does not say.
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
        layout: one of `dd3g.pose.skeletons.SKELETONS`; None takes the file's word, or the number of joints
            where only one layout has it.

    Raises:
        UserError: unreadable, truncated or pickled content, an unknown layout, a wrong number of joints, NaN
            at joints with confidence, or nobody with confidence in enough joints.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npz":
            content = _read_npz(path)
        elif path.suffix.lower() == ".json":
            content = _read_json(path)
        else:
            raise UserError(f"{path}: keypoints come as {' or '.join(SUFFIXES)}, not {path.suffix or 'that'}")
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: check the path") from e
    except OSError as e:
        raise UserError(
            f"{path} cannot be read ({e.strerror or e}): check the path and its permissions"
        ) from e
    try:
        return checked(**content | {"layout": layout or content.get("layout")})
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
    """Check keypoints of any layout and turn them into the house order.

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
    xy = _numbers(points, "keypoints")
    xy = xy[None] if xy.dim() == 2 else xy
    if xy.dim() != 3 or xy.shape[-1] not in (2, 3):
        raise UserError(f"keypoints must be (people, joints, 2 or 3), got {tuple(xy.shape)}")
    if not len(xy):
        raise UserError("no person in it: nothing to estimate")
    layout = str(layout) if layout else _layout_of(xy.shape[1])
    if xy.shape[1] != len(skeleton(layout)):
        raise UserError(
            f"{layout} has {len(skeleton(layout))} joints, got {xy.shape[1]}: name the right layout"
        )
    if confidence is not None:
        c = _numbers(confidence, "confidence")
        c = c.reshape(xy.shape[:2]) if c.numel() == xy[..., 0].numel() else c
    elif xy.shape[-1] == 3:
        c = xy[..., 2]
    else:
        # Detectors that give no confidence write a joint that they missed as (0, 0).
        c = (xy != 0).any(-1).float()
    xy = xy[..., :2]
    if c.shape != xy.shape[:2]:
        raise UserError(f"confidence must be {tuple(xy.shape[:2])} like the keypoints, got {tuple(c.shape)}")
    # COCO's flags are 0 (not labelled), 1 (hidden), 2 (visible).
    c = torch.where(torch.isnan(c), 0.0, c).clamp(0, 1)
    broken = (~(xy.abs() < FARTHEST).all(-1) & (c > 0)).nonzero()
    if len(broken):
        person, joint = broken[0].tolist()
        raise UserError(
            f"joint {skeleton(layout).joints[joint]} of person {person} is not a number of pixels: give it "
            "confidence 0 where the detector missed it"
        )
    house, seen = to_h36m(xy, c, layout)
    counts = (seen > 0).sum(-1)
    keep = counts >= MIN_JOINTS
    few = [
        f"person {i} has {f'only {counts[i]} of 17 joints' if counts[i] else 'confidence 0 everywhere'}"
        for i in (~keep).nonzero()[:, 0].tolist()
    ]
    if not keep.any():
        raise UserError(f"{few[0]}: give at least {MIN_JOINTS}")
    maps, squares = None, None
    if heatmaps is not None:
        maps, squares = _numbers(heatmaps, "heatmaps"), _numbers(boxes, "boxes")
        shapes = maps.shape[:2] == (len(xy), 17) and maps.dim() == 4 and squares.shape == (len(xy), 4)
        if not shapes or not maps.numel():
            raise UserError(
                f"heatmaps must be ({len(xy)}, 17, h, w) in H36M-17 order with boxes ({len(xy)}, 4), got "
                f"{tuple(maps.shape)} and {tuple(squares.shape)}"
            )
        if not torch.isfinite(maps).all() or (maps < 0).any():
            raise UserError("heatmaps must be finite and not negative")
        if not (squares.isfinite().all() and (squares[:, 2:] > squares[:, :2]).all()):
            raise UserError(
                "boxes must be left, top, right, bottom in pixels, left before right and top above bottom"
            )
    sure = None if scores is None else _numbers(scores, "scores").flatten()
    if sure is not None and len(sure) != len(xy):
        raise UserError(f"scores must be one for each of {len(xy)} people, got {len(sure)}")
    return Keypoints(
        house[keep],
        seen[keep],
        None if size is None else _size(size),
        None if K is None else _camera(K),
        None if maps is None else maps[keep],
        None if squares is None else squares[keep],
        None if sure is None else sure[keep],
        tuple(f"{person}, and is left out: {MIN_JOINTS} are needed" for person in few),
    )


def intrinsics(
    size: tuple[int, int], focal: float | None = None, picture: Image.Image | None = None
) -> tuple[Tensor, str]:
    """The camera matrix and where it comes from: the given focal length, EXIF, or the picture's diagonal.

    The default, a focal length of the diagonal in pixels, is a field of view of 53 degrees along it, that of
    a 43 mm lens on 35 mm film.

    Args:
        size: (width, height) in px.
        focal: px.
        picture: looked at for EXIF.

    Returns:
        K (3, 3) in px with the principal point at the centre; "flag", "exif" or "default".

    Raises:
        UserError: when the focal length is not positive and finite.
    """
    width, height = size
    source = "flag"
    if focal is None:
        focal = _exif_focal(picture, size) if picture is not None else None
        if focal is not None and not LENSES[0] <= focal / math.hypot(width, height) <= LENSES[1]:
            focal = None
        source = "exif"
    if focal is None:
        focal, source = math.hypot(width, height), "default"
    if not (math.isfinite(focal) and focal > 0):
        raise UserError(f"the focal length must be positive, got {focal:g}: give it in pixels")
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), source


def _exif_focal(picture: Image.Image, size: tuple[int, int]) -> float | None:
    """Focal length in px, or None where EXIF does not tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = picture.getexif().get_ifd(0x8769)
        film = float(tags.get(0xA405, 0))  # FocalLengthIn35mmFilm
        if film > 0:
            return film / FILM_DIAGONAL * math.hypot(*size)
        length, density = float(tags.get(0x920A, 0)), float(tags.get(0xA20E, 0))  # mm; cells a unit
        unit = {2: 25.4, 3: 10.0, 4: 1.0}.get(tags.get(0xA210, 2), 25.4)  # mm
        original = float(max(tags.get(0xA002, 0), tags.get(0xA003, 0)))  # px before resizing
        if length > 0 and density > 0 and original > 0:
            return length * density / unit * max(size) / original
    except Exception:
        # Cameras and editors write all kinds of things; the default serves then.
        return None
    return None


def _layout_of(count: int) -> str:
    if count == 17:
        raise UserError("17 joints may be coco-17 or h36m-17: say which with --layout")
    if count not in LAYOUT_OF_COUNT:
        raise UserError(f"no layout has {count} joints: known are 17 (coco-17, h36m-17), 25 and 33")
    return LAYOUT_OF_COUNT[count]


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "keypoints" not in arrays:
                raise UserError(f"{path}: no array 'keypoints' in it, only {', '.join(arrays) or 'nothing'}")
            names = ("keypoints", "confidence", "layout", "size", "K", "heatmaps", "boxes", "scores")
            content: dict[str, Any] = {name: arrays[name] for name in names if name in arrays}
    except UserError:
        raise
    except FileNotFoundError:
        raise
    except ValueError as e:
        if "allow_pickle" in str(e):
            raise UserError(f"{path}: holds pickled objects, which are never read: save plain arrays") from e
        raise UserError(f"{path}: damaged or cut short ({e}): save or copy it again") from e
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, RuntimeError) as e:
        raise UserError(f"{path}: damaged or cut short ({e}): save or copy it again") from e
    if "heatmaps" in content and "boxes" not in content:
        raise UserError(f"{path}: 'heatmaps' need 'boxes' (P, 4), where they lie in the picture")
    if "layout" in content:
        content["layout"] = str(content["layout"])
    content["points"] = content.pop("keypoints")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON, or cut short ({e}): save or copy it again") from e
    content: dict[str, Any] = {}
    if isinstance(data, dict) and "annotations" in data:
        people, content["layout"] = data["annotations"], "coco-17"
    elif isinstance(data, dict):
        content = {name: data[name] for name in ("layout", "size", "K") if data.get(name) is not None}
        people = data.get("people")
    else:
        people = data
    if not isinstance(people, list):
        raise UserError(f"{path}: no list of people in it: see `dd3g pose --help` for the formats")
    pictures = {str(p["image_id"]) for p in people if isinstance(p, dict) and "image_id" in p}
    if len(pictures) > 1:
        raise UserError(f"{path}: holds several pictures: save one file a picture")
    if pictures and people is data:
        content["layout"] = "coco-17"
    if people and not isinstance(people[0], dict):
        content["points"] = people
        return content
    if not people:
        raise UserError(f"{path}: no person in it: nothing to estimate")
    content["points"] = []
    for i, p in enumerate(people):
        values = p.get("pose_keypoints_2d", p.get("keypoints")) if isinstance(p, dict) else None
        if not isinstance(values, list):
            raise UserError(f"{path}: person {i} has no list of 'keypoints'")
        content["points"].append(_triples(values))
    if len({len(p) for p in content["points"]}) > 1:
        raise UserError(f"{path}: its people have different numbers of joints")
    if all("confidence" in p for p in people):
        content["confidence"] = [p["confidence"] for p in people]
    return content


def _triples(values: list[Any]) -> list[Any]:
    """A flat list [x, y, c, ...] as rows."""
    if values and not isinstance(values[0], list):
        return [values[i : i + 3] for i in range(0, len(values), 3)]
    return values


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
