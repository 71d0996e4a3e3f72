"""The methods as an evaluation runs them, and the scores of their hypotheses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose import metrics
from dd3g.pose.body.geometry import solve_translation
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.hypotheses import Hypotheses
from dd3g.pose.methods import guided, registry
from dd3g.pose.methods.advice import advise
from dd3g.pose.methods.recovery import recover_people
from dd3g.pose.methods.restoration import restore
from dd3g.pose.methods.zedo import zedo
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.pretrained import WEIGHTS, PoseNetwork
from dd3g.pose.networks.prior import Prior
from dd3g.pose.networks.rotation_denoiser import RotationDenoiser
from tools.pose_people import People

Method = Callable[[People, int, int], Hypotheses]
"""People, number of hypotheses, seed -> hypotheses."""
Advice = Callable[[Hypotheses, People], Hypotheses]
"""Hypotheses -> the same with the one answer."""
MANY = 1_000_000
# Methods with the most hypotheses that each can afford.
METHODS = {"lifter": 1, "fixed noise": MANY, "restoration": MANY, "ZeDO": 50, "guided": MANY, "recovery": 10}
Network = TypeVar("Network", bound=PoseNetwork)


def make_methods(
    names: Sequence[str], weights: Path | None = None, steps: int = 30, zedo_iterations: int = 200
) -> dict[str, tuple[Method, int, Advice | None]]:
    """Methods by name with the most hypotheses that each draws and what makes the one answer of these.

    Baselines have no advice: their answer is their mean. Networks are loaded once.

    Args:
        names: of `METHODS`.
        weights: folder with pose-prior, pose-lifter, pose-difficulty, pose-recovery; None: the shipped ones.
        steps: network calls of guided sampling.
        zedo_iterations: of its main loop; its placing takes as many, at least 200. Some runs diverge
            with 1,000.

    Raises:
        UserError: an unknown name, or weights that are missing.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r}: use one of {', '.join(METHODS)}")

    @cache
    def load(network: type[Network]) -> Network:
        return network.from_pretrained((weights or WEIGHTS) / network.kind)

    def make(name: str) -> Method:
        if name == "ZeDO":
            prior, n = load(Prior), zedo_iterations
            return lambda p, m, seed: zedo(
                prior, *p.seen, m, iterations=n, fit_iterations=max(n, 200), seed=seed
            )
        if name == "guided":
            prior = load(Prior)
            return lambda p, m, seed: guided.lift(
                prior, *p.seen, m, translation=p.root, steps=steps, seed=seed
            )
        if name == "recovery":
            denoiser = load(RotationDenoiser)
            return lambda p, m, seed: recover_people(
                *p.seen, p.size, m=m, seed=seed, denoiser=denoiser
            ).hypotheses(m)
        lifter = load(GraphLifter)
        difficulty = None if name == "lifter" else load(Difficulty)
        options: dict[str, Any] = {"alpha": 0.0} if name == "lifter" else {"fixed": name == "fixed noise"}
        return lambda p, m, seed: restore(
            lifter, difficulty, *p.seen, p.size[0], m, generator=seed, **options
        )

    def advised(h: Hypotheses, p: People) -> Hypotheses:
        return advise(h, *p.seen, p.size[0], lifter=load(GraphLifter), prior=load(Prior))

    advice = {name: advised if name in registry.METHODS else None for name in names}
    return {name: (make(name), METHODS[name], advice[name]) for name in names}


def score(
    h: Hypotheses, people: People, counts: Sequence[int], advice: Advice | None = None
) -> dict[int, dict[str, Tensor]]:
    """Scores (B,) of each person by name, for every m of `counts` that was drawn; errors in mm.

    best and best_pa: P-Best by protocols 1 and 2. joint_best: J-Best. jpma: J-Agg. mean, medoid and lowest:
    the mean pose (P-Agg), the medoid, the lowest energy. recommended: the answer to give; average: mean error
    of the hypotheses; expected: the error that `recommended` expects; bones, depth: by how many percent its
    bones are too long together and its root is too far away. pck, auc: of the recommended,
    14 joints; pck_best and cps of the best; pck17: the best over all 17 joints. symmetry, diversity and
    apd of all.
    """
    truth, counted = people.pose, metrics.PCK_JOINTS
    result: dict[int, dict[str, Tensor]] = {}
    errors = metrics.mpjpe(h.poses, truth[:, None])  # (B, m)
    errors_pa = metrics.pa_mpjpe(h.poses, truth[:, None])
    for m in counts:
        part = h.first(m)
        if advice is not None:
            part = advice(part, people)
        recommended, expected = part.recommended()
        T = part.translation
        if T is None:
            T = solve_translation(
                part.poses, people.keypoints[:, None], people.confidence[:, None], people.K[:, None]
            )
        depth = torch.full((len(truth),), torch.nan)
        if people.true_root is not None:
            root = solve_translation(recommended, *people.seen)
            depth = 100 * (root[:, 2] / people.true_root[:, 2] - 1)
        jpma = metrics.jpma_pose(part.poses, T, people.keypoints, people.K)
        mean, medoid, lowest = part.mean(), part.medoid(), part.best()
        result[m] = {
            "best": errors[:, :m].amin(1),
            "best_pa": errors_pa[:, :m].amin(1),
            "average": errors[:, :m].mean(1),
            "average_pa": errors_pa[:, :m].mean(1),
            "joint_best": metrics.joint_best(part.poses, truth),
            "jpma": metrics.mpjpe(jpma, truth),
            "mean": metrics.mpjpe(mean, truth),
            "mean_pa": metrics.pa_mpjpe(mean, truth),
            "medoid": metrics.mpjpe(medoid, truth),
            "lowest": metrics.mpjpe(lowest, truth),
            "recommended": metrics.mpjpe(recommended, truth),
            "recommended_pa": metrics.pa_mpjpe(recommended, truth),
            "expected": 1000 * expected,
            "bones": 100 * (bone_lengths(recommended).sum(-1) / bone_lengths(truth).sum(-1) - 1),
            "depth": depth,
            "pck": metrics.pck(recommended[:, counted], truth[:, counted]),
            "auc": metrics.auc(recommended[:, counted], truth[:, counted]),
            "pck_best": metrics.mh_pck(part.poses, truth),
            "pck17": metrics.pck(part.poses, truth[:, None]).amax(1),
            "cps": metrics.cps(part.poses, truth),
            "symmetry": metrics.symmetry_error(part.poses).mean(1),
            "diversity": metrics.diversity(part.poses),
            "apd": metrics.average_pairwise_distance(part.poses),
        }
    return result


CALIBRATED = 2000  # people whose hypotheses are kept
CALIBRATION_M = 50
BY_GROUP = ("best", "best_pa", "recommended", "recommended_pa", "pck", "auc")


def run_method(
    method: Method,
    people: Sequence[People],
    counts: Sequence[int],
    seed: int,
    chunk: int,
    tick: Callable[[int], None],
    advice: Advice | None = None,
) -> dict[str, Any]:
    """Draw and score everyone, `chunk` people at a time; the answer depends on seed and chunk only.

    Returns:
        Means over people and over groups, tables by group, and calibration.
    """
    scores: list[dict[int, dict[str, Tensor]]] = []
    kept: list[tuple[Tensor, Tensor]] = []  # some hypotheses and their truth, for the calibration
    groups: list[str] = []
    seconds = 0.0
    for part in (batch[i : i + chunk] for batch in people for i in range(0, len(batch), chunk)):
        began = time.perf_counter()
        with torch.no_grad():
            h = method(part, max(counts), seed + len(groups))
        seconds += time.perf_counter() - began
        if not h.poses.isfinite().all():
            raise UserError("a hypothesis is not finite: the weights are damaged, train or copy them again")
        scores.append(score(h, part, counts, advice))
        if len(groups) < CALIBRATED:
            kept.append((h.poses[:, :CALIBRATION_M].clone(), part.pose))
        groups += part.groups
        tick(len(part))
    result: dict[str, Any] = {"seconds_a_person": seconds / len(groups), "m": {}}
    for m in counts:
        own = {name: torch.cat([found[m][name] for found in scores]) for name in scores[0][m]}
        by_group = {name: metrics.by_group(own[name], groups) for name in BY_GROUP}
        block: dict[str, Any] = {name: _number(value.double().mean()) for name, value in own.items()}
        block["mean_of_groups"] = {name: sum(g.values()) / len(g) for name, g in by_group.items()}
        block["by_group"] = by_group
        if m > 1:
            pair = torch.stack([own["recommended"], own["expected"]])
            block["expected_correlation"] = _number(torch.corrcoef(pair)[0, 1])
        result["m"][str(m)] = block
    poses, truth = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if poses.shape[1] > 1:
        error, q, frequency = metrics.calibration(poses, truth)
        result["calibration"] = {
            "m": poses.shape[1],
            "people": len(poses),
            "error": float(error[1:].mean()),
            "q": q.tolist(),
            "frequency": frequency[:, 1:].mean(1).tolist(),
        }
    return result


def _number(value: Tensor) -> float | None:
    """None where there is no number, which JSON cannot write."""
    return float(value) if value.isfinite() else None
