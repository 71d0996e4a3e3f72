"""Motion capture in BVH files, with the joint names of the common exporters."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.arrays import read_text
from dd3g.pose.data.motion import Motion

AXES = dict(zip("xyz", torch.eye(3, dtype=torch.float64), strict=True))
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
    """One BVH file, y up, as one clip.

    BVH does not define its unit, of `scale` metres: most files are in centimetres.

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
    words, tree = iter(read_text(path).split()), Tree()
    stack: list[int] = []
    try:
        if next(words) != "HIERARCHY":
            raise UserError(f"{path} is no BVH file: it does not begin with HIERARCHY")
        while (word := next(words)) != "MOTION":
            if word in ("ROOT", "JOINT", "End"):
                parent = stack[-1] if stack else -1
                name, _ = next(words), next(words)  # and a brace
                stack.append(len(tree.names))
                tree.names.append(f"{tree.names[parent]} end" if word == "End" else name)
                tree.parents.append(parent)
                tree.offsets.append([0.0, 0.0, 0.0])
                tree.channels.append([])
            elif word == "OFFSET":
                tree.offsets[stack[-1]] = [float(v) for v in islice(words, 3)]
            elif word == "CHANNELS":
                channels = [word.lower() for word in islice(words, int(next(words)))]
                if unknown := set(channels) - _CHANNELS:
                    raise ValueError(f"channel {unknown.pop()!r}")
                tree.channels[stack[-1]] = channels
            elif word == "}":
                stack.pop()
            else:
                raise UserError(f"{path} cannot be read as a BVH file: unexpected {word!r}")
        _, count, _, _, seconds = islice(words, 5)  # Frames: 2 Frame Time: 0.05
        frames, tree.frame_time = int(count), float(seconds)
        if not tree.frame_time > 0:
            raise ValueError(f"frame time {tree.frame_time:g}")
        values = np.array(list(words), dtype=np.float64)
        width = sum(map(len, tree.channels))
        if len(values) != frames * width:
            raise UserError(f"{path} is cut off: {len(values)} numbers for {frames} frames of {width}")
        tree.values = torch.from_numpy(values.reshape(frames, width))
    except (IndexError, ValueError, StopIteration) as error:
        reason = str(error) or "it ends early"
        raise UserError(f"{path} is not a complete BVH file ({reason}); get it again") from error
    return tree


def positions(tree: Tree) -> Tensor:
    """(T, J, 3) float64 joints by forward kinematics; rotations apply in the order of the channels."""
    world_R: list[Tensor] = []
    world_p: list[Tensor] = []
    columns = iter(tree.values.T)
    for parent, offset, channels in zip(tree.parents, tree.offsets, tree.channels, strict=True):
        R = torch.eye(3, dtype=torch.float64).expand(len(tree.values), 3, 3)
        p = torch.tensor(offset, dtype=torch.float64).repeat(len(tree.values), 1)
        for channel in channels:
            value = next(columns)
            if channel[1:] == "position":
                p[:, "xyz".index(channel[0])] = value
            else:
                R = R @ axis_angle_to_matrix(torch.deg2rad(value)[:, None] * AXES[channel[0]])
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

    Points (T, J, 3) are in metres, y up; an end site is called after its parent with " end". `where` is for
    the message.

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
