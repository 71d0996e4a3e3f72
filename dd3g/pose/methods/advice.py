"""The recommended answer of a method: what its hypotheses, a lifter and the prior agree on.

The mean of hypotheses is not a plausible pose, because bones that point to different depths shorten; and
where a method errs, all its hypotheses err alike. So the hypotheses near the answer of the lifter, a network
that errs in other ways, are averaged with that answer, the prior repairs the mean under the picture's
keypoints, and the result is scaled to an adult, since keypoints do not show how large people are. The lifter
counts among the hypotheses too: where few were drawn and all are far from it, the answer is mostly its own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.hypotheses import Hypotheses
from dd3g.pose.methods.guided import polish
from dd3g.pose.methods.guided_energies import Keypoint2D, keypoint_noise
from dd3g.pose.methods.restoration import restore
from dd3g.pose.networks.lifter import GraphLifter, Lifter
from dd3g.pose.networks.prior import Prior

NEAR = 0.05  # metres, mean over joints, by which a hypothesis that counts differs from the lifter's answer
SHORTEST, TALLEST = 0.4, 2.8  # metres, of people
# What the expected error is, in distances that lifter, mean and repaired poses lie from the answer. Fitted on
# 96 frames of the archive's people without a number, whom no network has seen, with 1 to 20 hypotheses.
SLOPE = 2.5


class Size(NamedTuple):
    """A person's size in metres."""

    bones: float  # sum of the 16 bones of H36M-17
    height: float  # standing, from sole to crown
    ankle: float  # standing, from sole to ankle


@cache
def grown() -> Size:
    """The mean grown person, that of the shipped body."""
    rest = torch.eye(3).expand(1, 24, 3, 3)
    body = default_body()
    pose = body.points(rest, torch.zeros(1, 10))
    heel = body.points(rest, torch.zeros(1, 10), "openpose-25")[0, 21, 1]
    return Size(
        float(bone_lengths(pose).sum()), float(pose[0, 10, 1] - heel), float(pose[0, [3, 6], 1].mean() - heel)
    )


def sized(poses: Tensor, bones: float) -> Tensor:
    """Poses (..., 17, 3) with bones that sum up to so many metres."""
    return poses * (bones / bone_lengths(poses).sum(-1).clamp(min=1e-6))[..., None, None]


def size_of(height: float | None) -> float:
    """How large someone is beside a grown person.

    Raises:
        UserError: a height that nobody has.
    """
    if height is None:
        return 1.0
    if not SHORTEST <= height <= TALLEST:
        raise UserError(
            f"nobody is {height:g} m tall: give the height in metres, {SHORTEST:g} to {TALLEST:g}"
        )
    return height / grown().height


def agreed(hypotheses: Hypotheses, height: float | None = None) -> Hypotheses:
    """Add the mean of hypotheses that are trusted more than the lifter, in a person's size, see `advise`."""
    mean, spread = hypotheses.recommended()
    size = grown().bones * size_of(height)
    return replace(hypotheses, advised=sized(mean, size), expected=spread)


@torch.no_grad()
def advise(
    hypotheses: Hypotheses,
    keypoints: Tensor,
    confidence: Tensor,
    K: Tensor,
    width: float | Tensor,
    *,
    height: float | None = None,
    lifter: Lifter | None = None,
    prior: Prior | None = None,
) -> Hypotheses:
    """Add the one answer and its expected error to the hypotheses of B people, by any method.

    Keypoints (B, 17, 2), K (B, 3, 3) or (3, 3) and the picture's width, one or (B,), are in pixels,
    confidence (B, 17) is 0 where not seen, and height in metres is everyone's; None takes a grown person's,
    children need it. Lifter and prior are the shipped ones by default.

    Raises:
        UserError: a height that nobody has.
    """
    size, scale = grown(), size_of(height)
    lifter, prior = lifter or GraphLifter.shipped(), prior or Prior.shipped()
    K = K.expand(len(keypoints), 3, 3)
    lifted = restore(lifter, None, keypoints, confidence, K, width, 1, alpha=0.0).poses  # (B, 1, 17, 3)
    lifted, poses = sized(lifted, size.bones), sized(hypotheses.poses, size.bones)
    away = (poses - lifted).norm(dim=-1).mean(-1)  # (B, m)
    weight = torch.exp(-away.square() / (2 * NEAR**2))[..., None, None]
    near = ((weight * poses).sum(1) + lifted[:, 0]) / (weight.sum(1) + 1)
    start = sized((near + lifted[:, 0]) / 2, size.bones)
    seen = Keypoint2D(
        keypoints=torch.where(confidence[..., None] > 0, keypoints, 0.0), confidence=confidence, K=K,
        sigma=keypoint_noise(keypoints, confidence),
    )  # fmt: skip
    repaired = polish(prior, start, seen)
    answer = sized(repaired.mean(1), size.bones)
    experts = lifted, start[:, None], repaired
    apart = [(poses - answer[:, None]).norm(dim=-1).mean((1, 2)) for poses in experts]
    expected = SLOPE * torch.stack(apart).mean(0)  # (B,)
    return replace(hypotheses, advised=scale * answer, expected=scale * expected)
