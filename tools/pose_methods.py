"""The methods as rows of an evaluation, and the scores of their hypotheses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose import metrics
from dd3g.pose.body.geometry import solve_translation
from dd3g.pose.hypotheses import Hypotheses
from tools.pose_people import People

Row = Callable[[People, int, int], Hypotheses]
"""People, number of hypotheses, seed -> hypotheses."""


@dataclass(frozen=True)
class Limits:
    """What keeps a row affordable.

    Args:
        steps: network calls of guided sampling.
        zedo_iterations: of its main loop; its placing takes as many, at least 200. Some runs diverge
            with 1,000.
        zedo_m: most hypotheses of ZeDO.
        recovery_m: most hypotheses of recovery.
    """

    steps: int = 30
    zedo_iterations: int = 200
    zedo_m: int = 50
    recovery_m: int = 10


ROWS = ("lifter", "fixed noise", "restoration", "ZeDO", "guided", "recovery")


def make_rows(names: Sequence[str], weights: Path | None, limits: Limits) -> dict[str, tuple[Row, int]]:
    """Rows by name with the most hypotheses that each draws; networks are loaded once.

    Args:
        names: of `ROWS`.
        weights: folder with pose-prior, pose-lifter, pose-difficulty, pose-recovery; None: the shipped ones.
        limits: see there.

    Raises:
        UserError: an unknown name, or weights that are missing.
    """
    from dd3g.pose.networks.pretrained import WEIGHTS

    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r}: use one of {', '.join(ROWS)}")
    folder = weights or WEIGHTS
    rows: dict[str, tuple[Row, int]] = {}
    if {"lifter", "fixed noise", "restoration"} & set(names):
        from dd3g.pose.methods.restoration import restore
        from dd3g.pose.networks.difficulty import Difficulty
        from dd3g.pose.networks.lifter import GraphLifter

        lifter = GraphLifter.from_pretrained(folder / "pose-lifter")

        def restored(difficulty: Difficulty | None, **options: Any) -> Row:
            return lambda p, m, seed: restore(
                lifter, difficulty, p.keypoints, p.confidence, p.K, p.size[0], m, generator=seed, **options
            )

        rows["lifter"] = restored(None, alpha=0.0), 1
        if {"fixed noise", "restoration"} & set(names):
            difficulty = Difficulty.from_pretrained(folder / "pose-difficulty")
            rows["fixed noise"] = restored(difficulty, fixed=True), 10**6
            rows["restoration"] = restored(difficulty), 10**6
    if {"ZeDO", "guided"} & set(names):
        from dd3g.pose.methods.guided import lift
        from dd3g.pose.methods.zedo import zedo
        from dd3g.pose.networks.prior import Prior

        prior = Prior.from_pretrained(folder / "pose-prior")
        n = limits.zedo_iterations
        rows["ZeDO"] = (
            lambda p, m, seed: zedo(
                prior, p.keypoints, p.confidence, p.K, m, iterations=n, fit_iterations=max(n, 200), seed=seed
            ),
            limits.zedo_m,
        )
        rows["guided"] = (
            lambda p, m, seed: lift(
                prior, p.keypoints, p.confidence, p.K, m, translation=p.root, steps=limits.steps, seed=seed
            ),
            10**6,
        )  # fmt: skip
    if "recovery" in names:
        from dd3g.pose.methods.recovery import recover_people
        from dd3g.pose.networks.rotation_denoiser import RotationDenoiser

        denoiser = RotationDenoiser.from_pretrained(folder / "pose-recovery")
        rows["recovery"] = (
            lambda p, m, seed: recover_people(
                p.keypoints, p.confidence, p.K, p.size, m=m, seed=seed, denoiser=denoiser
            ).hypotheses(m),
            limits.recovery_m,
        )
    return {name: rows[name] for name in names}


def score(h: Hypotheses, people: People, counts: Sequence[int]) -> dict[str, Tensor]:
    """Scores (B,) of each person as "m/name", for every m of `counts` that was drawn; errors in mm.

    best and best_pa: P-Best by protocols 1 and 2. joint_best: J-Best. jpma: J-Agg. mean, medoid and lowest:
    the mean pose (P-Agg), the medoid, the lowest energy. recommended: the answer to give; average: mean error
    of the hypotheses; expected: what `recommended` says of its own error. pck, auc: of the recommended,
    14 joints; pck_best and cps of the best; pck17: the best over all 17 joints. symmetry, diversity and
    apd of all.
    """
    truth = people.pose
    result: dict[str, Tensor] = {}
    errors = metrics.mpjpe(h.poses, truth[:, None])  # (B, m)
    errors_pa = metrics.pa_mpjpe(h.poses, truth[:, None])
    for m in counts:
        part = h.first(m)
        recommended, expected = part.recommended()
        T = part.translation
        if T is None:
            T = solve_translation(
                part.poses, people.keypoints[:, None], people.confidence[:, None], people.K[:, None]
            )
        jpma = metrics.jpma_pose(part.poses, T, people.keypoints, people.K)
        mean, medoid, lowest = part.mean(), part.medoid(), part.best()
        values = {
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
            "pck": metrics.pck(recommended, truth, joints=metrics.PCK_JOINTS),
            "auc": metrics.auc(recommended, truth, metrics.PCK_JOINTS),
            "pck_best": metrics.mh_pck(part.poses, truth),
            "pck17": metrics.pck(part.poses, truth[:, None]).amax(1),
            "cps": metrics.cps(part.poses, truth),
            "symmetry": metrics.symmetry_error(part.poses).mean(1),
            "diversity": metrics.diversity(part.poses),
            "apd": metrics.average_pairwise_distance(part.poses),
        }
        result |= {f"{m}/{name}": value for name, value in values.items()}
    return result


@dataclass
class Scores:
    """What one row collected."""

    values: dict[str, list[Tensor]]
    poses: list[Tensor]  # some hypotheses, for the calibration
    truth: list[Tensor]
    groups: list[str]
    seconds: float = 0.0


CALIBRATED = 2000  # people whose hypotheses are kept
CALIBRATION_M = 50


def run_row(row: Row, people: Sequence[People], counts: Sequence[int], seed: int, chunk: int,
            tick: Callable[[int], None]) -> Scores:  # fmt: skip
    """Draw and score everyone, `chunk` people at a time; the answer depends on seed and chunk only."""
    found = Scores({}, [], [], [])
    done = 0
    for batch in people:
        for start in range(0, len(batch), chunk):
            part = batch[start : start + chunk]
            began = time.perf_counter()
            with torch.no_grad():
                h = row(part, max(counts), seed + done)
            found.seconds += time.perf_counter() - began
            if not h.poses.isfinite().all():
                raise UserError(
                    "a hypothesis is not finite: the weights are damaged, train or copy them anew"
                )
            for name, value in score(h, part, counts).items():
                found.values.setdefault(name, []).append(value)
            if done < CALIBRATED:
                found.poses.append(h.poses[:, :CALIBRATION_M].clone())
                found.truth.append(part.pose)
            found.groups += part.groups
            done += len(part)
            tick(len(part))
    return found


def summarise(found: Scores, counts: Sequence[int]) -> dict[str, Any]:
    """Means over people and over groups, tables by group, and calibration."""
    values = {name: torch.cat(parts) for name, parts in found.values.items()}
    result: dict[str, Any] = {"seconds_a_person": found.seconds / len(found.groups), "m": {}}
    for m in counts:
        names = [n.split("/")[1] for n in values if n.startswith(f"{m}/")]
        by_group = {n: metrics.by_group(values[f"{m}/{n}"], found.groups) for n in ("best", "best_pa",
                    "recommended", "recommended_pa", "pck", "auc")}  # fmt: skip
        block: dict[str, Any] = {n: _number(values[f"{m}/{n}"].double().mean()) for n in names}
        block["mean_of_groups"] = {n: sum(g.values()) / len(g) for n, g in by_group.items()}
        block["by_group"] = by_group
        if m > 1:
            own, said = values[f"{m}/recommended"], values[f"{m}/expected"]
            block["expected_correlation"] = _number(torch.corrcoef(torch.stack([own, said]))[0, 1])
        result["m"][str(m)] = block
    poses = torch.cat(found.poses)
    if poses.shape[1] > 1:
        error, q, frequency = metrics.calibration(poses, torch.cat(found.truth))
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
