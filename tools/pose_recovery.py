"""Recovery from perturbed bodies in single pictures, several views and video, against plain fitting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose import metrics
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.motion import Motion
from dd3g.pose.data.synthesis import Views, normal, synthesise
from dd3g.pose.methods.fitting import PosePrior, fit_body
from dd3g.pose.methods.recovery import FAST, PUBLISHED, PUBLISHED_VIEWS, VIDEO, Recovery, recover
from dd3g.pose.methods.recovery_energies import BodyKeypoints, MultiView, SmoothRotations
from dd3g.pose.networks.rotation_denoiser import Condition, RotationDenoiser, keypoint_condition, posed

DEGREES = 20.0
CONVENTION = (
    "CMU test people whose rotations are valid, on the shipped body with random shapes that are given to the "
    "methods; every joint's rotation, the root's too, turned about a random axis by normal noise of 20 "
    "degrees (root mean square angle); errors over H36M-17 after the pelvis, in mm"
)
VIEWS = 4
FRAMES = 32


def perturbed(rotations: Tensor, seed: int, keys: Tensor) -> Tensor:
    """Rotations (B, 24, 3, 3) of axis-angle (B, 24, 3), each turned at random by `DEGREES`."""
    noise = normal(seed, 40, keys, 72).reshape(-1, 24, 3) * (DEGREES * torch.pi / 180 / 3**0.5)
    return axis_angle_to_matrix(rotations) @ axis_angle_to_matrix(noise)


def evaluate_recovery(
    test: Motion, train: Motion, weights: Path | None, limit: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Tables of single frames, multi-view and video; `limit` people, a quarter as many for several views.

    Raises:
        UserError: no frame with valid rotations, or weights that are missing.
    """
    from dd3g.pose.networks.pretrained import WEIGHTS

    if test.rotations_valid is None or not test.rotations_valid.any():
        raise UserError("none of these clips has valid rotations: recovery cannot be evaluated on them")
    denoiser = RotationDenoiser.from_pretrained((weights or WEIGHTS) / "pose-recovery")
    prior = PosePrior.from_motion(train)
    rows = test.rotations_valid.nonzero()[:, 0]
    single = rows[(torch.arange(min(limit, len(rows))) * len(rows)) // min(limit, len(rows))]
    return {
        "convention": CONVENTION,
        "single": _single(denoiser, prior, test, single, seed),
        "views": _views(denoiser, test, single[::VIEWS], seed),
        "video": _video(denoiser, test, limit, seed),
    }


class _Scene:
    """Views of frames on random bodies, with perturbed starts."""

    def __init__(self, motion: Motion, rows: Tensor, seed: int, view: int = 0, steady: bool = False) -> None:
        keys = motion.clip[rows] if steady else rows
        betas = normal(seed, 41, keys, 10)
        self.body = default_body()
        bodies = posed(motion, rows, self.body, betas)
        self.views: Views = synthesise(
            bodies, torch.arange(len(rows)), seed, view=view, steady=steady, bones=0.0, mirror=False
        )
        v = self.views
        assert v.rotations is not None
        self.start = perturbed(v.rotations, seed + 7 * view, rows)
        self.condition: Condition = keypoint_condition(v.keypoints, v.confidence, v.K)
        self.evidence = BodyKeypoints(self.body, betas, v.keypoints, v.confidence, v.K, float(max(v.size)))
        self.betas = betas

    def errors(self, rotations: Tensor) -> dict[str, Tensor]:
        poses = self.body.points(rotations, self.betas)
        return {
            "mpjpe": metrics.mpjpe(poses, self.views.pose),
            "pa_mpjpe": metrics.pa_mpjpe(poses, self.views.pose),
        }


def _means(
    errors: dict[str, Tensor], seconds: float = 0.0, found: Recovery | None = None
) -> dict[str, float]:
    result = {name: float(value.mean()) for name, value in errors.items()} | {"seconds_a_person": seconds}
    return result if found is None else result | {"kept": float(found.kept.float().mean())}


def _single(
    denoiser: RotationDenoiser, prior: PosePrior, motion: Motion, rows: Tensor, seed: int
) -> dict[str, Any]:
    scene = _Scene(motion, rows, seed)
    result: dict[str, Any] = {"start": _means(scene.errors(scene.start))}
    for name, plan in (("recovery, fast", FAST), ("recovery, published plan", PUBLISHED)):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        found = recover(denoiser, scene.start, scene.evidence, scene.condition, plan, generator=generator)
        seconds = (time.perf_counter() - began) / len(rows)
        result[name] = _means(scene.errors(found.rotations), seconds, found)
    began = time.perf_counter()
    found = fit_body(scene.start, scene.evidence, prior)
    seconds = (time.perf_counter() - began) / len(rows)
    result["fitting (SMPLify-like)"] = _means(scene.errors(found.rotations), seconds, found)
    return result | {"people": len(rows)}


def _views(denoiser: RotationDenoiser, motion: Motion, rows: Tensor, seed: int) -> dict[str, Any]:
    scenes = [_Scene(motion, rows, seed, view) for view in range(VIEWS)]
    alone = [
        recover(denoiser, s.start, s.evidence, s.condition, FAST,
                generator=torch.Generator().manual_seed(seed)).rotations for s in scenes
    ]  # fmt: skip
    together: dict[str, list[Tensor]] = {"start": [s.start for s in scenes], "single view": alone}
    features = torch.stack([s.condition.features for s in scenes], 1).flatten(0, 1)
    turns = [s.condition.view for s in scenes]
    assert all(t is not None for t in turns)
    view = torch.stack([t for t in turns if t is not None], 1).flatten(0, 1)
    betas, keypoints, confidence, K = (
        torch.stack([getattr(s.evidence, name) for s in scenes], 1).flatten(0, 1)
        for name in ("betas", "keypoints", "confidence", "K")
    )
    first = scenes[0]
    evidence = BodyKeypoints(first.body, betas, keypoints, confidence, K, first.evidence.size)
    for name, start in (("multi-view from the start", together["start"]), ("multi-view", alone)):
        stacked = torch.stack(start, 1).flatten(0, 1)
        found = recover(
            denoiser, stacked, evidence, Condition(features, view), PUBLISHED_VIEWS,
            together=MultiView(VIEWS), weight=0.0, gate=False,
        )  # fmt: skip
        together[name] = list(found.rotations.unflatten(0, (-1, VIEWS)).unbind(1))
    result = {}
    for name, rotations in together.items():
        errors = [s.errors(r) for s, r in zip(scenes, rotations, strict=True)]
        result[name] = _means({k: torch.cat([e[k] for e in errors]) for k in errors[0]})
    return result | {"people": len(rows), "views": VIEWS}


def _video(denoiser: RotationDenoiser, motion: Motion, limit: int, seed: int) -> dict[str, Any]:
    windows = motion.windows(FRAMES)
    assert motion.rotations_valid is not None
    windows = windows[motion.rotations_valid[windows].all(1)]
    if not len(windows):
        return {}
    count = min(max(limit // FRAMES, 1), len(windows))
    windows = windows[(torch.arange(count) * len(windows)) // count]
    scene = _Scene(motion, windows.flatten(), seed, steady=True)
    generator = torch.Generator().manual_seed(seed)
    alone = recover(denoiser, scene.start, scene.evidence, scene.condition, FAST, generator=generator)
    smooth = recover(
        denoiser, alone.rotations, scene.evidence, scene.condition, VIDEO,
        together=SmoothRotations(FRAMES), gate=False,
    )  # fmt: skip
    result: dict[str, Any] = {"windows": count, "frames": FRAMES}
    truth = scene.views.pose.unflatten(0, (-1, FRAMES))
    for name, rotations in (
        ("start", scene.start),
        ("frame by frame", alone.rotations),
        ("video", smooth.rotations),
    ):
        poses = scene.body.points(rotations, scene.betas).unflatten(0, (-1, FRAMES))
        errors = scene.errors(rotations) | {"acceleration": metrics.acceleration_error(poses, truth)}
        result[name] = _means(errors)
    return result
