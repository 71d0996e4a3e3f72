"""Recovery from perturbed bodies in single pictures, several views and video, against plain fitting."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose import metrics
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.motion import Motion
from dd3g.pose.data.synthesis import Views, normal, posed, synthesise
from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.methods.fitting import PosePrior, fit_body
from dd3g.pose.methods.recovery_energies import BodyKeypoints, MultiView, SmoothRotations
from dd3g.pose.methods.refinement import (
    FAST,
    PUBLISHED,
    PUBLISHED_VIEWS,
    VIDEO,
    Recovery,
    RecoveryPlan,
    recover,
)
from dd3g.pose.networks.pretrained import WEIGHTS
from dd3g.pose.networks.rotation_denoiser import Condition, RotationDenoiser, keypoint_condition
from dd3g.pose.views import combine
from tools.pose_people import spread

DEGREES = 20.0
CONVENTION = (
    "CMU test people whose rotations are valid, on the shipped body with random shapes that are given to the "
    "methods; every joint's rotation, the root's too, turned about a random axis by normal noise of 20 "
    "degrees (root mean square angle); errors over H36M-17 after the pelvis, in mm"
)
VIEWS = 4
FRAMES = 32


def evaluate_recovery(
    test: Motion, train: Motion, weights: Path | None, limit: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Tables of single frames, multi-view and video; `limit` people, a quarter as many for several views.

    Raises:
        UserError: no frame with valid rotations, or weights that are missing.
    """
    if test.rotations_valid is None or not test.rotations_valid.any():
        raise UserError("none of these clips has valid rotations: recovery cannot be evaluated on them")
    denoiser = RotationDenoiser.from_pretrained((weights or WEIGHTS) / "pose-recovery")
    prior = PosePrior.from_motion(train)
    rows = test.rotations_valid.nonzero()[:, 0]
    single = rows[spread(len(rows), limit)]
    return {
        "convention": CONVENTION,
        "single": _single(denoiser, prior, test, single, seed),
        "views": _views(denoiser, test, single[::VIEWS], seed),
        "video": _video(denoiser, test, limit, seed),
    }


class _Scene:
    """Views of frames on random bodies, and `start`, their rotations with each joint turned by `DEGREES`."""

    def __init__(self, motion: Motion, rows: Tensor, seed: int, view: int = 0, steady: bool = False) -> None:
        self.betas = normal(seed, 41, motion.clip[rows] if steady else rows, 10)
        self.body, self.seed = default_body(), seed
        bodies = posed(motion, rows, self.body, self.betas)
        self.views = v = synthesise(
            bodies, torch.arange(len(rows)), seed, view=view, steady=steady, bones=0.0, mirror=False
        )
        assert v.rotations is not None
        noise = normal(seed + 7 * view, 40, rows, 72).reshape(-1, 24, 3) * (DEGREES * torch.pi / 180 / 3**0.5)
        self.start = axis_angle_to_matrix(v.rotations) @ axis_angle_to_matrix(noise)
        self.condition = keypoint_condition(v.keypoints, v.confidence, v.K)
        self.evidence = BodyKeypoints(
            self.body, self.betas, v.keypoints, v.confidence, v.K, float(max(v.size))
        )

    def recovered(self, denoiser: RotationDenoiser, plan: RecoveryPlan) -> Recovery:
        generator = torch.Generator().manual_seed(self.seed)
        return recover(denoiser, self.start, self.evidence, self.condition, plan, generator=generator)

    def errors(self, rotations: Tensor) -> dict[str, Tensor]:
        return _errors(self.body.points(rotations, self.betas), self.views.pose)


def _errors(poses: Tensor, truth: Tensor) -> dict[str, Tensor]:
    return {"mpjpe": metrics.mpjpe(poses, truth), "pa_mpjpe": metrics.pa_mpjpe(poses, truth)}


def _means(errors: dict[str, Tensor], seconds: float = 0.0) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in errors.items()} | {"seconds_a_person": seconds}


def _single(
    denoiser: RotationDenoiser, prior: PosePrior, motion: Motion, rows: Tensor, seed: int
) -> dict[str, Any]:
    scene = _Scene(motion, rows, seed)
    result: dict[str, Any] = {"start": _means(scene.errors(scene.start))}
    for name, find in (
        ("recovery, fast", lambda: scene.recovered(denoiser, FAST)),
        ("recovery, published plan", lambda: scene.recovered(denoiser, PUBLISHED)),
        ("fitting (SMPLify-like)", lambda: fit_body(scene.start, scene.evidence, prior)),
    ):
        began = time.perf_counter()
        found = find()
        seconds = (time.perf_counter() - began) / len(rows)
        kept = {"kept": float(found.kept.float().mean())}
        result[name] = _means(scene.errors(found.rotations), seconds) | kept
    return result | {"people": len(rows)}


def _views(denoiser: RotationDenoiser, motion: Motion, rows: Tensor, seed: int) -> dict[str, Any]:
    scenes = [_Scene(motion, rows, seed, view) for view in range(VIEWS)]

    def beside(tensors: Iterable[Tensor | None]) -> Tensor:
        """Tensors (B, ...), one a view -> (B * views, ...)."""
        return torch.stack([t for t in tensors if t is not None], 1).flatten(0, 1)

    condition = Condition(
        beside(s.condition.features for s in scenes), beside(s.condition.view for s in scenes)
    )
    names = ("betas", "keypoints", "confidence", "K")
    every: dict[str, Any] = {name: beside(getattr(s.evidence, name) for s in scenes) for name in names}
    evidence = replace(scenes[0].evidence, **every)
    together = {
        "start": [s.start for s in scenes],
        "single view": [s.recovered(denoiser, FAST).rotations for s in scenes],
    }
    for name, start in (("multi-view from the start", "start"), ("multi-view", "single view")):
        found = recover(
            denoiser, beside(together[start]), evidence, condition, PUBLISHED_VIEWS,
            together=MultiView(VIEWS), weight=0.0, gate=False,
        )  # fmt: skip
        together[name] = list(found.rotations.unflatten(0, (-1, VIEWS)).unbind(1))
    result = {}
    for name, rotations in together.items():
        errors = [s.errors(r) for s, r in zip(scenes, rotations, strict=True)]
        result[name] = _means({k: torch.cat([e[k] for e in errors]) for k in errors[0]})
    single = [s.body.points(r, s.betas) for s, r in zip(scenes, together["single view"], strict=True)]
    poses = [
        _combined([(s.views, p) for s, p in zip(scenes, single, strict=True)], i) for i in range(len(rows))
    ]
    truth = torch.stack([s.views.pose for s in scenes])  # (V, B, 17, 3)
    result["views combined (--views)"] = _means(_errors(torch.stack(poses, 1), truth))
    return result | {"people": len(rows), "views": VIEWS}


def _combined(views: list[tuple[Views, Tensor]], i: int) -> Tensor:
    """Person i by `dd3g.pose.views.combine` from the poses (B, 17, 3) of each view -> (V, 17, 3)."""
    people = []
    for v, poses in views:
        square = torch.tensor([0.0, 0.0, *v.size])
        seen = Detection(v.keypoints[i], v.confidence[i], square, v.size, v.K[i], "file", 1.0)
        pose = poses[i : i + 1]
        h = Hypotheses(pose[:, None], torch.zeros(1, 1), None, pose, torch.zeros(1))
        people.append(PersonHypotheses(seen, "recovery", h))
    return torch.stack([person.pose for person in combine(people)])


def _video(denoiser: RotationDenoiser, motion: Motion, limit: int, seed: int) -> dict[str, Any]:
    windows = motion.windows(FRAMES)
    assert motion.rotations_valid is not None
    windows = windows[motion.rotations_valid[windows].all(1)]
    if not len(windows):
        return {}
    windows = windows[spread(len(windows), max(limit // FRAMES, 1))]
    scene = _Scene(motion, windows.flatten(), seed, steady=True)
    alone = scene.recovered(denoiser, FAST)
    smooth = recover(
        denoiser, alone.rotations, scene.evidence, scene.condition, VIDEO,
        together=SmoothRotations(FRAMES), gate=False,
    )  # fmt: skip
    result: dict[str, Any] = {"windows": len(windows), "frames": FRAMES}
    truth = scene.views.pose.unflatten(0, (-1, FRAMES))
    found = {"start": scene.start, "frame by frame": alone.rotations, "video": smooth.rotations}
    for name, rotations in found.items():
        poses = scene.body.points(rotations, scene.betas).unflatten(0, (-1, FRAMES))
        acceleration = {"acceleration": metrics.acceleration_error(poses, truth)}
        result[name] = _means(scene.errors(rotations) | acceleration)
    return result
