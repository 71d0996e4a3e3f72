"""Motion capture as one table of frames: the CMU archive, BVH and ASF/AMC files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.data.arrays import read_npz


@dataclass(frozen=True)
class Motion:
    """N frames of C clips. The world is y up; in the rest pose a person faces +z, left is +x.

    Args:
        joints: (N, 17, 3) metres, H36M-17, relative to the root.
        root: (N, 3) metres, the root in the world.
        clip: (N,) index of each frame's clip, rising.
        actions: C descriptions.
        subjects: C people.
        rotations: (N, 24, 3) axis-angle on the SMPL-24 tree, identity is the T-pose; None where not known.
        rotations_valid: (N,) whether `rotations` may be trusted.
        fps: frames a second.
    """

    joints: Tensor  # (N, 17, 3) metres
    root: Tensor  # (N, 3) metres
    clip: Tensor  # (N,) int64
    actions: list[str]
    subjects: list[str]
    rotations: Tensor | None = None  # (N, 24, 3) radians
    rotations_valid: Tensor | None = None  # (N,) bool
    fps: float = 30.0

    def __len__(self) -> int:
        return len(self.joints)

    def clips(self, chosen: list[int]) -> Motion:
        """Only these clips, in their old order, numbered anew from 0."""
        keep = torch.isin(self.clip, torch.tensor(chosen, dtype=torch.int64))
        rows = keep.nonzero()[:, 0]
        order = sorted(set(chosen))
        renumber = torch.full((len(self.actions),), -1)
        renumber[order] = torch.arange(len(order))
        return Motion(
            self.joints[rows],
            self.root[rows],
            renumber[self.clip[rows]],
            [self.actions[c] for c in order],
            [self.subjects[c] for c in order],
            None if self.rotations is None else self.rotations[rows],
            None if self.rotations_valid is None else self.rotations_valid[rows],
            self.fps,
        )

    def windows(self, length: int, stride: int | None = None) -> Tensor:
        """Frame indices (W, length) of all windows that lie within one clip.

        Args:
            length: frames a window.
            stride: frames from one start to the next; None: windows do not overlap.
        """
        starts = torch.arange(0, max(len(self) - length + 1, 0))
        sizes = torch.bincount(self.clip, minlength=len(self.actions))
        first = torch.cumsum(sizes, 0) - sizes  # (C,)
        whole = self.clip[starts] == self.clip[starts + length - 1]
        whole &= (starts - first[self.clip[starts]]) % (stride or length) == 0
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
    names = [
        "joints_rel",
        "root",
        "rot24",
        "clip_start",
        "clip_len",
        "subject",
        "action",
        "rot_valid",
        "split",
    ]
    found = read_npz(path, [*names, "fps"])
    n, starts, lengths = len(found["joints_rel"]), found["clip_start"], found["clip_len"]
    if found["joints_rel"].shape != (n, 17, 3) or found["root"].shape != (n, 3):
        raise UserError(
            f"{path}: joints_rel must be (N, 17, 3) and root (N, 3), got {found['joints_rel'].shape} and "
            f"{found['root'].shape}"
        )
    if (
        len({len(found[name]) for name in names[3:]}) > 1
        or lengths.sum() != n
        or found["rot24"].shape[0] != n
    ):
        raise UserError(f"{path}: its clips do not add up to its {n} frames; get the file anew")
    if (starts != np.cumsum(lengths) - lengths).any():
        raise UserError(f"{path}: clip_start does not follow from clip_len; get the file anew")
    clip = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    motion = Motion(
        torch.from_numpy(found["joints_rel"].astype(np.float32)),
        torch.from_numpy(found["root"].astype(np.float32)),
        clip,
        [str(a) for a in found["action"]],
        [str(s) for s in found["subject"]],
        torch.from_numpy(found["rot24"].astype(np.float32)),
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
