"""Anny's bodies (MakeHuman, CC0) on the SMPL-24 tree: the adapter, and how its bones become our joints."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import needed
from dd3g.pose.body.bodies import in_layout
from dd3g.pose.body.geometry import least_turn
from dd3g.pose.body.skeletons import OPENPOSE_25, SMPL_24

# The bone whose head is the joint.
BONES = {
    "pelvis": "root", "spine1": "spine03", "spine2": "spine02", "spine3": "spine01", "neck": "neck01",
    "head": "head", "hip": "upperleg01", "knee": "lowerleg01", "ankle": "foot", "foot": "toe2-1",
    "collar": "clavicle", "shoulder": "upperarm01", "elbow": "lowerarm01", "wrist": "wrist",
    "hand": "metacarpal2",
}  # fmt: skip
# All fingers move with the hand and all toes with the foot, not only those that the tree hangs there.
_TOGETHER = {"finger": "hand", "metacarpal": "hand", "toe": "foot"}
# Where the bone from one joint to the next points in the rest pose; everything beyond goes along.
_STRAIGHT = [
    (f"{side}_{start}", f"{side}_{end}", direction)
    for names, directions in (
        (("hip", "knee", "ankle"), {"l": (0.0, -1.0, 0.0), "r": (0.0, -1.0, 0.0)}),
        (("shoulder", "elbow", "wrist", "hand"), {"l": (1.0, 0.0, 0.0), "r": (-1.0, 0.0, 0.0)}),
    )
    for side, direction in directions.items()
    for start, end in pairwise(names)
]
# Anny has z up and faces -y; ours has y up and faces +z.
_UPRIGHT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
MARKS = (*OPENPOSE_25.joints, "h36m_nose", "h36m_head")


class AnnyBody:
    """Anny by its own package: a `PosedBody` with a skin under its points.

    Shapes are not those of `Body`: the first betas are standard scores of Anny's phenotypes in its order
    (gender, age, muscle, weight, height, proportions), each spread evenly from one end to the other, age
    from the teens on; the rest is not used.

    Raises:
        UserError: no anny package.
    """

    def __init__(self) -> None:
        with needed("Anny's bodies need the anny package: pip install 'dd3g[body]'"):
            import anny
        self.model: Any = anny.Anny().to(torch.float32)
        self.regressor: Any = anny.KeypointsRegressor.coco(self.model).to(torch.float32)
        labels, parents = self.model.bone_labels, self.model.bone_parents
        self._heads = [labels.index(_bone(name)) for name in SMPL_24.joints]
        self._moved_by: list[int] = []  # the joint that turns each bone: its own, or its parent's
        for bone, label in enumerate(labels):
            joint = next((j for prefix, j in _TOGETHER.items() if label.startswith(prefix)), None)
            if bone in self._heads:
                self._moved_by.append(self._heads.index(bone))
            elif joint is not None:
                self._moved_by.append(SMPL_24.joints.index(f"{label[-1].lower()}_{joint}"))
            else:
                self._moved_by.append(self._moved_by[int(parents[bone])])

    def phenotypes(self, betas: Tensor) -> Tensor:
        """Shapes (B, 10) -> phenotypes (B, 6) in 0..1."""
        labels = self.model.phenotype_labels
        low = torch.tensor([0.5 if label == "age" else 0.0 for label in labels]).to(betas)
        return low + (1 - low) * torch.special.ndtr(betas[:, : len(labels)])

    def at_rest(self, phenotypes: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (B, 24, 3) and `MARKS` (B, 27, 3) in Anny's A-pose: metres, y up, facing +z."""
        rest = self.model(phenotype_kwargs=phenotypes)
        poses = rest["rest_bone_poses"].expand(len(phenotypes), -1, -1, -1)
        return self._read(poses, rest["rest_vertices"].expand(len(phenotypes), -1, -1))

    def points(self, rotations: Tensor, betas: Tensor, layout: str = "h36m-17") -> Tensor:
        """Points (B, J, 3); arguments as for `PosedBody`."""
        phenotypes = self.phenotypes(betas)
        rest = self.model(phenotype_kwargs=phenotypes)["rest_bone_poses"].expand(len(betas), -1, -1, -1)
        up = _UPRIGHT.to(rest)
        _, turns = straighten(rest[:, self._heads, :3, 3] @ up.T)
        turned = [rotations[:, 0]]
        for joint, parent in list(enumerate(SMPL_24.parents))[1:]:
            turned.append(turned[parent] @ rotations[:, joint])
        moved = up.T @ torch.stack(turned, 1) @ turns @ up  # (B, 24, 3, 3) in Anny's axes
        # Anny takes where each bone points in the world and lets its head follow its parent.
        pose = rest.clone()
        pose[..., :3, :3] = moved[:, self._moved_by] @ rest[..., :3, :3]
        posed = self.model(pose, phenotype_kwargs=phenotypes, pose_parameterization="world-orient")
        joints, marks = self._read(
            posed["bone_poses"], posed["vertices"], turned[SMPL_24.joints.index("head")]
        )
        return in_layout(joints - joints[:, :1], marks - joints[:, :1], layout)

    def _read(self, bones: Tensor, vertices: Tensor, head: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Joints and marks out of bones (B, 104, 4, 4) and vertices; `head` is its rotation (B, 3, 3)."""
        up = _UPRIGHT.to(bones)
        heads = bones[..., :3, 3] @ up.T
        joints = heads[:, self._heads]
        points = (self.regressor({"vertices": vertices}) @ up.T).unbind(1)
        own = [label.replace("left_", "l_").replace("right_", "r_") for label in self.regressor.labels]
        named = dict(zip(own, points, strict=True))
        named["mid_hip"] = (named["l_hip"] + named["r_hip"]) / 2
        named["neck"] = (named["l_shoulder"] + named["r_shoulder"]) / 2
        named["h36m_nose"] = (heads[:, self.model.bone_labels.index("neck03")] + named["nose"]) / 2
        crown = torch.tensor([0.0, 0.15, 0.0]).to(joints)
        crown = crown if head is None else head @ crown
        named["h36m_head"] = joints[:, SMPL_24.joints.index("head")] + crown
        return joints, torch.stack([named[name] for name in MARKS], 1)


def straighten(joints: Tensor) -> tuple[Tensor, Tensor]:
    """From any rest pose (B, 24, 3), y up, facing +z, to a T-pose with straight limbs.

    Returns:
        joints (B, 24, 3), and how what hangs on each joint was turned, (B, 24, 3, 3).
    """
    turns = torch.eye(3).to(joints).expand(len(joints), 24, 3, 3)
    for start, end, direction in _STRAIGHT:
        a, b = SMPL_24.joints.index(start), SMPL_24.joints.index(end)
        turn = least_turn(joints[:, b] - joints[:, a], torch.tensor(direction).to(joints))[:, None]
        below = torch.tensor(SMPL_24.branch(a), device=joints.device)
        pivot = joints[:, a : a + 1]
        swung = pivot + ((joints - pivot)[..., None, :] * turn).sum(-1)
        joints = torch.where(below[:, None], swung, joints)
        turns = torch.where(below[:, None, None], turn @ turns, turns)
    return joints, turns


def _bone(joint: str) -> str:
    side = {"l_": ".L", "r_": ".R"}.get(joint[:2], "")
    return BONES[joint[2:] if side else joint] + side
