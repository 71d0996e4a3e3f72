"""People as bodies, by ScoreHMR: imagined by the denoiser or given, then refined (`refinement.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.bodies import PosedBody, default_body
from dd3g.pose.body.skeletons import to_h36m
from dd3g.pose.detection.people import Detection, stacked
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods.recovery_energies import BodyKeypoints, SmoothRotations
from dd3g.pose.methods.refinement import (
    FAST,
    IMAGINED,
    PUBLISHED,
    PUBLISHED_VIDEO,
    VIDEO,
    Recovery,
    RecoveryPlan,
    imagine,
    recover,
)
from dd3g.pose.networks.chosen import SHIPPED, Networks
from dd3g.pose.networks.rotation_denoiser import Condition, RotationDenoiser, keypoint_condition

SIDE = 800.0  # px of the square around a person in the picture of 1000 px that the energies are set up for


def recover_people(
    keypoints: Tensor,
    confidence: Tensor,
    K: Tensor,
    size: tuple[int, int],
    *,
    layout: str = "h36m-17",
    m: int = 1,
    seed: int = 0,
    plan: RecoveryPlan = IMAGINED,
    denoiser: RotationDenoiser | None = None,
    body: PosedBody | None = None,
    betas: Tensor | None = None,
    start: Tensor | None = None,
    condition: Condition | None = None,
) -> Recovery:
    """Bodies from keypoints alone: the denoiser imagines a start for each, then `recover`.

    Args:
        keypoints: (B, J, 2) pixels.
        confidence: (B, J) in 0..1; with all at 0 the answer is a pose of any person.
        K: (B, 3, 3) or (3, 3) pixels.
        size: width and height of the picture.
        layout: of the keypoints: "h36m-17", "coco-17" or "openpose-25".
        m: hypotheses a person; they follow each other in the answer.
        seed: of the noise.
        plan: how to refine.
        denoiser: the shipped one by default.
        body: the shipped one by default.
        betas: (B, 10) shapes; None is the mean.
        start: (B, 24, 3, 3) of a regressor, instead of what the denoiser imagines.
        condition: of the denoiser, B rows; None is that of the keypoints.

    Returns:
        B * m bodies, people first; `.hypotheses(m)` folds them.
    """
    denoiser = denoiser or RotationDenoiser.shipped()
    K = K.expand(len(keypoints), 3, 3)
    if condition is None:
        condition = keypoint_condition(*to_h36m(keypoints, confidence, layout), K)
    keypoints = torch.where(confidence[..., None] > 0, keypoints, 0.0)
    rows = torch.arange(len(keypoints)).repeat_interleave(m)
    generator = torch.Generator().manual_seed(seed)
    condition = condition.rows(rows)
    begun = imagine(denoiser, condition, len(rows), generator) if start is None else start[rows]
    body, betas = body or default_body(), keypoints.new_zeros(len(rows), 10) if betas is None else betas[rows]
    side = float(max(size))
    evidence = BodyKeypoints(body, betas, keypoints[rows], confidence[rows], K[rows], side, layout)
    return recover(denoiser, begun, evidence, condition, plan, generator=generator)


def lift_people(
    people: Sequence[Detection], m: int, seed: int, times: Tensor | None, networks: Networks = SHIPPED
) -> list[PersonHypotheses]:
    """On the shipped body, the frames of a video together; see `registry.Method`.

    Where a regressor saw everyone's body, it starts from there. A denoiser that is conditioned on features of
    the picture refines these bodies as published, and leaves people without one to the shipped denoiser.
    """
    squares = stacked(people, "square")
    # The energies are in pixels of a picture of 1000: small people and large ones must mean the same there.
    factor = (SIDE / (squares[:, 2] - squares[:, 0]))[:, None, None]
    keypoints, confidence, K = (stacked(people, name) for name in ("keypoints", "confidence", "K"))
    keypoints, K = keypoints * factor, torch.cat([K[:, :2] * factor, K[:, 2:]], 1)
    if times is not None:
        m = 1  # hypotheses of different frames would not belong together
    given = all(person.start is not None for person in people)
    denoiser, plan, video = networks[RotationDenoiser], FAST if given else IMAGINED, VIDEO
    condition = keypoint_condition(keypoints, confidence, K)
    if denoiser.config.condition_kind == "features":
        if given:
            condition, plan, video = _seen_features(people, denoiser), PUBLISHED, PUBLISHED_VIDEO
        else:
            denoiser = RotationDenoiser.shipped()
    result = recover_people(
        keypoints, confidence, K, (1000, 1000), m=m, seed=seed, denoiser=denoiser, plan=plan,
        start=stacked(people, "start") if given else None, condition=condition,
    )  # fmt: skip
    if times is not None and len(people) > 1:
        evidence = BodyKeypoints(default_body(), result.betas, keypoints, confidence, K, 1000.0)
        smooth = SmoothRotations.over(times)
        result = recover(denoiser, result.rotations, evidence, condition, video, together=smooth, gate=False)
    hypotheses = result.hypotheses(m)
    rotations, betas = (x.unflatten(0, (-1, m)) for x in (result.rotations, result.betas))
    answers = []
    for i, detection in enumerate(people):
        one = hypotheses[i : i + 1]
        # The recommended pose is a mean and no body; the body nearest to it is given with it.
        nearest = int((one.poses[0] - one.recommended()[0][0]).norm(dim=-1).mean(-1).argmin())
        answers.append(PersonHypotheses(detection, "recovery", one, rotations[i, nearest], betas[i, nearest]))
    return answers


def _seen_features(people: Sequence[Detection], denoiser: RotationDenoiser) -> Condition:
    """Features of everyone's picture.

    Raises:
        UserError: the regressor's file has none, or others than the denoiser learnt from.
    """
    width = denoiser.config.condition
    found = [person.features for person in people if person.features is not None]
    if len(found) < len(people):
        raise UserError(
            f"the weights need {width} features of the picture: give --predictions with 'pose_feats'"
        )
    features = torch.stack(found)
    if features.shape[1] != width:
        raise UserError(
            f"the predictions have {features.shape[1]} features of the picture, but the weights need "
            f"{width}: give those of the network that they were trained with"
        )
    return Condition(features)
