"""Human3.6M as pickled lists of single poses, the form that GFPose and ZeDO read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.data.arrays import need, read_pickle, tensor
from dd3g.pose.data.recording import Recording, intrinsics, record

SIZE = (1000, 1000)


def load_h36m_items(
    poses: str | Path, keypoints: str | Path | None = None, every: int = 640
) -> list[Recording]:
    """Every n-th item of h36m_test.pkl, with its exact keypoints or those of a detector.

    Args:
        poses: list of tables with joint_3d_image (17, 3), the first two in pixels, joint_3d_camera (17, 3)
            millimetres, camera_param {fx, fy, cx, cy} and action, a number.
        keypoints: h36m_sh_dt_ft.pkl, whose ["test"]["joint3d_image"] (N, 17, 2 or more) belong to the items
            one by one; None takes joint_3d_image.
        every: 640 is the subset of 886 poses of both papers.

    Returns:
        One recording for each action and camera; its root is the true one.

    Raises:
        UserError: a file or a value is missing or has a wrong shape, or the files differ in length.
    """
    items = read_pickle(poses)
    if not isinstance(items, list) or not items:
        raise UserError(f"{poses} must be a list of poses, it is {type(items).__name__}")
    detected = None if keypoints is None else _detected(keypoints)
    if detected is not None and len(detected) != len(items):
        raise UserError(f"{keypoints} has {len(detected)} poses, {poses} has {len(items)}: they must match")
    groups: dict[tuple[int, tuple[float, ...]], list[tuple[int, Tensor, Tensor]]] = {}
    for i in range(0, len(items), every):
        where = f"{poses}, item {i}"
        camera, action, image, points = need(
            items[i], ["camera_param", "action", "joint_3d_image", "joint_3d_camera"], where
        )
        numbers = need(camera, ["fx", "fy", "cx", "cy"], f"{where}, camera_param")
        lens = tensor([np.squeeze(x) for x in numbers], (4,), f"{where}, camera_param").tolist()
        seen = tensor(image, (17, 3), f"{where}, joint_3d_image")[:, :2]
        if detected is not None:
            seen = detected[i]
        points = tensor(points, (17, 3), f"{where}, joint_3d_camera") / 1000
        groups.setdefault((int(action), tuple(lens)), []).append((i, points, seen))
    result = []
    for (number, intrinsic), rows in groups.items():
        frames, poses_3d, pixels = (list(column) for column in zip(*rows, strict=True))
        recording = record(
            torch.stack(poses_3d), torch.stack(pixels), intrinsics(*intrinsic), SIZE, "test",
            f"action {number}", f"{intrinsic[0]:.0f}", frames=torch.tensor(frames),
        )  # fmt: skip
        result.append(recording)
    return result


def _detected(path: str | Path) -> Tensor:
    """(N, 17, 2) pixels."""
    (test,) = need(read_pickle(path), ["test"], str(path))
    (found,) = need(test, ["joint3d_image"], f"{path}, test")
    return tensor(found, (None, 17, None), f"{path}, test, joint3d_image")[..., :2]
