"""Bodies that turn joint rotations into points: our own of 24 joints; and back from points to rotations.

The adapters for SMPL and Anny are in `smpl.py` and `anny_body.py`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dd3g.errors import UserError
from dd3g.nn.checkpoint import check_options, load_weights, read_config, save_folder
from dd3g.pose.body.geometry import least_turn, nearest_rotation
from dd3g.pose.body.skeletons import H36M_17, SMPL_24, skeleton

SHAPES = 10
SHIPPED = Path(__file__).parents[2] / "weights" / "pose-body"
# Each layout as numbers of the 24 joints, then of OpenPose-25's points, H36M's nose and its head.
LAYOUTS = {
    "smpl-24": [*range(24)],
    "openpose-25": [*range(24, 49)],
    "coco-17": [24 + i for i in (0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11)],
    "h36m-17": [0, 2, 5, 8, 1, 4, 7, 6, 12, 49, 50, 16, 18, 20, 17, 19, 21],
}


class PosedBody(Protocol):
    """A body on the SMPL-24 tree. Its axes at rest: y up, facing +z, arms out to the sides, left is +x."""

    def points(self, rotations: Tensor, betas: Tensor, layout: str = "h36m-17") -> Tensor:
        """Joint rotations (B, 24, 3, 3), relative to the parent, and shapes (B, 10) -> (B, J, 3) metres.

        Points are relative to the pelvis joint and follow `layout`: "h36m-17", "smpl-24", "openpose-25" or
        "coco-17".
        """

    def __hash__(self) -> int:
        """By identity, as modules hash: what follows from a body alone is computed once."""


class Body(nn.Module):
    """24 joints by forward kinematics, 10 shape directions, and points that hang on the joints.

    The shape space is the one of MakeHuman's bodies (CC0): `betas` are standard deviations along principal
    directions of joints at rest. Points of detectors move with one joint each.
    """

    joints: Tensor  # (24, 3) metres at rest, pelvis at zero
    joint_directions: Tensor  # (10, 24, 3) metres a unit
    marks: Tensor  # (P, 3) metres at rest: OpenPose-25, then H36M's nose and head
    mark_directions: Tensor  # (10, P, 3) metres a unit
    mark_joints: Tensor  # (P,) the joint that moves each

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("joints", torch.zeros(24, 3))
        self.register_buffer("joint_directions", torch.zeros(SHAPES, 24, 3))
        self.register_buffer("marks", torch.zeros(27, 3))
        self.register_buffer("mark_directions", torch.zeros(SHAPES, 27, 3))
        self.register_buffer("mark_joints", torch.zeros(27, dtype=torch.int64))

    def pose(self, rotations: Tensor, betas: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Forward kinematics; arguments as for `PosedBody`, without betas the mean shape.

        Returns:
            joints (B, 24, 3) metres with the pelvis at zero and rotations (B, 24, 3, 3) of the joints in the
            frame of the root's rotation.
        """
        rest = _shaped(self.joints, self.joint_directions, betas)
        turned, placed = [rotations[:, 0]], [rest[..., 0, :].expand(len(rotations), 3)]
        for joint, parent in list(enumerate(SMPL_24.parents))[1:]:
            bone = rest[..., joint, :] - rest[..., parent, :]  # (B or nothing, 3)
            placed.append(placed[parent] + (turned[parent] * bone[..., None, :]).sum(-1))
            turned.append(turned[parent] @ rotations[:, joint])
        return torch.stack(placed, 1), torch.stack(turned, 1)

    def points(self, rotations: Tensor, betas: Tensor | None = None, layout: str = "h36m-17") -> Tensor:
        """Points (B, J, 3) in metres relative to the pelvis; see `PosedBody`."""
        joints, turned = self.pose(rotations, betas)
        rest = _shaped(self.joints, self.joint_directions, betas)
        arms = _shaped(self.marks, self.mark_directions, betas) - rest[..., self.mark_joints, :]
        marks = joints[:, self.mark_joints] + (turned[:, self.mark_joints] * arms[..., None, :]).sum(-1)
        return in_layout(joints, marks, layout)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors."""
        return save_folder(folder, self, {"kind": "pose-body"})

    @staticmethod
    def from_pretrained(folder: str | Path) -> Body:
        """Read a folder that `save_pretrained` wrote."""
        check_options(folder, read_config(folder, "pose-body"), ())
        body = Body()
        load_weights(folder, body)
        return body


def in_layout(joints: Tensor, marks: Tensor, layout: str) -> Tensor:
    """Joints (B, 24, 3) and marks (B, 27, 3), as `Body` has them, as points (B, J, 3) of a layout.

    Raises:
        UserError: a layout that bodies do not have.
    """
    skeleton(layout)  # raises where there is no such layout
    if layout not in LAYOUTS:
        raise UserError(f"this body has no {layout} points: use h36m-17, smpl-24, openpose-25 or coco-17")
    return torch.cat([joints, marks], 1)[:, LAYOUTS[layout]]


@lru_cache(1)
def default_body() -> Body:
    """The shipped body; do not change it."""
    return Body.from_pretrained(SHIPPED)


def _shaped(mean: Tensor, directions: Tensor, betas: Tensor | None) -> Tensor:
    """(J, 3), or (B, J, 3) with betas (B, 10)."""
    return mean if betas is None else mean + (betas @ directions.flatten(1)).unflatten(-1, (-1, 3))


# Joints of the body whose rotation several points tell, each (point of H36M-17 at the joint, points around).
_FRAMES = {
    "pelvis": ("hip", ("r_hip", "l_hip", "spine")),
    "spine2": ("spine", ("thorax", "l_shoulder", "r_shoulder")),
    "neck": ("thorax", ("nose", "head")),
}
# Joints whose rotation one bone tells: joint -> the point at its end.
_LIMBS = {
    f"{side}_{joint}": f"{side}_{end}"
    for side in ("l", "r")
    for joint, end in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist"))
}


def body_rotations(poses: Tensor, rotations: Tensor | None = None) -> Tensor:
    """Rotations (B, 24, 3, 3) that point the bones of the shipped body where those of poses (B, 17, 3) point.

    They are relative to the parents, the root's in the frame of the poses. A bone does not tell its twist: it
    is that of `rotations`, a first answer, or the least there is.
    """
    point = H36M_17.joints.index
    rest = default_body().points(torch.eye(3).expand(1, 24, 3, 3))[0].to(poses)  # (17, 3)
    turned: list[Tensor] = []
    result = []
    for joint, parent in enumerate(SMPL_24.parents):
        name = SMPL_24.joints[joint]
        own = torch.eye(3).to(poses).expand(len(poses), 3, 3) if rotations is None else rotations[:, joint]
        guess = own if parent < 0 else turned[parent] @ own
        if name in _FRAMES:
            at, around = _FRAMES[name]
            ends = [point(end) for end in around]
            own_way, way = rest[ends] - rest[point(at)], poses[:, ends] - poses[:, [point(at)]]
            own_way, way = (nn.functional.normalize(x, dim=-1) for x in (own_way, way))
            guess = nearest_rotation(way.transpose(1, 2) @ own_way)
        elif name in _LIMBS:
            near, far = point(name), point(_LIMBS[name])
            now = (guess @ (rest[far] - rest[near])[:, None])[..., 0]
            guess = least_turn(now, poses[:, far] - poses[:, near]) @ guess
        turned.append(guess)
        result.append(guess if parent < 0 else turned[parent].transpose(1, 2) @ guess)
    return torch.stack(result, 1)
