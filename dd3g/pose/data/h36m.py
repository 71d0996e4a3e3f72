"""Human3.6M as npz files, which lifters train on (VideoPose3D), and as lists of poses (GFPose, ZeDO)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.gaussians import quaternion_to_matrix
from dd3g.pose.data.arrays import frames_of, need, read_cameras, read_npz, read_pickle, tensor
from dd3g.pose.data.recording import Recording, intrinsics, record
from dd3g.pose.detection.camera import undistorted

TEST = ("S9", "S11")
KEPT = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""The 17 of the 32 recorded joints."""
Take = tuple[str, str, str]
"""Subject, action with the number of the take, and camera."""
CAMERAS = Path(__file__).with_name("h36m_cameras.json")
# Takes whose video is broken; those who report many hypotheses leave them out (Wehrbein et al. 2021).
_BROKEN = {("S11", "Directions", "54138969"), ("S5", "Waiting 1", "55011271")}


def load_h36m(
    poses: str | Path,
    keypoints: str | Path,
    subjects: tuple[str, ...] = TEST,
    listed: dict[Take, list[int]] | None = None,
    skip_broken: bool = False,
    undistort: bool = True,
) -> list[Recording]:
    """Every take by every camera.

    Args:
        poses: data_3d_h36m.npz, positions_3d[subject][action] (T, 32, 3) metres in the world.
        keypoints: data_2d_h36m_*.npz, positions_2d[subject][action] = one (T', 17, 2) a camera, T' >= T.
        subjects: which people.
        listed: frames to keep of each take that is named, as `read_frame_list` gives them; no others.
        skip_broken: leave out the two takes with broken videos, as that work does.
        undistort: move keypoints to where a pinhole camera would see them.

    Returns:
        Recordings; `action` is the published name without the number of the take.

    Raises:
        UserError: a file, subject, action, camera or array is missing or has a wrong shape.
    """
    (world,) = read_npz(poses, ["positions_3d"]).values()
    found = read_npz(keypoints, ["positions_2d", "metadata"])
    (joints,) = need(found["metadata"], ["num_joints"], f"{keypoints}, metadata")
    if joints != 17:
        raise UserError(f"{keypoints} has {joints} joints, not the 17 of Human3.6M: use a file made for it")
    lenses, stations = need(read_cameras(CAMERAS), ["intrinsics", "extrinsics"], str(CAMERAS))
    result = []
    for subject, takes, flat, placed in zip(
        subjects,
        need(world, subjects, f"{poses}, positions_3d"),
        need(found["positions_2d"], subjects, f"{keypoints}, positions_2d"),
        need(stations, subjects, f"{CAMERAS}, extrinsics"),
        strict=True,
    ):
        for action, take in takes.items():
            where = f"{poses}, {subject}, {action}"
            points = tensor(take, (None, 32, 3), where)[:, list(KEPT)]
            (views,) = need(flat, [action], f"{keypoints}, {subject}")
            if len(views) != len(lenses):
                raise UserError(
                    f"{keypoints}, {subject}, {action} has {len(views)} cameras, calibrated are {len(lenses)}"
                )
            for lens, station, view in zip(lenses, placed, views, strict=True):
                name: Take = (subject, action, lens["id"])
                if skip_broken and name in _BROKEN:
                    continue
                R = quaternion_to_matrix(torch.tensor(station["orientation"], dtype=torch.float64))
                place = torch.tensor(station["translation"], dtype=torch.float64) / 1000
                seen = frames_of(view, points, f"{keypoints}, {subject}, {action}")
                K = intrinsics(*lens["focal_length"], *lens["center"])
                if undistort:
                    k1, k2, k3 = lens["radial_distortion"]
                    seen, _ = undistorted(seen, K, torch.tensor([k1, k2, *lens["tangential_distortion"], k3]))
                recording = record(
                    ((points.double() - place) @ R).float(), seen, K, (lens["res_w"], lens["res_h"]),
                    subject, re.sub(r" \d+$", "", action), lens["id"],
                )  # fmt: skip
                rows = range(len(points)) if listed is None else listed.get(name, [])
                if max(rows, default=-1) >= len(points):
                    raise UserError(
                        f"the list names frame {max(rows)} of {subject}, {action} by {lens['id']}, "
                        f"which has {len(points)}: give the list that belongs to these files"
                    )
                result.append(recording[torch.tensor(rows, dtype=torch.int64)])
    return [recording for recording in result if len(recording)]


def read_frame_list(path: str | Path) -> dict[Take, list[int]]:
    """A list of frames with one /SUBJECT/TAKE.CAMERA/NUMBER.jpg a line, numbers from 1.

    So is framelist_h36m_hard_subset.txt written, the frames of H36MA (Wehrbein et al. 2021).

    Returns:
        Frames from 0 on of each (subject, take, camera); takes by the names of data_3d_h36m.npz.

    Raises:
        UserError: no such file, or a line of another form.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of frames {path}: {error}") from error
    result: dict[Take, list[int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"/(S\d+)/([^/]+)\.(\d{8})/(\d+)\.jpg", line.strip())
        if found is None or int(found[4]) < 1:
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not /S9/TAKE.CAMERA/NUMBER.jpg")
        take = found[2].replace("TakingPhoto", "Photo").replace("WalkingDog", "WalkDog")
        result.setdefault((found[1], take, found[3]), []).append(int(found[4]) - 1)
    if not result:
        raise UserError(f"{path} lists no frame")
    return result


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
        raise UserError(f"{poses} must be a list of poses, not {type(items).__name__}")
    detected = None
    if keypoints is not None:
        (test,) = need(read_pickle(keypoints), ["test"], str(keypoints))
        (found,) = need(test, ["joint3d_image"], f"{keypoints}, test")
        detected = tensor(found, (None, 17, None), f"{keypoints}, test, joint3d_image")[..., :2]
        if len(detected) != len(items):
            raise UserError(
                f"{keypoints} has {len(detected)} poses, but {poses} has {len(items)}: they must match"
            )
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
            torch.stack(poses_3d), torch.stack(pixels), intrinsics(*intrinsic), (1000, 1000), "test",
            f"action {number}", f"{intrinsic[0]:.0f}", frames=torch.tensor(frames),
        )  # fmt: skip
        result.append(recording)
    return result
