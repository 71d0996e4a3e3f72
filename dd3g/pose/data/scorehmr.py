"""The npz and pickle layouts of ScoreHMR: annotations, a regressor's predictions and features, tracks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.arrays import need, read_npz, read_pickle, tensor


@dataclass(frozen=True)
class Annotations:
    """N people, one a row; what the file lacks has confidence or `has_` zero."""

    imgname: list[str]
    center: Tensor  # (N, 2) pixels, middle of the box
    scale: Tensor  # (N,) side of the box in pixels
    rotations: Tensor  # (N, 24, 3, 3), identity where there are none
    has_rotations: Tensor  # (N,) bool
    betas: Tensor  # (N, 10)
    has_betas: Tensor  # (N,) bool
    keypoints_2d: Tensor  # (N, 44, 3) pixels and confidence: 25 of OpenPose, 19 extra
    keypoints_3d: Tensor  # (N, 44, 4) metres and confidence

    def __len__(self) -> int:
        return len(self.imgname)


@dataclass(frozen=True)
class Predictions:
    """What a regressor predicted for N people, and the features that condition the denoiser."""

    rotations: Tensor  # (N, 24, 3, 3)
    betas: Tensor  # (N, 10)
    camera: Tensor  # (N, 3) weak perspective in the crop: s, tx, ty
    translation: Tensor | None  # (N, 3) metres
    pose_features: Tensor | None  # (N, F), e.g. 128 x 24 of PARE flattened
    shape_features: Tensor | None  # (N, 1536) of PARE, 64 x 24 flattened

    def __len__(self) -> int:
        return len(self.rotations)


def load_annotations(path: str | Path) -> Annotations:
    """A data set's npz, e.g. h36m_val_p2.npz or 3dpw_test.npz.

    Raises:
        UserError: damaged, code in it, imgname, center or scale missing, or a wrong shape.
    """
    return _annotations(read_npz(path), str(path))


def load_tracks(path: str | Path) -> list[Annotations]:
    """A pickle of videos or of instants seen by several cameras: a list of tables with the npz's keys.

    Raises:
        UserError: as `load_annotations`.
    """
    found = read_pickle(path)
    if not isinstance(found, (list, tuple, np.ndarray)) or not len(found):
        raise UserError(f"{path} must be a list of tracks, not {type(found).__name__}")
    return [_annotations(table, f"{path}, track {i}") for i, table in enumerate(found)]


def load_predictions(path: str | Path) -> Predictions:
    """A cache of ProHMR, HMR2 or PARE: pred_pose, pred_betas, pred_cam, and what else it has.

    Raises:
        UserError: damaged, code in it, one of these three missing, or a wrong shape.
    """
    found, where = read_npz(path), str(path)
    pose, betas, camera = need(found, ["pred_pose", "pred_betas", "pred_cam"], where)
    rotations = tensor(pose, (None, 24, 3, 3), f"{where}, pred_pose")
    n = len(rotations)

    def optional(name: str, *shape: int) -> Tensor | None:
        return tensor(found[name], (n, *shape), f"{where}, {name}") if name in found else None

    seen = np.shape(found.get("pose_feats", ()))[1:]  # (128, 24) of PARE, (2048,) of ProHMR
    features, shapes = optional("pose_feats", *seen), optional("cam_shape_feats", 64, 24)
    return Predictions(
        rotations,
        tensor(betas, (n, 10), f"{where}, pred_betas"),
        tensor(camera, (n, 3), f"{where}, pred_cam"),
        optional("pred_cam_t", 3),
        None if features is None else features.flatten(1),
        None if shapes is None else shapes.flatten(1),
    )


def load_conditioned(annotations: str | Path, features: str | Path) -> tuple[Tensor, Tensor]:
    """What ScoreHMR's denoiser learns from: rotations (N, 24, 3, 3) and PARE's features of pose (N, 3072).

    The npz of features has pose_feats (M, 128, 24) of all people of `annotations`, in their order. People
    without rotations are left out.

    Raises:
        UserError: as `load_annotations`; other people, or nobody with rotations.
    """
    people = load_annotations(annotations)
    (values,) = need(read_npz(features), ["pose_feats"], str(features))
    seen = tensor(values, (None, 128, 24), f"{features}, pose_feats").flatten(1)
    if len(seen) != len(people):
        raise UserError(
            f"{features} has {len(seen)} people, {annotations} has {len(people)}: give the features of these"
        )
    if not people.has_rotations.any():
        raise UserError(f"{annotations} has nobody with body_pose and has_body_pose: nothing to learn")
    return people.rotations[people.has_rotations], seen[people.has_rotations]


def full_frame_translation(camera: Tensor, center: Tensor, box: Tensor, size: Tensor, focal: float) -> Tensor:
    """Weak perspective in a crop -> translation (N, 3) in metres in the full picture's camera.

    Z = 2 f / (b s), X = tx + 2 (cx - W / 2) / (b s), Y alike, for a camera (N, 3) of s, tx, ty; c, the middle
    (N, 2) of the crop, b, its side (N,), W and H, the `size` (N, 2) of the picture, whose middle is the
    principal point, and f, its focal length, are in pixels.
    """
    bs = box * camera[:, 0]
    shift = 2 * (center - size / 2) / bs[:, None]
    return torch.cat([camera[:, 1:] + shift, (2 * focal / bs)[:, None]], -1)


def _annotations(table: Any, where: str) -> Annotations:
    names, center, scale = need(table, ["imgname", "center", "scale"], where)
    n = len(names)

    def get(name: str, *shape: int) -> Tensor:
        """Zeros where the file has none."""
        if name not in table:
            return torch.zeros(n, *shape)
        return tensor(table[name], (n, *shape), f"{where}, {name}")

    sides = np.asarray(scale, dtype=np.float32)
    if sides.ndim == 2:  # width and height of the box
        sides = sides.max(1)
    body_3d = get("body_keypoints_3d", 25, 4).clone()
    body_3d[:, 1:15, 3] = 0  # OpenPose's own 3D limbs are not trusted, the extra joints cover them

    return Annotations(
        [n.decode() if isinstance(n, bytes) else str(n) for n in names],
        tensor(center, (n, 2), f"{where}, center"),
        tensor(sides, (n,), f"{where}, scale"),
        axis_angle_to_matrix(get("body_pose", 72).reshape(n, 24, 3)),
        get("has_body_pose").bool(),
        get("betas", 10),
        get("has_betas").bool(),
        torch.cat([get("body_keypoints_2d", 25, 3), get("extra_keypoints_2d", 19, 3)], 1),
        torch.cat([body_3d, get("extra_keypoints_3d", 19, 4)], 1),
    )
