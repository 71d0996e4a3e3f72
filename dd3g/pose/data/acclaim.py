"""Motion capture in ASF/AMC pairs, as the CMU database gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.arrays import read_text
from dd3g.pose.data.bvh import AXES, canonical_joints
from dd3g.pose.data.motion import Motion

# A bone is called after what lies along it; its end is this joint.
_ENDS = {
    "root": "hip", "lhipjoint": "l_hip", "lfemur": "l_knee", "ltibia": "l_ankle", "rhipjoint": "r_hip",
    "rfemur": "r_knee", "rtibia": "r_ankle", "lowerback": "lowerback", "upperback": "chest", "thorax": "neck",
    "upperneck": "head", "head": "head end", "lclavicle": "l_shoulder", "lhumerus": "l_elbow",
    "lradius": "l_wrist", "rclavicle": "r_shoulder", "rhumerus": "r_elbow", "rradius": "r_wrist",
}  # fmt: skip


@dataclass
class _Bone:
    parent: str
    offset: Tensor  # (3,) from start to end, in the file's units
    axis: Tensor  # (3, 3) frame in which the bone turns
    dof: list[str]


def read_amc(skeleton: str | Path, motion: str | Path, fps: float = 120.0) -> Motion:
    """An .asf skeleton and one .amc take as one clip. Lengths follow CMU: a unit is 1 / `length` inches.

    The files do not hold their frames a second: CMU's are 120, a few 60.

    Raises:
        UserError: either is not such a file, cut off, or they do not belong together.
    """
    bones, length, radians = _parse_asf(Path(skeleton))
    frames = _parse_amc(Path(motion), bones)
    ends: dict[str, Tensor] = {}
    turns: dict[str, Tensor] = {}
    for name, bone in bones.items():  # parents come first
        values = frames[name]  # (T, dof)
        R = torch.eye(3, dtype=torch.float64).expand(len(values), 3, 3)
        shift = torch.zeros(len(values), 3, dtype=torch.float64)
        for column, channel in enumerate(bone.dof):
            along = values[:, column, None] * AXES[channel[1]]
            if channel[0] == "t":
                shift = shift + along
            else:
                # Fixed axes: what comes later in the list turns what came before.
                R = axis_angle_to_matrix(radians * along) @ R
        R = bone.axis @ R @ bone.axis.T
        if name == "root":
            turns[name], ends[name] = R, shift
        else:
            turns[name] = turns[bone.parent] @ R
            ends[name] = ends[bone.parent] + turns[name] @ bone.offset
    metres = 0.0254 / length
    names = [name for name in _ENDS if name in ends]
    points = metres * torch.stack([ends[name] for name in names], 1)
    joints, root = canonical_joints([_ENDS[name] for name in names], points, str(skeleton))
    clip = torch.zeros(len(joints), dtype=torch.int64)
    return Motion(joints, root, clip, [Path(motion).stem], [Path(skeleton).stem], fps=fps)


def _parse_asf(path: Path) -> tuple[dict[str, _Bone], float, float]:
    """Bones in an order in which parents come first, length unit, and radians of an angle of 1."""
    text = re.sub(r"#.*", "", read_text(path))
    sections = dict(re.findall(r"^:(\w+)(.*?)(?=^:|\Z)", text, re.M | re.S))
    for name in ("units", "root", "bonedata", "hierarchy"):
        if name not in sections:
            raise UserError(f"{path} has no section :{name}; it is not a complete ASF file")
    try:
        unit = re.search(r"length\s+(\S+)", sections["units"])
        length = float(unit[1]) if unit else 1.0
        radians = 1.0 if "rad" in sections["units"] else torch.pi / 180
        order = re.search(r"order\s+(.+)", sections["root"])
        dof = order[1].lower().split() if order else "tx ty tz rx ry rz".split()
        eye = torch.eye(3, dtype=torch.float64)
        bones = {"root": _Bone("", torch.zeros(3, dtype=torch.float64), eye, dof)}
        for block in re.findall(r"begin(.*?)^\s*end\s*$", sections["bonedata"], re.S | re.M):
            found = dict(re.findall(r"^\s*(name|direction|length|axis|dof)\s+(.+)$", block, re.M))
            x, y, z, convention = found["axis"].split()
            axis = eye
            for letter in convention.lower():
                angle = radians * float({"x": x, "y": y, "z": z}[letter])
                axis = axis_angle_to_matrix(angle * AXES[letter]) @ axis
            direction = torch.tensor([float(v) for v in found["direction"].split()], dtype=torch.float64)
            dof = found.get("dof", "").lower().split()
            bones[found["name"].strip()] = _Bone("", direction * float(found["length"]), axis, dof)
        inside = re.search(r"begin(.*?)^\s*end\s*$", sections["hierarchy"], re.S | re.M)
        ordered = {"root": bones["root"]}
        for line in (inside[1] if inside else "").splitlines():
            parent, *children = line.split() or [""]
            for child in children:
                if parent not in ordered or child in ordered:
                    raise UserError(
                        f"{path}: {child} comes before its parent {parent!r}, or twice, in the hierarchy"
                    )
                bones[child].parent = parent
                ordered[child] = bones[child]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an ASF file: {error!r}") from error
    return ordered, length, radians


def _parse_amc(path: Path, bones: dict[str, _Bone]) -> dict[str, Tensor]:
    """(T, dof) values of every bone; those that never move have none."""
    rows: dict[str, list[list[float]]] = {name: [] for name in bones}
    frames = 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0][0] in "#:":
            continue
        if len(words) == 1 and words[0].isdigit():
            frames += 1
            continue
        name = words[0]
        if name not in bones:
            raise UserError(
                f"{path}, line {number}: the skeleton has no bone {name!r}; is it another person's?"
            )
        if len(words) - 1 != len(bones[name].dof):
            raise UserError(
                f"{path}, line {number}: {name} needs {len(bones[name].dof)} values; it is cut off"
            )
        try:
            rows[name].append([float(v) for v in words[1:]])
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    for name, bone in bones.items():
        if bone.dof and len(rows[name]) != frames:
            raise UserError(f"{path}: {name} has {len(rows[name])} rows for {frames} frames; it is cut off")
    if not frames:
        raise UserError(f"{path} holds no frames")
    return {
        name: torch.tensor(values, dtype=torch.float64) if values else torch.zeros(frames, 0).double()
        for name, values in rows.items()
    }
