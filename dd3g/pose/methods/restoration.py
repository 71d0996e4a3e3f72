"""Probabilistic restoration: many hypotheses from a lifter of one, by noise on its input.

PRPose (arXiv 2405.02114).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dd3g.pose.body.geometry import extent, project, solve_translation
from dd3g.pose.body.skeletons import H36M_17, flip
from dd3g.pose.data.synthesis import Views
from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.metrics import best_of_m
from dd3g.pose.networks.chosen import SHIPPED, Networks
from dd3g.pose.networks.difficulty import Difficulty, shown
from dd3g.pose.networks.lifter import FOCAL, GraphLifter, Lifter, lift, normalise

ALPHA = 0.005  # what the paper takes on Human3.6M
ALPHAS = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08)
GUESSED = 0.2  # confidence in a missing keypoint that was put where the lifted pose has it
SMALL = 4.0  # people in Human3.6M and MPI-INF-3DHP are larger than a quarter of the width
CHUNK = 1024  # keypoint sets in one call of the lifter: bounds the memory, and is faster than more


@torch.no_grad()
def restore(
    lifter: Lifter,
    difficulty: Difficulty | None,
    keypoints: Tensor,
    confidence: Tensor,
    K: Tensor,
    width: float | Tensor,
    m: int = 20,
    alpha: float | None = None,
    generator: torch.Generator | int = 0,
    fixed: bool = False,
) -> Hypotheses:
    """Lift keypoints with noise of standard deviation alpha max(s, 1), where s is the joint's difficulty.

    Noise is independent for each coordinate, joint and hypothesis, and for the mirror image that every
    hypothesis is averaged with. The first hypothesis has none: it is the lifter's own answer, so that more
    hypotheses only add to it. A missing keypoint is first put where the lifter's answer projects to.

    Args:
        lifter: any; wrap a function of keypoints alone in `Plain`.
        difficulty: predicts s; None is fixed noise, s = 1.
        keypoints: (B, 17, 2) pixels.
        confidence: (B, 17) in 0..1; where it is 0 the keypoint is not looked at.
        K: (B, 3, 3) pixels.
        width: of the whole picture in pixels, one or (B,). It is the published unit of noise, in pictures
            that a person fills; where one is less than a `SMALL`th as large, `SMALL` times as much as the
            keypoints extend stands in for it, as if the picture were cropped.
        m: number of hypotheses.
        alpha: noise of an easy joint, in half widths; None takes what was best on the training views.
        generator: source of the noise, on the CPU, or its seed.
        fixed: the baseline: s = 1 and, by default, the alpha that was best for that.

    Returns:
        Hypotheses; the energy is the mean squared distance of the projection to the keypoints, weighted by
        squared confidence, in units of half a percent of the width; the translation is that of
        `solve_translation`.
    """
    if alpha is None:
        c = None if difficulty is None else difficulty.config
        alpha = ALPHA if c is None else c.fixed_alpha if fixed else c.alpha
    if m < 1 or alpha < 0:
        raise ValueError(f"m must be positive and alpha not negative, got m {m}, alpha {alpha}")
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    B = len(keypoints)
    keypoints = torch.where((confidence > 0)[..., None], keypoints, 0.0)
    x, trust = _completed(lifter, keypoints, confidence, K)
    width = torch.minimum(torch.as_tensor(width).to(x).expand(B), SMALL * extent(keypoints, confidence))
    # One unit of noise, half the picture, as the normalised camera sees it.
    unit = FOCAL * width[:, None] / 2 / K.diagonal(dim1=-2, dim2=-1)[:, :2]  # (B, 2)
    noisy = []  # twice (B * m, 17, 2)
    for points, known in ((x, confidence), (flip(x), confidence[:, H36M_17.mirrored])):
        s = torch.ones_like(known)
        if difficulty is not None and not fixed:
            s = difficulty(shown(points, known)).clamp(min=1)
        noise = torch.randn(B, m, 17, 2, generator=generator).to(x)
        noise[:, 0] = 0
        noisy.append(
            (points[:, None] + alpha * unit[:, None, None] * s[:, None, :, None] * noise).flatten(0, 1)
        )
    chunks = [x.split(CHUNK) for x in (noisy[0], trust.repeat_interleave(m, 0), noisy[1])]
    poses = torch.cat([lift(lifter, *chunk) for chunk in zip(*chunks, strict=True)]).unflatten(0, (B, m))
    keypoints, confidence, K = keypoints[:, None], confidence[:, None], K[:, None]
    translation = solve_translation(poses, keypoints, confidence, K)
    distance = (project(poses + translation[:, :, None], K) - keypoints).norm(dim=-1)  # (B, m, 17) pixels
    weight = confidence.square()
    energy = (weight * distance.square()).sum(-1) / weight.sum(-1).clamp(min=1e-6)
    energy = energy / (0.005 * width[:, None]).square()
    return Hypotheses(poses, energy, translation)


def _completed(lifter: Lifter, keypoints: Tensor, confidence: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised keypoints (B, 17, 2) with guesses for missing ones, and the confidences (B, 17) in them."""
    x, missing = normalise(keypoints, K), confidence <= 0
    if not missing.any():
        return x, confidence
    pose = lift(lifter, x, confidence)
    root = solve_translation(pose, keypoints, confidence, K)
    guess = normalise(project(pose + root[:, None], K), K)
    return torch.where(missing[..., None], guess, x), confidence.masked_fill(missing, GUESSED)


def best_alpha(
    lifter: Lifter, difficulty: Difficulty, views: Views, m: int = 50, fixed: bool = False
) -> float:
    """The alpha of `ALPHAS` whose best hypothesis of m comes nearest to the truth, after alignment."""
    best, lowest = ALPHAS[0], float("inf")
    for alpha in ALPHAS:
        seen = (views.keypoints, views.confidence, views.K, views.size[0])
        h = restore(lifter, difficulty, *seen, m, alpha, fixed=fixed)
        error = float(best_of_m(h.poses, views.pose, align=True).mean())
        if error > lowest:
            break  # the error falls and rises once
        best, lowest = alpha, error
    return best


def lift_people(
    people: Sequence[Detection], m: int, seed: int, times: Tensor | None, networks: Networks = SHIPPED
) -> list[PersonHypotheses]:
    """By the lifter and its difficulty, frame by frame; see `registry.Method`."""
    lifter, difficulty = networks[GraphLifter], networks[Difficulty]
    # One by one, with the same noise: a person's answer depends on nobody else in the picture, and a
    # hypothesis goes on from frame to frame.
    found = [
        restore(lifter, difficulty, p.keypoints[None], p.confidence[None], p.K[None], p.size[0], m,
                generator=seed) for p in people
    ]  # fmt: skip
    return [PersonHypotheses(p, "restoration", h) for p, h in zip(people, found, strict=True)]
