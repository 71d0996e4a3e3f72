"""MPI-INF-3DHP: the test set's own annot_data.mat, and the npz files that video lifters train on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError, needed
from dd3g.pose.data.arrays import frames_of, need, read_npz, tensor
from dd3g.pose.data.recording import Recording, fit_intrinsics, intrinsics, record

TO_H36M = (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)
"""H36M-17 out of the 17 "relevant" joints: head top, neck, arms, legs, pelvis, spine, head."""
# fx, fy, cx, cy of the test cameras: two sequences before a green screen, two in a studio, two outdoors.
_K = {
    "TS1": (1500.00, 1500.65, 1017.38, 1043.06),
    "TS2": (1503.75, 1501.30, 1015.23, 1038.68),
    "TS3": (1500.0, 1500.7, 1017.4, 1043.0),
    "TS4": (1500.0, 1500.7, 1017.4, 1043.0),
    "TS5": (1683.6, 1672.3, 939.9, 560.2),
    "TS6": (1683.6, 1672.3, 939.9, 560.2),
}
_ROOT = 14


def load_3dhp_test(folder: str | Path, universal: bool = False) -> list[Recording]:
    """The test sequences TS1 .. TS6 as published, or some of them, their valid frames only.

    `universal` takes `univ_annot3`, all people scaled to one height, instead of `annot3`.

    Raises:
        UserError: no sequence there, no h5py, a file damaged or without one of its arrays.
    """
    paths = [p for name in _K if (p := Path(folder) / name / "annot_data.mat").exists()]
    if not paths:
        raise UserError(
            f"{folder} holds no TS1/annot_data.mat to TS6/annot_data.mat: name the test set's folder"
        )
    result = []
    for path in paths:
        key, name = "univ_annot3" if universal else "annot3", path.parent.name
        found = _read_mat(path, ["annot2", key, "valid_frame", "activity_annotation"])
        valid = torch.from_numpy(found["valid_frame"].reshape(-1) > 0)
        n = len(valid)
        points = tensor(found[key], (n, 1, 17, 3), f"{path}, {key}")[:, 0]
        pixels = tensor(found["annot2"], (n, 1, 17, 2), f"{path}, annot2")[:, 0]
        activity = torch.from_numpy(found["activity_annotation"].reshape(-1))
        whole = _recording(*_ordered(points, pixels), name, name, "0", str(path))
        for a in activity[valid].unique():  # in order
            result.append(replace(whole[valid & (activity == a)], action=f"activity {int(a)}"))
    return result


def load_3dhp_npz(path: str | Path) -> list[Recording]:
    """data_train_3dhp.npz or data_test_3dhp.npz (P-STMO), or the `_ori` variant (D3DP).

    Joints are in millimetres; all but the pelvis are relative to it where they are small.
    Intrinsics of training cameras, which the file lacks, are fitted to its own 2D and 3D points.

    Raises:
        UserError: an array missing or of a wrong shape, or no depth in it to fit a camera to.
    """
    (data,) = read_npz(path, ["data"]).values()
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}, data must be a table of sequences")
    result = []
    for name, value in data.items():
        where = f"{path}, {name}"
        if isinstance(name, str) and name.startswith("TS"):
            if name not in _K:
                raise UserError(f"{where} is not one of {', '.join(_K)}")
            joints, pixels, valid = need(value, ["data_3d", "data_2d", "valid"], where)
            kept = torch.from_numpy(np.asarray(valid).reshape(-1) > 0)
            whole = _recording(*_absolute(joints, pixels, where), name, name, "0", where)
            if len(kept) != len(whole):
                raise UserError(f"{where}: valid has {len(kept)} entries for {len(whole)} frames")
            result.append(whole[kept])
            continue
        # A training sequence is a list whose first item maps cameras to arrays.
        cameras = value[0] if isinstance(value, (list, tuple, np.ndarray)) and len(value) else value
        need(cameras, (), f"{where}, cameras")
        subject, _, action = str(name).partition(" ")
        for camera, arrays in cameras.items():
            place = f"{where}, camera {camera}"
            joints, pixels = need(arrays, ["data_3d", "data_2d"], place)
            seen = _absolute(joints, pixels, place)
            result.append(_recording(*seen, subject, action, str(camera), place))
    return result


def load_3dhp_pair(
    poses: str | Path, keypoints: str | Path, subjects: tuple[str, ...] = tuple(_K)
) -> list[Recording]:
    """data_3d_3dhp.npz with a data_2d_3dhp_*.npz, the pair that PRPose tests on; every sequence and camera.

    Joints are in metres, in the camera frame and already in H36M-17's order. Intrinsics of training cameras
    are fitted to the two files.

    Args:
        poses: positions_3d[subject][sequence] = one (T, 17, 3) a camera.
        keypoints: positions_2d[subject][sequence] = one (T', 17, 2) a camera, T' >= T.
        subjects: TS1 .. TS6 or S1 .. S8.

    Raises:
        UserError: a file, subject, sequence, camera or array is missing or has a wrong shape.
    """
    (world,) = read_npz(poses, ["positions_3d"]).values()
    (flat,) = read_npz(keypoints, ["positions_2d"]).values()
    result = []
    for subject, takes, seen in zip(
        subjects,
        need(world, subjects, f"{poses}, positions_3d"),
        need(flat, subjects, f"{keypoints}, positions_2d"),
        strict=True,
    ):
        where = f"{keypoints}, {subject}"
        need(takes, (), f"{poses}, {subject}")
        for take, views, pixels in zip(takes, takes.values(), need(seen, takes, where), strict=True):
            if len(views) != len(pixels):
                raise UserError(f"{where}, {take} has {len(pixels)} cameras for {len(views)} of poses")
            for camera, (view, kept) in enumerate(zip(views, pixels, strict=True)):
                place = f"{subject}, {take}, camera {camera}"
                points = tensor(view, (None, 17, 3), f"{poses}, {place}")
                points_2d = frames_of(kept, points, f"{keypoints}, {place}")
                result.append(_recording(points, points_2d, subject, str(take), str(camera), place))
    return result


def _absolute(joints: Any, pixels: Any, where: str) -> tuple[Tensor, Tensor]:
    """`_ordered` of absolute joints, whether or not they are so in the file."""
    points = tensor(joints, (None, 17, 3), f"{where}, data_3d").clone()
    flat = tensor(pixels, (len(points), 17, 2), f"{where}, data_2d")
    others = [j for j in range(17) if j != _ROOT]
    # Relative joints lie around zero while the pelvis stands metres in front of the camera.
    if len(points) and abs(np.median(points[:, others, 2])) < 0.5 * np.median(points[:, _ROOT, 2]):
        points[:, others] += points[:, _ROOT : _ROOT + 1]
    return _ordered(points, flat)


def _ordered(points: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (T, 17, 3) mm and pixels (T, 17, 2) as H36M-17, in metres."""
    order = list(TO_H36M)
    return points[:, order] / 1000, pixels[:, order]


def _recording(
    points: Tensor, pixels: Tensor, subject: str, action: str, camera: str, where: str
) -> Recording:
    """Intrinsics that are not known are fitted to the joints (T, 17, 3) and their pixels (T, 17, 2)."""
    if subject in _K:
        K = intrinsics(*_K[subject])
    elif not len(points) or points[:, 0, 2].median() < 0.5:
        raise UserError(f"{where}: the pelvis has no depth, so no camera can be fitted")
    else:
        K = fit_intrinsics(points, pixels)
    size = (1920, 1080) if subject in ("TS5", "TS6") else (2048, 2048)
    return record(points, pixels, K, size, subject, action, camera)


def _read_mat(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    with needed("reading annot_data.mat needs h5py: pip install h5py"):
        import h5py
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise UserError(f"{path} has no {', '.join(missing)}; it has {', '.join(file)}")
            return {name: file[name][()] for name in names}
    except OSError as error:
        raise UserError(f"{path} is not a MATLAB 7.3 file ({error}); get the file again") from error
