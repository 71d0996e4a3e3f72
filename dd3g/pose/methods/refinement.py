"""ScoreHMR: bodies refined by guided denoising of joint rotations (Stathopoulos et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from dd3g.diffusion import Denoiser, Energy, Step, descent, refine, sample
from dd3g.pose.hypotheses import Hypotheses
from dd3g.pose.methods.recovery_energies import Balanced, BodyKeypoints, curvatures, matrices, state
from dd3g.pose.networks.prior import schedule
from dd3g.pose.networks.rotation_denoiser import STATE, Condition

WEIGHT = 0.003  # of the reprojection energy
SAMPLES = 8  # noises of a restart


@dataclass(frozen=True)
class RecoveryPlan:
    """How to refine: rounds of inversion and guided descent, the first of them from states made likelier."""

    tau: int = 50  # level that inversion climbs to
    step: int = 2  # levels a move
    rounds: int = 10  # of inversion and guided descent; one costs 2 tau / step network calls
    # Levels, one for each of the first rounds; none are published. Inversion and descent alone return what
    # they are given, errors of the start that keypoints cannot see included. Before such a round, the mean of
    # what the network makes of the state under `SAMPLES` noises of that level replaces it: a level whose
    # noise is about as large as those errors takes them for noise
    restarts: tuple[int, ...] = ()
    # A person whose energy changes by less than this share stays as it is; 0 never stops
    tolerance: float = 1e-5
    # "solved" puts the root where the present pose fits the keypoints best, in closed form; "adam" follows
    # the gradient from the first translation, as published; "given" holds it
    camera: Literal["solved", "adam", "given"] = "solved"
    # Share of its distance to the keypoints, to first order, that each joint alone goes in a round (see
    # `Balanced`); None follows the plain gradient times a weight, as published
    rate: float | None = 1.0

    def __post_init__(self) -> None:
        if self.camera not in ("solved", "adam", "given"):
            raise ValueError(f"camera must be 'solved', 'adam' or 'given', got {self.camera!r}")
        descent(self.tau, self.step)  # raises where they do not fit


PUBLISHED = RecoveryPlan(camera="adam", rate=None)
PUBLISHED_VIDEO = RecoveryPlan(camera="adam", tolerance=0, rate=None)
PUBLISHED_VIEWS = RecoveryPlan(100, 10, 2, tolerance=0, rate=None)
# Chosen on training clips: errors of 20 degrees are like the noise of level 100.
FAST = RecoveryPlan(30, 5, 10, (100,), rate=2.0)
IMAGINED = RecoveryPlan(30, 5, 10, (300, 100), rate=2.0)
VIDEO = RecoveryPlan(50, 5, 4, tolerance=0)


@dataclass(frozen=True)
class Recovery:
    """Bodies of B people."""

    rotations: Tensor  # (B, 24, 3, 3) relative to the parent, the root's in the camera frame
    betas: Tensor  # (B, 10) shape
    translation: Tensor  # (B, 3) metres, the pelvis in the camera frame
    poses: Tensor  # (B, 17, 3) metres, H36M-17, root-relative
    energy: Tensor  # (B,) robust reprojection energy, lower is better
    start_energy: Tensor  # (B,) that of the start, at its best translation
    kept: Tensor  # (B,) bool, whether the gate kept the start because nothing better was found

    def hypotheses(self, m: int = 1) -> Hypotheses:
        """As m hypotheses of each of B / m people, people first."""
        return Hypotheses(*(x.unflatten(0, (-1, m)) for x in (self.poses, self.energy, self.translation)))


@torch.no_grad()
def imagine(
    denoiser: Denoiser, condition: Condition, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Rotations (count, 24, 3, 3) to start from: 19 free DDIM moves from level 950 in steps of 50.

    The condition has a row for each.
    """
    noise = torch.randn(count, STATE, generator=generator)
    return matrices(sample(denoiser, schedule(), noise, descent(950, 50), condition, clip=1.0).x0)


@torch.no_grad()
def recover(
    denoiser: Denoiser,
    start: Tensor,
    evidence: BodyKeypoints,
    condition: Condition,
    plan: RecoveryPlan = FAST,
    *,
    together: Energy | None = None,
    translation: Tensor | None = None,
    weight: float = WEIGHT,
    gate: bool = True,
    generator: torch.Generator | None = None,
) -> Recovery:
    """Improve body estimates by their keypoints, as far as the denoiser believes it (ScoreHMR, section 3.3).

    Args:
        denoiser: of rotations, e.g. `RotationDenoiser`.
        start: (B, 24, 3, 3) the estimates, the root's rotation in the camera frame.
        evidence: keypoints and cameras; its translation is set here.
        condition: of the denoiser, B rows.
        plan: how to refine; `PUBLISHED` is the paper's.
        together: `MultiView` or `SmoothRotations` over the batch.
        translation: (B, 3) metres of the pelvis at the start; None solves for it.
        weight: of the reprojection energy, for plans without a rate; 0 leaves keypoints out, which with
            `together` is the published multi-view setting.
        gate: keep the start where the reprojection energy did not fall.
        generator: of the noise of restarts.

    Returns:
        The bodies. Where no keypoint has any confidence, and nothing comes from `together`, the start stays.
    """
    x = state(start)
    # The best a camera can do for the start, so that the gate compares bodies and not cameras.
    reprojection = replace(evidence, translation=None)
    start_energy = reprojection(x)
    auxiliary = None
    if plan.camera == "solved":
        evidence = reprojection
    else:
        if translation is None:
            translation = evidence.solve(evidence.points(x))
        moving = translation.detach().clone().requires_grad_(plan.camera == "adam")
        evidence = replace(evidence, translation=moving)
        auxiliary = torch.optim.Adam([moving], 1e-2) if plan.camera == "adam" and weight else None
    terms: list[Energy] = [] if together is None else [together]
    if weight and plan.rate is None:
        terms.append(weight * evidence)
    elif weight and plan.rate is not None:
        depth = reprojection.solve(reprojection.points(x))[:, 2]
        # A descent from level tau moves a sample by sigma_tau^2 / 2 times the gradient.
        way = (1 - float(schedule().ab(plan.tau))) / 2
        terms.append(Balanced(evidence, curvatures(reprojection, depth), plan.rate / way))
    objective = reduce(add, terms) if terms else 0 * evidence
    # The published test is of the energy itself, not of its weighted share in the guidance.
    unit = weight if weight and plan.rate is None else 1.0
    watch = _Watch(len(x), plan.tolerance, evidence.translation, unit)
    moves = descent(plan.tau, plan.step)
    for number in range(plan.rounds):
        restarted = number < len(plan.restarts)
        if restarted:
            x = _restart(denoiser, x, condition, plan.restarts[number], generator)
        ended = refine(
            denoiser, schedule(), x, moves, condition, objective, 1, auxiliary=auxiliary,
            record=None if restarted else watch,
        )  # fmt: skip
        x, last = ended.x, ended.x0
        if watch.done.all():
            break
    last = torch.where(watch.done[:, None], watch.x0, last)
    energy = reprojection(last)
    kept = (energy >= start_energy) & gate
    last = torch.where(kept[:, None], state(start), last)
    place = reprojection.solve(reprojection.points(last))
    if evidence.translation is not None:
        moved = torch.where(watch.done[:, None], watch.rested, evidence.translation.detach())
        place = torch.where(kept[:, None], place, moved)
    rotations, energy = matrices(last), torch.where(kept, start_energy, energy)
    poses = evidence.body.points(rotations, evidence.betas, "h36m-17")
    return Recovery(rotations, evidence.betas, place, poses, energy, start_energy, kept)


def _restart(
    denoiser: Denoiser, x: Tensor, condition: Condition, level: int, generator: torch.Generator | None
) -> Tensor:
    """The mean clean state that the network sees behind `SAMPLES` noisy copies of x."""
    total = torch.zeros_like(x)
    for _ in range(SAMPLES):
        noise = torch.randn(x.shape, generator=generator)
        noisy = schedule().add_noise(x, noise, level)
        total += sample(denoiser, schedule(), noisy, [(level, 0)], condition).x0
    return state(matrices(total / SAMPLES))


class _Watch:
    """Notes where each person's energy came to rest, and the state and translation there.

    `moving` (B, 3) is the translation, unless it is solved for; `unit` is the energy's weight.
    """

    def __init__(self, count: int, tolerance: float, moving: Tensor | None, unit: float) -> None:
        self.tolerance, self.moving, self.unit = tolerance, moving, unit
        self.done = torch.zeros(count, dtype=torch.bool)
        self.energy: Tensor | None = None
        self.x0 = torch.zeros(count, STATE)
        self.rested = torch.zeros(count, 3)

    def __call__(self, step: Step) -> None:
        assert step.energy is not None
        energy = step.energy / self.unit
        if self.energy is not None:
            change = (self.energy - energy).abs()
            rest = change < self.tolerance * torch.stack([self.energy, energy]).amax(0).clamp(min=1)
            fresh = rest & ~self.done
            self.x0[fresh] = step.x0[fresh]
            if self.moving is not None:
                self.rested[fresh] = self.moving.detach()[fresh]
            self.done |= fresh
        self.energy = energy
