"""One camera's view of one take, the form that every data set is brought into."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recording:
    """T frames of one person in one camera."""

    pose: Tensor  # (T, 17, 3) metres, H36M-17, camera frame, root-relative
    root: Tensor  # (T, 3) metres, camera frame
    keypoints: Tensor  # (T, 17, 2) pixels
    confidence: Tensor  # (T, 17); ones where the file has none
    K: Tensor  # (3, 3) pixels
    size: tuple[int, int]  # width and height in pixels
    subject: str  # who
    action: str  # what
    camera: str  # its name
    frames: Tensor  # (T,) int64, numbers in the original file
    # (T, 24, 3) axis-angle on the SMPL tree, root rotation in the camera frame, where known
    rotations: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, rows: slice | Tensor) -> Recording:
        """Some of the frames."""
        names = ("pose", "root", "keypoints", "confidence", "frames", "rotations")
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value[rows] for name, value in fields.items()})


def record(
    points: Tensor, keypoints: Tensor, K: Tensor, size: tuple[int, int], subject: str, action: str,
    camera: str, *, confidence: Tensor | None = None, frames: Tensor | None = None,
    rotations: Tensor | None = None,
) -> Recording:  # fmt: skip
    """A recording from joints (T, 17, 3) in the camera frame, not yet root-relative; the rest as there."""
    pose, root = points - points[:, :1], points[:, 0]
    confidence = torch.ones(keypoints.shape[:2]) if confidence is None else confidence
    frames = torch.arange(len(points)) if frames is None else frames
    return Recording(pose, root, keypoints, confidence, K, size, subject, action, camera, frames, rotations)


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Tensor:
    """(3, 3) from focal lengths and principal point in pixels."""
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def fit_intrinsics(points: Tensor, keypoints: Tensor) -> Tensor:
    """K (3, 3) by least squares from points (..., 3) in the camera frame and their pixels (..., 2)."""
    points, keypoints = points.reshape(-1, 3).double(), keypoints.reshape(-1, 2).double()
    known = torch.stack([points[:, :2] / points[:, 2:], torch.ones_like(points[:, :2])], -1)  # (N, 2, 2)
    solved = torch.linalg.lstsq(known.transpose(0, 1), keypoints.T[..., None]).solution[..., 0]
    (fx, cx), (fy, cy) = solved.tolist()
    return intrinsics(fx, fy, cx, cy)
