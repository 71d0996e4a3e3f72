"""Motion capture in BVH files, with the joint names of the common exporters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.arrays import read_text
from dd3g.pose.data.motion import Motion

_CHANNELS = {axis + what for axis in "xyz" for what in ("position", "rotation")}


@dataclass
class Tree:
    """A hierarchy and its movement; `positions` turns it into points."""

    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    offsets: list[list[float]] = field(default_factory=list)
    channels: list[list[str]] = field(default_factory=list)
    values: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (T, all channels in order)
    frame_time: float = 1 / 30


def read_bvh(path: str | Path, scale: float = 0.01) -> Motion:
    """One BVH file as one clip.

    Args:
        path: the file; y up.
        scale: metres a unit; BVH does not define it, most files are in centimetres.

    Raises:
        UserError: not a BVH file, cut off, or without a joint that H36M-17 needs.
    """
    tree = parse_bvh(path)
    joints, root = canonical_joints(tree.names, scale * positions(tree), str(path))
    clip = torch.zeros(len(joints), dtype=torch.int64)
    name = Path(path).stem
    return Motion(joints, root, clip, [name], [name], fps=1 / tree.frame_time)


def parse_bvh(path: str | Path) -> Tree:
    """The file as it stands; an end site is a joint called after its parent with " end"."""
    words = read_text(path).split()
    tree, at = Tree(), 0
    stack: list[int] = []
    try:
        if words[0] != "HIERARCHY":
            raise UserError(f"{path} is no BVH file: it does not begin with HIERARCHY")
        at = 1
        while words[at] != "MOTION":
            word = words[at]
            if word in ("ROOT", "JOINT", "End"):
                parent = stack[-1] if stack else -1
                tree.names.append(f"{tree.names[parent]} end" if word == "End" else words[at + 1])
                tree.parents.append(parent)
                tree.offsets.append([0.0, 0.0, 0.0])
                tree.channels.append([])
                stack.append(len(tree.names) - 1)
                at += 3  # keyword, name, brace
            elif word == "OFFSET":
                tree.offsets[stack[-1]] = [float(v) for v in words[at + 1 : at + 4]]
                at += 4
            elif word == "CHANNELS":
                count = int(words[at + 1])
                channels = [word.lower() for word in words[at + 2 : at + 2 + count]]
                if unknown := set(channels) - _CHANNELS:
                    raise ValueError(f"channel {unknown.pop()!r}")
                tree.channels[stack[-1]] = channels
                at += 2 + count
            elif word == "}":
                stack.pop()
                at += 1
            else:
                raise UserError(f"{path} cannot be read as a BVH file: unexpected {word!r}")
        frames, tree.frame_time = int(words[at + 2]), float(words[at + 5])
        if not tree.frame_time > 0:
            raise ValueError(f"frame time {tree.frame_time:g}")
        values = np.array(words[at + 6 :], dtype=np.float64)
        width = sum(map(len, tree.channels))
        if len(values) != frames * width:
            raise UserError(f"{path} is cut off: {len(values)} numbers for {frames} frames of {width}")
        tree.values = torch.from_numpy(values.reshape(frames, width))
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is not a complete BVH file ({error}); get it again") from error
    return tree


def positions(tree: Tree) -> Tensor:
    """(T, J, 3) float64 joints by forward kinematics; rotations apply in the order of the channels."""
    frames = len(tree.values)
    world_R: list[Tensor] = []
    world_p: list[Tensor] = []
    column = 0
    for parent, offset, channels in zip(tree.parents, tree.offsets, tree.channels, strict=True):
        R = torch.eye(3, dtype=torch.float64).expand(frames, 3, 3)
        p = torch.tensor(offset, dtype=torch.float64).repeat(frames, 1)
        for channel in channels:
            value = tree.values[:, column]
            column += 1
            axis = "xyz".index(channel[0])
            if channel[1:] == "position":
                p[:, axis] = value
            else:
                unit = torch.eye(3, dtype=torch.float64)[axis]
                R = R @ axis_angle_to_matrix(torch.deg2rad(value)[:, None] * unit)
        if parent < 0:
            world_R.append(R)
            world_p.append(p)
        else:
            world_p.append(world_p[parent] + (world_R[parent] @ p[..., None])[..., 0])
            world_R.append(world_R[parent] @ R)
    return torch.stack(world_p, 1)


# What exporters call the joints: MotionBuilder and the CMU conversions, Daz, iClone and Mixamo, SMPL. Names
# that mean a collar bone in one family and the joint itself in another come last.
_NAMES: dict[str, tuple[str, ...]] = {
    "root": ("hips", "hip", "pelvis", "root"),
    "neck": ("neck", "necktwist01", "neck1"),
    "head": ("head", "skull"),
    "hip": ("upleg", "thigh", "upperleg", "hip"),
    "knee": ("leg", "shin", "calf", "lowerleg", "knee"),
    "ankle": ("ankle", "foot"),
    "shoulder": ("arm", "shldr", "upperarm", "shoulder"),
    "elbow": ("forearm", "lowerarm", "elbow"),
    "wrist": ("wrist", "hand"),
}
_LIMBS = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
_SPINE = ("spine", "abdomen", "lowerback", "chest", "waist")


def _plain(name: str) -> tuple[str, str]:
    """A joint's side ("l", "r" or "") and its name without side, prefix and case."""
    plain = name.split(":")[-1].replace(" ", "").lower().removeprefix("cc_base_").removeprefix("mixamorig")
    for word, side in (("left", "l"), ("right", "r"), ("l_", "l"), ("r_", "r")):
        if plain.startswith(word):
            return side, plain.removeprefix(word).strip("_")
    if plain[0] in "lr" and any(plain[1:] in _NAMES[limb] for limb in _LIMBS):
        return plain[0], plain[1:]
    return "", plain


def canonical_joints(names: list[str], points: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """H36M-17 out of named joints.

    The thorax lies between the shoulders, a quarter of the way to the neck; the spine is the joint nearest to
    the middle of hip and thorax; the top of the head is the head's end site, or 0.15 m beyond the head; the
    nose lies between head and top, 0.07 m to the front.

    Args:
        names: J joint names; an end site is called after its parent with " end".
        points: (T, J, 3) metres, y up.
        where: for the message.

    Returns:
        joints (T, 17, 3) float32 relative to the root, and root (T, 3) float32.

    Raises:
        UserError: a joint is missing; the message names it and those that are there.
    """
    known = {_plain(name): points[:, i] for i, name in reversed(list(enumerate(names)))}

    def find(side: str, joint: str) -> Tensor:
        for name in _NAMES[joint]:
            if (side, name) in known:
                return known[side, name]
        label = f"{side}_{joint}".strip("_")
        raise UserError(f"{where} has no joint for {label!r}; it has {', '.join(names)}")

    hip, neck, head = find("", "root"), find("", "neck"), find("", "head")
    left, right = ({joint: find(side, joint) for joint in _LIMBS} for side in "lr")
    middle = (left["shoulder"] + right["shoulder"]) / 2
    thorax = middle + 0.25 * (neck - middle)
    spines = [p for (side, name), p in known.items() if not side and name.startswith(_SPINE)]
    half = (thorax + hip) / 2
    spine = min(spines, key=lambda p: float((p - half).norm(dim=-1).mean()), default=half)
    up = torch.nn.functional.normalize(head - thorax, dim=-1)
    crown = known.get(("", "headend"), head + 0.15 * up)
    front = torch.linalg.cross(left["shoulder"] - right["shoulder"], up)
    nose = (head + crown) / 2 + 0.07 * torch.nn.functional.normalize(front, dim=-1)
    legs, arms = _LIMBS[:3], _LIMBS[3:]
    joints = torch.stack(
        [hip, *(right[j] for j in legs), *(left[j] for j in legs), spine, thorax, nose, crown,
         *(left[j] for j in arms), *(right[j] for j in arms)], 1
    )  # fmt: skip
    return (joints - joints[:, :1]).float(), hip.float()
