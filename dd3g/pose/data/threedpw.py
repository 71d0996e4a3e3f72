"""3DPW: sequenceFiles/{train,validation,test}/*.pkl as published, read without running what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from dd3g.pose.body.skeletons import to_h36m
from dd3g.pose.data.arrays import need, read_pickle, tensor
from dd3g.pose.data.recording import Recording, record


def load_3dpw(source: str | Path) -> list[Recording]:
    """One .pkl or a folder such as sequenceFiles/test; one recording a person, frames with a valid camera.

    The truth is `jointPositions`, the 24 SMPL joints, as H36M-17 (`to_h36m`): head and nose are extrapolated,
    so figures do not compare with those of the 14 joints that are regressed from SMPL meshes.

    Raises:
        UserError: nothing there, code in a file, or a key missing.
    """
    source = Path(source)
    paths = sorted(source.glob("*.pkl")) if source.is_dir() else [source]
    if not paths:
        raise UserError(f"{source} holds no .pkl: name the folder sequenceFiles/test or one file")
    return [recording for path in paths for recording in _load(path)]


def _load(path: Path) -> list[Recording]:
    shared = ["sequence", "img_frame_ids", "cam_intrinsics", "cam_poses"]
    each = ["poses", "jointPositions", "poses2d", "campose_valid"]
    sequence, numbers, lens, places, *people = need(read_pickle(path), shared + each, str(path))
    K = tensor(lens, (3, 3), f"{path}, cam_intrinsics")
    extrinsics = tensor(places, (None, 4, 4), f"{path}, cam_poses")
    n = len(extrinsics)
    R, t = extrinsics[:, :3, :3], extrinsics[:, :3, 3]
    result = []
    if len({len(p) for p in people}) != 1:
        raise UserError(f"{path}: poses, jointPositions, poses2d and campose_valid differ in their people")
    for p, (pose, joints, pixels, valid) in enumerate(zip(*people, strict=True)):
        where = f"{path}, person {p}"
        keep = (tensor(valid, (n,), f"{where}, campose_valid") > 0).nonzero()[:, 0]
        world = tensor(joints, (n, 72), f"{where}, jointPositions").reshape(n, 24, 3)
        points, _ = to_h36m(world @ R.transpose(-1, -2) + t[:, None], None, "smpl-24")
        detected = tensor(pixels, (n, 3, 18), f"{where}, poses2d")
        keypoints, confidence = to_h36m(detected[:, :2].transpose(1, 2), detected[:, 2], "coco-18")
        rotations = tensor(pose, (n, 72), f"{where}, poses").reshape(n, 24, 3)
        facing = matrix_to_axis_angle(R @ axis_angle_to_matrix(rotations[:, 0]))
        # The principal point is the middle of the picture.
        size = round(2 * float(K[0, 2])), round(2 * float(K[1, 2]))
        frames = torch.from_numpy(np.asarray(numbers).astype(np.int64).reshape(n))
        whole = record(
            points, keypoints, K, size, f"{sequence}-{p}", str(sequence), "0", confidence=confidence,
            rotations=torch.cat([facing[:, None], rotations[:, 1:]], 1), frames=frames,
        )  # fmt: skip
        result.append(whole[keep])
    return result
