"""From joints back to a body: the rotations that turn each bone of the shipped body along a pose's bone."""

from __future__ import annotations

import torch
from torch import Tensor

from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import least_turn, nearest_rotation
from dd3g.pose.body.skeletons import H36M_17, SMPL_24

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
    """Rotations with which the shipped body takes a pose; every bone points where the pose's does.

    A bone does not tell its twist: it is that of `rotations`, or the least there is.

    Args:
        poses: (B, 17, 3) metres, root-relative.
        rotations: (B, 24, 3, 3) a first answer, relative to the parents.

    Returns:
        (B, 24, 3, 3) relative to the parents, the root's in the frame of the poses.
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
            own_way, way = (torch.nn.functional.normalize(x, dim=-1) for x in (own_way, way))
            guess = nearest_rotation(way.transpose(1, 2) @ own_way)
        elif name in _LIMBS:
            near, far = point(name), point(_LIMBS[name])
            now = (guess @ (rest[far] - rest[near])[:, None])[..., 0]
            guess = least_turn(now, poses[:, far] - poses[:, near]) @ guess
        turned.append(guess)
        result.append(guess if parent < 0 else turned[parent].transpose(1, 2) @ guess)
    return torch.stack(result, 1)
