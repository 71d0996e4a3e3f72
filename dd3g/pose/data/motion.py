"""Motion capture as one table of frames: the CMU archive, BVH and ASF/AMC files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.data.arrays import read_npz, tensor


@dataclass(frozen=True)
class Motion:
    """N frames of C clips. The world is y up; in the rest pose a person faces +z, left is +x."""

    joints: Tensor  # (N, 17, 3) metres, H36M-17, relative to the root
    root: Tensor  # (N, 3) metres, the root in the world
    clip: Tensor  # (N,) int64, index of each frame's clip, rising
    actions: list[str]  # C descriptions
    subjects: list[str]  # C people
    # (N, 24, 3) axis-angle on the SMPL-24 tree, identity is the T-pose; None where not known
    rotations: Tensor | None = None
    rotations_valid: Tensor | None = None  # (N,) bool, whether `rotations` may be trusted
    fps: float = 30.0  # frames a second

    def __len__(self) -> int:
        return len(self.joints)

    def frames(self, rows: Tensor) -> Motion:
        """Only these frames (B,), of the same clips."""
        chosen: dict[str, Any] = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **chosen)

    def clips(self, chosen: list[int]) -> Motion:
        """Only these clips, in their old order, numbered anew from 0."""
        order = sorted(set(chosen))
        kept = self.frames(torch.isin(self.clip, torch.tensor(order, dtype=torch.int64)).nonzero()[:, 0])
        return replace(
            kept,
            clip=torch.searchsorted(torch.tensor(order), kept.clip),
            actions=[self.actions[c] for c in order],
            subjects=[self.subjects[c] for c in order],
        )

    def windows(self, length: int) -> Tensor:
        """Frame indices (W, length) of windows within one clip each, which do not overlap."""
        starts = torch.arange(0, max(len(self) - length + 1, 0))
        sizes = torch.bincount(self.clip, minlength=len(self.actions))
        first = torch.cumsum(sizes, 0) - sizes  # (C,)
        whole = self.clip[starts] == self.clip[starts + length - 1]
        whole &= (starts - first[self.clip[starts]]) % length == 0
        return starts[whole][:, None] + torch.arange(length)


def load_cmu(path: str | Path, split: str = "train", strict: bool = True) -> Motion:
    """The CMU archive: npz with joints_rel, root, rot24 and one row a clip of subject, action, split.

    Args:
        path: cmu_mocap_30fps.npz.
        split: "train", "test" or "all".
        strict: leave out clips of unknown people ("x_..."), who may be the test people too.

    Raises:
        UserError: no such file, not an npz, an array that is missing or has a wrong shape, an empty split.
    """
    if split not in ("train", "test", "all"):
        raise UserError(f"split must be train, test or all, got {split!r}")
    names = "joints_rel root rot24 clip_start clip_len subject action rot_valid split".split()
    found = read_npz(path, [*names, "fps"])
    n, starts, lengths = len(found["joints_rel"]), found["clip_start"], found["clip_len"]
    rows = {len(found[name]) for name in names[3:]}
    if len(rows) > 1 or lengths.sum() != n:
        raise UserError(f"{path}: its clips do not add up to its {n} frames; get the file again")
    if (starts != np.cumsum(lengths) - lengths).any():
        raise UserError(f"{path}: clip_start does not follow from clip_len; get the file again")
    clip = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    motion = Motion(
        tensor(found["joints_rel"], (None, 17, 3), f"{path}: joints_rel"),
        tensor(found["root"], (n, 3), f"{path}: root"),
        clip,
        [str(a) for a in found["action"]],
        [str(s) for s in found["subject"]],
        tensor(found["rot24"], (n, 24, 3), f"{path}: rot24"),
        torch.from_numpy(found["rot_valid"].astype(bool))[clip],
        float(found["fps"]),
    )
    chosen = [
        c
        for c, subject in enumerate(motion.subjects)
        if split in ("all", str(found["split"][c])) and not (strict and subject.startswith("x_"))
    ]
    if not chosen:
        raise UserError(f"{path} has no clips in split {split!r}")
    return motion.clips(chosen)
