"""Joint layouts of detectors and data sets, and the way from each to the canonical one, H36M-17."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dd3g.errors import UserError


@dataclass(frozen=True)
class Skeleton:
    """Names and tree of one joint layout."""

    # What users call it, e.g. "coco-17"
    name: str
    joints: tuple[str, ...]  # names in order; those of the left and right side start with "l_" and "r_"
    # Index of each joint's parent, -1 for the root; a face point hangs on the nose or the neck
    parents: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def left(self) -> list[int]:
        """Joints of the left side, paired with `right`."""
        return [i for i, joint in enumerate(self.joints) if joint.startswith("l_")]

    @property
    def right(self) -> list[int]:
        """The mirror images of `left`, in its order."""
        return [self.joints.index("r_" + self.joints[i][2:]) for i in self.left]

    @property
    def bones(self) -> list[tuple[int, int]]:
        """(parent, child) of every bone, in the children's order."""
        return [(parent, child) for child, parent in enumerate(self.parents) if parent >= 0]

    @property
    def mirrored(self) -> list[int]:
        """Where each joint's mirror image stands in the order."""
        order = list(range(len(self)))
        for a, b in zip(self.left, self.right, strict=True):
            order[a], order[b] = b, a
        return order

    def children(self, joint: int) -> list[int]:
        """The joints that hang directly on one."""
        return [child for child, parent in enumerate(self.parents) if parent == joint]

    def branch(self, joint: int) -> list[bool]:
        """Whether each joint is this one or hangs on it, in a layout where parents come first."""
        found: list[bool] = []
        for i, parent in enumerate(self.parents):
            found.append(i == joint or (parent >= 0 and found[parent]))
        return found


def _skeleton(name: str, joints: str, parents: list[int]) -> Skeleton:
    names = tuple(joints.split())
    assert len(names) == len(parents)
    return Skeleton(name, names, tuple(parents))


H36M_17 = _skeleton(
    "h36m-17",
    "hip r_hip r_knee r_ankle l_hip l_knee l_ankle spine thorax nose head "
    "l_shoulder l_elbow l_wrist r_shoulder r_elbow r_wrist",
    [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15],
)
COCO_17 = _skeleton(
    "coco-17",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle",
    [-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14],
)
OPENPOSE_25 = _skeleton(
    "openpose-25",
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist mid_hip r_hip r_knee r_ankle "
    "l_hip l_knee l_ankle r_eye l_eye r_ear l_ear l_big_toe l_small_toe l_heel r_big_toe r_small_toe r_heel",
    [1, 8, 1, 2, 3, 1, 5, 6, -1, 8, 9, 10, 8, 12, 13, 0, 0, 15, 16, 14, 19, 14, 11, 22, 11],
)
COCO_18 = _skeleton(  # OpenPose's first model
    "coco-18",
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist r_hip r_knee r_ankle "
    "l_hip l_knee l_ankle r_eye l_eye r_ear l_ear",
    [1, -1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15],
)
HALPE_26 = _skeleton(  # AlphaPose
    "halpe-26",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist l_hip r_hip "
    "l_knee r_knee l_ankle r_ankle head neck hip l_big_toe r_big_toe l_small_toe r_small_toe l_heel r_heel",
    [18, 0, 0, 1, 2, 18, 18, 5, 6, 7, 8, 19, 19, 11, 12, 13, 14, 18, 19, -1, 24, 25, 24, 25, 15, 16],
)
BLAZEPOSE_33 = _skeleton(
    "blazepose-33",
    "nose l_eye_inner l_eye l_eye_outer r_eye_inner r_eye r_eye_outer l_ear r_ear l_mouth r_mouth "
    "l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist l_pinky r_pinky l_index r_index l_thumb r_thumb "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle l_heel r_heel l_foot r_foot",
    [-1, 0, 1, 2, 0, 4, 5, 3, 6, 0, 0, 0, 0, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16,
     11, 12, 23, 24, 25, 26, 27, 28, 29, 30],
)  # fmt: skip
SMPL_24 = _skeleton(
    "smpl-24",
    "pelvis l_hip r_hip spine1 l_knee r_knee spine2 l_ankle r_ankle spine3 l_foot r_foot neck "
    "l_collar r_collar head l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist l_hand r_hand",
    [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21],
)
SKELETONS = {s.name: s for s in (H36M_17, COCO_17, COCO_18, OPENPOSE_25, HALPE_26, BLAZEPOSE_33, SMPL_24)}
WHOLE_BODY = {"coco-wholebody-133": COCO_17, "halpe-136": HALPE_26}
"""Layouts whose first points are those of another; feet, face and hands follow, which are not looked at."""

# H36M's head is the top of the skull, which detectors do not give: 0.35 of the way from the shoulders to the
# ears beyond the ears. Its nose is taken from the detector as it is.
_FACE = {
    "hip": {"l_hip": 0.5, "r_hip": 0.5},
    "thorax": {"l_shoulder": 0.5, "r_shoulder": 0.5},
    "spine": {"l_hip": 0.25, "r_hip": 0.25, "l_shoulder": 0.25, "r_shoulder": 0.25},
    "head": {"l_ear": 0.675, "r_ear": 0.675, "l_shoulder": -0.175, "r_shoulder": -0.175},
}
# The neck joint is the base of the neck; the lengths put the skull's top 0.15 m above the head joint.
_SMPL = {
    "hip": {"pelvis": 1.0},
    "spine": {"spine2": 1.0},
    "thorax": {"neck": 1.0},
    "nose": {"head": 1.4, "neck": -0.4},
    "head": {"head": 2.56, "neck": -1.56},
}
_RULES: dict[str, dict[str, dict[str, float]]] = {
    "h36m-17": {}, "coco-17": _FACE, "openpose-25": _FACE | {"hip": {"mid_hip": 1.0}}, "coco-18": _FACE,
    "halpe-26": {"thorax": _FACE["thorax"], "spine": _FACE["spine"]}, "blazepose-33": _FACE, "smpl-24": _SMPL,
}  # fmt: skip


def skeleton(layout: str) -> Skeleton:
    """The layout by name.

    Raises:
        UserError: when the name is unknown.
    """
    if layout not in SKELETONS:
        known = ", ".join([*SKELETONS, *WHOLE_BODY])
        raise UserError(f"unknown joint layout {layout!r}: use one of {known}")
    return SKELETONS[layout]


def _weights(layout: str) -> Tensor:
    """(17, J) joints of H36M-17 as sums of a layout's points."""
    source = skeleton(layout)
    weights = torch.zeros(len(H36M_17), len(source))
    for row, joint in enumerate(H36M_17.joints):
        for name, weight in _RULES[layout].get(joint, {joint: 1.0}).items():
            weights[row, source.joints.index(name)] = weight
    return weights


def to_h36m(points: Tensor, confidence: Tensor | None, layout: str) -> tuple[Tensor, Tensor]:
    """Points of any layout as H36M-17; what a layout lacks is a fixed mix of its neighbours.

    Args:
        points: (..., J, D) pixels or metres.
        confidence: (..., J) in 0..1, None for all ones; where it is 0 the point is not looked at.
        layout: one of `SKELETONS`.

    Returns:
        points (..., 17, D) and confidence (..., 17), the lowest among the points a joint is made of. Joints
        without confidence lie at zero.

    Raises:
        UserError: unknown layout, or another number of joints than it has.
    """
    count = len(skeleton(layout))
    shape = tuple(points.shape)
    if len(shape) < 2 or shape[-2] != count:
        raise UserError(f"{layout} has {count} joints, got points of shape {shape}: name the right layout")
    if confidence is None:
        confidence = points.new_ones(points.shape[:-1])
    if confidence.shape != points.shape[:-1]:
        raise UserError(
            f"confidence must be {tuple(points.shape[:-1])} like the points, got {tuple(confidence.shape)}"
        )
    weights = _weights(layout).to(points)  # (17, J)
    used = weights != 0
    seen = torch.where(used, confidence[..., None, :], torch.inf)  # (..., 17, J)
    lowest = seen.amin(-1)  # (..., 17)
    # A missing point may be NaN, which a weight of zero would not silence.
    points = torch.where(confidence[..., None] > 0, points, points.new_zeros(()))
    return torch.where(lowest[..., None] > 0, weights @ points, points.new_zeros(())), lowest


def bone_lengths(poses: Tensor) -> Tensor:
    """Poses (..., 17, 3) -> lengths (..., 16) in the order of `H36M_17.bones`."""
    parents, children = zip(*H36M_17.bones, strict=True)
    return (poses[..., list(children), :] - poses[..., list(parents), :]).norm(dim=-1)


def flip(points: Tensor) -> Tensor:
    """Mirror left and right: (..., 17, D) of H36M-17, x first and counted from the middle."""
    mirrored = points[..., H36M_17.mirrored, :].clone()
    mirrored[..., 0].neg_()
    return mirrored
