"""Human3.6M in the two npz files that lifters train on (those of VideoPose3D)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.data.arrays import frames_of, need, read_npz, tensor
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
    stride: int = 1,
    first: int = 0,
    listed: dict[Take, list[int]] | None = None,
    skip_broken: bool = False,
    undistort: bool = True,
    cameras: str | Path = CAMERAS,
) -> list[Recording]:
    """Every take by every camera.

    Args:
        poses: data_3d_h36m.npz, positions_3d[subject][action] (T, 32, 3) metres in the world.
        keypoints: data_2d_h36m_*.npz, positions_2d[subject][action] = one (T', 17, 2) a camera, T' >= T.
        subjects: which people.
        stride: every stride-th frame.
        first: the frame to start with.
        listed: frames to keep of each take that is named, as `read_frame_list` gives them; no others.
        skip_broken: leave out the two takes with broken videos, as that work does.
        undistort: move keypoints to where a pinhole camera would see them.
        cameras: calibration.

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
    lenses, stations = _calibration(cameras)
    result = []
    for subject, takes, flat, placed in zip(
        subjects,
        need(world, subjects, f"{poses}, positions_3d"),
        need(found["positions_2d"], subjects, f"{keypoints}, positions_2d"),
        need(stations, subjects, f"{cameras}, extrinsics"),
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
                if skip_broken and (subject, action, lens["id"]) in _BROKEN:
                    continue
                seen = frames_of(view, points, f"{keypoints}, {subject}, {action}")
                K = intrinsics(*lens["focal_length"], *lens["center"])
                if undistort:
                    k1, k2, k3 = lens["radial_distortion"]
                    seen, _ = undistorted(seen, K, torch.tensor([k1, k2, *lens["tangential_distortion"], k3]))
                recording = record(
                    _to_camera(points, station), seen, K, (lens["res_w"], lens["res_h"]),
                    subject, re.sub(r" \d+$", "", action), lens["id"],
                )  # fmt: skip
                if listed is None:
                    result.append(recording[first::stride])
                    continue
                rows = torch.tensor(listed.get((subject, action, lens["id"]), []), dtype=torch.int64)
                if len(rows) and rows.max() >= len(points):
                    raise UserError(
                        f"the list names frame {int(rows.max())} of {subject}, {action} by {lens['id']}, "
                        f"which has {len(points)}: give the list that belongs to these files"
                    )
                result.append(recording[rows])
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


def _calibration(path: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the cameras {path}: {error}") from error
    lenses, stations = need(found, ["intrinsics", "extrinsics"], str(path))
    names = "id center focal_length radial_distortion tangential_distortion res_w res_h".split()
    for lens in lenses:
        need(lens, names, f"{path}, intrinsics")
    return lenses, stations


def _to_camera(points: Tensor, station: dict[str, Any]) -> Tensor:
    """World (..., 3) metres -> camera: conj(q) (X - t) q."""
    w, *v = torch.tensor(station["orientation"], dtype=torch.float64).unbind()
    u = -torch.stack(v)
    x = points.double() - torch.tensor(station["translation"], dtype=torch.float64) / 1000
    u = u.expand_as(x)
    t = 2 * torch.linalg.cross(u, x)
    return (x + w * t + torch.linalg.cross(u, t)).float()
