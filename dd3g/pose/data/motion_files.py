"""Motion to train on, from whatever files: the CMU archive, BVH, ASF with AMC, AMASS, or a folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from dd3g.pose.data.acclaim import read_amc
from dd3g.pose.data.arrays import read_npz, tensor
from dd3g.pose.data.bvh import read_bvh
from dd3g.pose.data.motion import Motion, load_cmu

FPS = 30.0  # frames a second that are kept: more of them are alike
SUFFIXES = (".npz", ".bvh", ".amc")


def load_motion(path: str | Path, split: str = "train") -> Motion:
    """Read motion of any kind.

    That is the CMU archive, of which `split` is taken; a .bvh, an .amc with its .asf beside it, or an .npz of
    AMASS; or a folder of the last three, with subfolders.

    Raises:
        UserError: nothing there, or a file that is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path, split)
    below = (p for p in path.rglob("*") if not any(n[0] == "." for n in p.relative_to(path).parts))
    files = sorted(p for p in below if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no motion: looked for {', '.join(SUFFIXES)}")
    return joined([_read(file, split) for file in files])


def joined(motions: Sequence[Motion]) -> Motion:
    """The clips of several, at `FPS` frames a second; rotations stay where some have them."""
    if len(motions) == 1:
        return motions[0]
    parts = [thinned(motion) for motion in motions]
    before = torch.tensor([0, *(len(m.actions) for m in parts[:-1])]).cumsum(0)
    given = any(m.rotations is not None for m in parts)

    def column(name: str, *shape: int) -> Tensor:
        values = ((m, getattr(m, name)) for m in parts)
        return torch.cat([torch.zeros(len(m), *shape) if v is None else v for m, v in values])

    return Motion(
        column("joints"),
        column("root"),
        torch.cat([m.clip + first for m, first in zip(parts, before, strict=True)]),
        [action for m in parts for action in m.actions],
        [subject for m in parts for subject in m.subjects],
        column("rotations", 24, 3) if given else None,
        column("rotations_valid").bool() if given else None,  # a frame without rotations has none that count
        FPS,
    )


def thinned(motion: Motion, fps: float = FPS) -> Motion:
    """Every n-th frame of each clip, so that about `fps` a second stay."""
    every = max(1, round(motion.fps / fps))
    sizes = torch.bincount(motion.clip, minlength=len(motion.actions))
    first = torch.cumsum(sizes, 0) - sizes
    rows = ((torch.arange(len(motion)) - first[motion.clip]) % every == 0).nonzero()[:, 0]
    return replace(motion.frames(rows), fps=motion.fps / every)


def _read(path: Path, split: str) -> Motion:
    suffix = path.suffix.lower()
    if suffix == ".bvh":
        return read_bvh(path)
    if suffix == ".amc":
        return read_amc(_skeleton_of(path), path)
    if suffix != ".npz":
        raise UserError(f"{path} is not a motion file: give {', '.join(SUFFIXES)}, or a folder of them")
    found = read_npz(path)
    return _read_amass(found, path) if "poses" in found and "trans" in found else load_cmu(path, split)


def _skeleton_of(path: Path) -> Path:
    """CMU names a skeleton 07.asf and its takes 07_01.amc."""
    named = path.with_name(path.stem.split("_")[0] + ".asf")
    others = sorted(path.parent.glob("*.asf"))
    if named.is_file():
        return named
    if len(others) == 1:
        return others[0]
    raise UserError(f"{path}: no skeleton {named.name} beside it")


def _read_amass(found: dict[str, Any], path: Path) -> Motion:
    """One take of AMASS, SMPL-H or SMPL-X, as it looks on the shipped body; its world is z up."""
    poses = tensor(found["poses"], (None, None), f"{path}, poses")
    trans = tensor(found["trans"], (len(poses), 3), f"{path}, trans")
    rate = found.get("mocap_framerate", found.get("mocap_frame_rate"))
    if poses.shape[1] < 66:
        raise UserError(f"{path}: poses must have 66 numbers (22 joints) or more, but has {poses.shape[1]}")
    if rate is None:
        raise UserError(f"{path} has no mocap_framerate, frames a second")
    up = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z up to y up
    rotations = torch.zeros(len(poses), 24, 3)
    rotations[:, :22] = poses[:, :66].unflatten(1, (22, 3))
    rotations[:, 0] = matrix_to_axis_angle(up @ axis_angle_to_matrix(rotations[:, 0]))
    joints: Tensor = default_body().points(axis_angle_to_matrix(rotations), torch.zeros(len(poses), 10))
    clip = torch.zeros(len(poses), dtype=torch.int64)
    valid = torch.ones(len(poses), dtype=torch.bool)
    names = [path.stem], [path.parent.name]
    return thinned(Motion(joints, trans @ up.T, clip, *names, rotations, valid, float(rate)))
