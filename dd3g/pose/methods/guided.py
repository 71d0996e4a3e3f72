"""Poses from an unconditional prior and what is known about them: a picture, joints, bones, or nothing.

Flexible geometric guidance (Snelgar et al. 2026, arXiv 2602.03126) in the form of a Gaussian posterior: at
level t each joint lies about `prior.spread[t]` from its prediction, so the likelihood is widened by as
much and the prediction moves by covariance times gradient, which for a Gaussian likelihood is the exact
conditional mean (pseudoinverse guidance, Song et al. 2023). No step size is left to tune.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dd3g.diffusion import Objective, Plan, Schedule, Step, sample
from dd3g.diffusion.guidance import Mode
from dd3g.pose.detection.people import Detection, stacked
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.methods.guided_energies import (
    Evidence,
    HeatmapNLL,
    Keypoint2D,
    Known3D,
    Reprojection,
    Smooth,
    keypoint_noise,
)
from dd3g.pose.networks.chosen import SHIPPED, Networks
from dd3g.pose.networks.prior import JOINTS, Prior

TALLEST = 4.0  # metres between two joints of anybody
NOISE = 0.01  # of a detector, in sides of the square around a person
LEVEL = 150  # of the noise that repairs; errors that are as large go
COPIES = 8  # noises for each pose to be repaired


def levels(steps: int, total: int = 1000, power: float = 2.0) -> Plan:
    """A plan from the noisiest level to the clean end, denser towards the end, where a pose is decided.

    It has 1 .. total moves, some fewer where levels would repeat. A `power` of 1 is even; with 2 half of the
    moves lie in the lowest quarter.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie in 1..{total}, got {steps}")
    t = [round((1 - i / steps) ** power * (total - 1)) for i in range(steps)]
    t = sorted(set(t), reverse=True)
    return list(zip(t, [*t[1:], -1], strict=True))


def sample_poses(
    prior: Prior,
    people: int,
    m: int,
    evidence: Sequence[Evidence] = (),
    *,
    steps: int = 30,
    repeats: int = 1,
    rho: float = 1.0,
    mode: Mode = "detached",
    eta: float = 1.0,
    seed: int = 0,
    record: Callable[[Step], Any] | None = None,
) -> Hypotheses:
    """Sample m poses of each person, guided by evidence; without any, from the prior alone.

    Args:
        prior: the denoiser.
        people: B; the evidence has a row for each.
        m: hypotheses a person, all in one batch.
        evidence: energies that add up.
        steps: levels; more of them give more varied and less clean poses.
        repeats: network calls a level; between them the pose is noised again from the next level (RePaint,
            Lugmayr et al. 2022), so that depth has time to agree with the picture.
        rho: factor of the picture's guidance; 1 follows the derivation above. That of other evidence stays 1.
        mode: "detached" takes joints as independent, each with its variance at level t; "through" takes the
            covariance from the network's derivative, at three times the cost.
        eta: 0 is DDIM, 1 is DDPM, whose fresh noise lets a pose recover from early guesses.
        seed: of the noise.
        record: called with every `Step`, for figures and tests.

    Returns:
        The poses with the energy of the evidence, not widened, and the root's translation where a picture
        gave it.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(people * m, JOINTS - 1, 3, generator=generator).to(prior.mean)
    average = prior.decode(torch.zeros_like(x[:people]))
    reach = _reach(prior) if any(isinstance(e, Reprojection) for e in evidence) else None
    plan = levels(steps, prior.schedule.steps)
    x0 = x
    for step, (t, u) in enumerate(plan):
        # The network's derivative is alpha times a covariance; a tiny alpha would amplify its error.
        way: Mode = mode if t < 0.8 * prior.schedule.steps else "detached"
        objective = None
        if evidence:
            terms = [_prepared(e, average, reach, early=step < len(plan) / 5) for e in evidence]
            objective = _guidance(prior, terms, t, rho, way)
        for repeat in range(repeats):
            if repeat:
                noise = torch.randn(x.shape, generator=generator).to(x)
                x = _noised_again(prior.schedule, x, u, t, noise)
            moved = sample(
                prior, prior.schedule, x, [(t, u)], None, objective,
                mode=way, eta=eta, generator=generator, record=record,
            )  # fmt: skip
            x, x0 = moved.x, moved.x0
    poses = prior.decode(x0)
    energy, translation = torch.zeros(len(poses)).to(poses), None
    for term in evidence:
        energy = energy + term(poses)
        if translation is None and isinstance(term, Reprojection):
            translation = term.solve(poses).unflatten(0, (people, -1))
    return Hypotheses(poses.unflatten(0, (people, -1)), energy.unflatten(0, (people, -1)), translation)


def polish(prior: Prior, poses: Tensor, seen: Reprojection) -> Tensor:
    """Repair poses: noise them up to a level (SDEdit, Meng et al. 2022), and sample from there, guided.

    A person's answer depends on nobody else, and changes little where pose and keypoints do: everybody gets
    the same noise, and none is added on the way down. Poses (B, 17, 3) become (B, COPIES, 17, 3), metres.
    """
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        drawn = torch.randn(COPIES, JOINTS - 1, 3, generator=generator).to(prior.mean)
        return drawn.expand(len(poses), -1, -1, -1).flatten(0, 1)

    plan = levels(10, LEVEL + 1)
    x0 = prior.encode(poses).repeat_interleave(COPIES, 0)
    x = prior.schedule.add_noise(x0, noise(), plan[0][0])
    for t, u in plan:
        for repeat in range(2):
            if repeat:
                x = _noised_again(prior.schedule, x, u, t, noise())
            moved = sample(prior, prior.schedule, x, [(t, u)], None, _guidance(prior, [seen], t, rho=3.0))
            x, x0 = moved.x, moved.x0
    return prior.decode(x0).unflatten(0, (len(poses), COPIES))


def _guidance(
    prior: Prior, terms: Sequence[Evidence], t: int, rho: float, mode: Mode = "detached"
) -> Objective:
    """The evidence as an objective at level t, where the prediction is uncertain by `prior.spread`."""
    spread = prior.spread[t]  # (16,) metres
    gain = torch.tensor(1.0).to(spread)
    if mode == "detached":
        # `guide` moves x0 by -(sigma / alpha)^2 times the gradient; this makes it the covariance.
        alpha, sigma = prior.schedule.alpha_sigma(t, spread)
        gain = (spread * prior.scale * alpha / sigma).square()[:, None]
    wide = torch.nn.functional.pad(spread, (1, 0))
    weighted = [(term.at(wide), rho if isinstance(term, Reprojection) else 1.0) for term in terms]

    def energy(x0: Tensor) -> Tensor:
        held = x0.detach()
        poses = prior.decode(held + gain * (x0 - held))
        return torch.stack([weight * term(poses) for term, weight in weighted]).sum(0)

    return energy


def _reach(prior: Prior) -> Tensor:
    """(17, 17) mean squared distances in metres^2, across the picture, of joints of the prior's people."""
    places = generate(prior, 256, steps=30)[..., :2]
    return (places[:, :, None] - places[:, None]).square().sum(-1).mean(0)


def _prepared(e: Evidence, average: Tensor, reach: Tensor | None, early: bool) -> Evidence:
    """The evidence as it places poses that are not certain yet."""
    if not isinstance(e, Reprojection) or reach is None:
        return e
    if not early:
        return replace(e, reach=reach)
    # Early predictions do not tell the depth; how far people extend does.
    return replace(e, translation=replace(e, reach=reach, slack=1.0).solve(average))


def _noised_again(schedule: Schedule, x_u: Tensor, u: int, t: int, noise: Tensor) -> Tensor:
    """Forward process from level u up to t."""
    kept = (schedule.ab(t) / schedule.ab(u)).to(x_u)
    return kept.sqrt() * x_u + (1 - kept).sqrt() * noise


def generate(prior: Prior, n: int, *, seed: int = 0, **options: Any) -> Tensor:
    """Poses (n, 17, 3) in metres from the prior alone; options as for `sample_poses`."""
    return sample_poses(prior, 1, n, seed=seed, **options).poses[0]


def lift(
    prior: Prior,
    keypoints: Tensor,
    confidence: Tensor,
    K: Tensor,
    m: int = 20,
    *,
    sigma: Tensor | float | None = None,
    heatmaps: Tensor | None = None,
    boxes: Tensor | None = None,
    translation: Tensor | None = None,
    others: Sequence[Evidence] = (),
    steps: int = 30,
    repeats: int = 4,
    rho: float = 3.0,
    **options: Any,
) -> Hypotheses:
    """3D poses from a detector's output.

    Args:
        prior: the denoiser.
        keypoints: (B, 17, 2) pixels of the full picture.
        confidence: (B, 17), 0 where not seen.
        K: (B, 3, 3) or (3, 3) pixels.
        m: hypotheses a person.
        sigma: noise of the keypoints in pixels, one or (B,); None estimates it by `keypoint_noise`.
        heatmaps: (B, 17, h, w) to use instead of the keypoints.
        boxes: (B, 4) left, top, right, bottom of the heatmaps in pixels.
        translation: (B, 3) metres where the root is known.
        others: further evidence, e.g. `BoneLength`, `Smooth`.
        steps: see `sample_poses`; like the next two chosen on training clips, by the best of 20 hypotheses.
        repeats: see `sample_poses`; depth needs them, or it is settled before the picture coordinates are.
        rho: see `sample_poses`; more than 1 makes up for a prior that is too sure of itself.
        **options: of `sample_poses`.

    Raises:
        ValueError: heatmaps without boxes.
    """
    seen: Reprojection
    if heatmaps is None:
        sigma = keypoint_noise(keypoints, confidence) if sigma is None else sigma
        seen = Keypoint2D(
            keypoints=keypoints, confidence=confidence, K=K, translation=translation, sigma=sigma
        )
    elif boxes is None:
        raise ValueError("heatmaps need boxes (B, 4), where they lie in the picture")
    else:
        seen = HeatmapNLL(heatmaps=heatmaps, boxes=boxes, confidence=confidence, K=K, translation=translation)
    return sample_poses(
        prior, len(keypoints), m, [seen, *others], steps=steps, repeats=repeats, rho=rho, **options
    )


def complete(
    prior: Prior, joints: Tensor, known: Tensor, m: int = 20, *, K: Tensor | None = None, **options: Any
) -> Hypotheses:
    """Whole poses from any subset of joints, in 3D or in a picture.

    Args:
        prior: the denoiser.
        joints: (B, 17, 3) metres in the camera frame, shifted at will; or (B, 17, 2) pixels. Anything, even
            NaN, where unknown.
        known: (B, 17) 1 where a joint is known, 0 where not.
        m: hypotheses a person.
        K: (B, 3, 3) or (3, 3) pixels, for joints in pixels.
        **options: of `sample_poses`, and for pixels of `lift`.

    Raises:
        ValueError: pixels without K, joints that are neither, `known` of another shape, or NaN where known.
    """
    camera = K if joints.shape[-1] == 2 else None
    if joints.dim() != 3 or joints.shape[1] != JOINTS or (joints.shape[2] != 3 and camera is None):
        raise ValueError(
            f"joints must be (B, 17, 3) metres, or (B, 17, 2) pixels with K, got {tuple(joints.shape)}"
        )
    if known.shape != joints.shape[:2]:
        raise ValueError(f"known must be {tuple(joints.shape[:2])}, got {tuple(known.shape)}")
    joints = torch.where(known[..., None] > 0, joints, 0.0)
    if not joints.isfinite().all():
        raise ValueError("joints must be finite where known: mark those that are not as unknown")
    if camera is not None:
        return lift(prior, joints, known.to(joints), camera, m, **options)
    spans = torch.cdist(joints, joints)[(known[:, :, None] > 0) & (known[:, None] > 0)]
    if len(spans) and (longest := spans.max().item()) > TALLEST:
        raise ValueError(
            f"two joints of a person lie {longest:.4g} m apart: give metres, not millimetres or pixels"
        )
    # Root-relative, as poses are; an unknown root lies at zero and brings nothing of its own in.
    points = joints - joints[:, :1]
    return sample_poses(prior, len(joints), m, [Known3D(points=points, mask=known)], **options)


def lift_people(
    people: Sequence[Detection], m: int, seed: int, times: Tensor | None, networks: Networks = SHIPPED
) -> list[PersonHypotheses]:
    """By the prior, with heatmaps where everyone has them; see `registry.Method`."""
    mapped = all(p.heatmaps is not None for p in people)
    squares = stacked(people, "square")
    keypoints, confidence, K = (stacked(people, name) for name in ("keypoints", "confidence", "K"))
    hypotheses = lift(
        networks[Prior], keypoints, confidence, K, m, seed=seed,
        sigma=NOISE * (squares[:, 2] - squares[:, 0]),
        heatmaps=stacked(people, "heatmaps") if mapped else None,
        boxes=stacked(people, "box") if mapped else None,
        others=[] if times is None or len(people) < 2 else [Smooth.over(times)],
    )  # fmt: skip
    return [PersonHypotheses(p, "guided", hypotheses[i : i + 1]) for i, p in enumerate(people)]
