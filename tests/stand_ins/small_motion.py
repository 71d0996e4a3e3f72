"""A person who stands with arms out and trembles: enough to train on for a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.motion import Motion

STANDING = torch.tensor(
    [[0, 0, 0], [-0.1, 0, 0], [-0.1, -0.4, 0], [-0.1, -0.8, 0], [0.1, 0, 0], [0.1, -0.4, 0], [0.1, -0.8, 0],
     [0, 0.25, 0], [0, 0.5, 0], [0, 0.6, 0.1], [0, 0.75, 0],
     [0.2, 0.48, 0], [0.5, 0.48, 0], [0.75, 0.48, 0], [-0.2, 0.48, 0], [-0.5, 0.48, 0], [-0.75, 0.48, 0]]
)  # fmt: skip


def trembling(frames: int) -> Tensor:
    noise = 0.02 * torch.randn(frames, 17, 3, generator=torch.Generator().manual_seed(0))
    noise[:, 0] = 0
    return STANDING + noise


def small_motion(frames: int = 64) -> Motion:
    joints = trembling(frames)
    return Motion(joints, torch.zeros(frames, 3), torch.zeros(frames, dtype=torch.int64), ["tremble"], ["1"])


def small_archive(path: Path, frames: int = 64) -> Path:
    """The same in the layout of the CMU archive."""
    np.savez(
        path,
        joints_rel=trembling(frames).numpy().astype(np.float16),
        root=np.zeros((frames, 3), np.float32),
        rot24=np.zeros((frames, 24, 3), np.float16),
        clip_start=np.array([0]),
        clip_len=np.array([frames]),
        subject=np.array(["1"]),
        trial=np.array(["1"]),
        action=np.array(["tremble"]),
        rot_valid=np.array([True]),
        split=np.array(["train"]),
        fps=np.float32(30),
    )
    return path


def rotations(frames: int, seed: int = 0) -> torch.Tensor:
    """(frames, 24, 3, 3), by seed."""
    generator = torch.Generator().manual_seed(seed)
    return axis_angle_to_matrix(0.6 * torch.randn(frames, 24, 3, generator=generator))
