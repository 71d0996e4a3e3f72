"""The whole way from a picture to 3D hypotheses for each person in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import solve_translation
from dd3g.pose.detection.keypoints import Keypoints
from dd3g.pose.detection.people import Detection, detect, load
from dd3g.pose.hypotheses import Hypotheses
from dd3g.pose.methods import guided
from dd3g.pose.methods.guided_energies import Smooth
from dd3g.pose.methods.recovery import VIDEO, recover, recover_people
from dd3g.pose.methods.recovery_energies import BodyKeypoints, SmoothRotations
from dd3g.pose.methods.restoration import restore
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.prior import Prior
from dd3g.pose.networks.rotation_denoiser import RotationDenoiser, keypoint_condition

METHODS = ("guided", "restoration", "recovery")
NOISE = 0.01  # of a detector, in sides of the square around a person
BODY_SIDE = 800.0  # px of the square around a person in the picture of 1000 that recovery is set up for


@dataclass(frozen=True)
class PersonHypotheses:
    """One person in 3D.

    Args:
        detection: what it is made from.
        method: one of `METHODS`.
        hypotheses: poses (1, m, 17, 3).
        rotations: (24, 3, 3) of SMPL-24 joints relative to their parents, the root's in the camera frame.
        betas: (10,) shape of the body.
    """

    detection: Detection
    method: str
    hypotheses: Hypotheses
    rotations: Tensor | None = None  # (24, 3, 3)
    betas: Tensor | None = None  # (10,)

    @property
    def pose(self) -> Tensor:
        """(17, 3) the recommended answer: metres, camera frame, root-relative."""
        return self.hypotheses.recommended()[0][0]

    @property
    def expected_error(self) -> float:
        """Metres, mean over joints; NaN for a single hypothesis."""
        return float(self.hypotheses.recommended()[1][0])

    @property
    def translation(self) -> Tensor:
        """(3,) metres: the root of the recommended pose in the camera frame."""
        d = self.detection
        return solve_translation(self.pose, d.keypoints, d.confidence, d.K)


def estimate(
    picture: str | Path | Image.Image | np.ndarray | None,
    method: str = "guided",
    m: int = 20,
    *,
    keypoints: Keypoints | None = None,
    focal: float | None = None,
    seed: int = 0,
) -> list[PersonHypotheses]:
    """3D hypotheses for each person in a picture.

    Args:
        picture: a file, a PIL picture or a uint8 array (H, W, 3 or 4); None with keypoints alone.
        method: one of `METHODS`.
        m: hypotheses a person.
        keypoints: of another detector, see `detection.keypoints.read_keypoints`; None runs BlazePose.
        focal: px; None looks at the keypoints' file, then at EXIF, then takes the picture's diagonal.
        seed: of all draws; same picture, same seed, same answer.

    Returns:
        People, largest first for BlazePose, else in the file's order.

    Raises:
        UserError: a picture that cannot be read, nobody in it, missing weights, or an unknown method.
    """
    image = None if picture is None else load(picture)
    name = f"{picture}" if isinstance(picture, str | Path) else "the picture"
    people = detect(image, keypoints, focal)
    if not people:
        raise UserError(
            f"no person was found in {name}: give a clearer picture, or keypoints with --keypoints"
        )
    return lift(people, method, m, seed)


def generate(n: int, *, seed: int = 0, **options: Any) -> Tensor:
    """Random poses (n, 17, 3), metres, root-relative, from the shipped prior; options of `guided.draw`."""
    return guided.generate(prior(), n, seed=seed, **options)


def complete(
    joints: Tensor, known: Tensor, m: int = 20, *, K: Tensor | None = None, **options: Any
) -> Hypotheses:
    """Whole poses from any subset of joints, in 3D or in a picture, by the shipped prior.

    Args:
        joints: (B, 17, 3) metres in the camera frame, or (B, 17, 2) px.
        known: (B, 17) 1 where known, else 0.
        m: hypotheses for each.
        K: (B, 3, 3) or (3, 3) px, for joints in px.
        **options: of `guided.draw`.
    """
    return guided.complete(prior(), joints, known, m, K=K, **options)


def lift(
    people: Sequence[Detection], method: str = "guided", m: int = 20, seed: int = 0, video: bool = False
) -> list[PersonHypotheses]:
    """2D to 3D by one of the methods, everyone in one batch.

    Args:
        people: in 2D; for a video, one person in consecutive frames.
        method: one of `METHODS`.
        m: hypotheses a person.
        seed: of all draws.
        video: tie the frames together.

    Raises:
        UserError: unknown method, or weights that are missing.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if m < 1:
        raise UserError(f"{m} hypotheses are none: give 1 or more")
    if not people:
        return []
    points, confidence, K = (
        torch.stack([getattr(p, name) for p in people]) for name in ("keypoints", "confidence", "K")
    )
    sides = torch.stack([p.square[2] - p.square[0] for p in people])  # (B,)
    if method == "recovery":
        return _recovered(people, points, confidence, K, sides, m, seed, video)
    if method == "guided":
        others = [Smooth(frames=len(people))] if video and len(people) > 1 else []
        maps, boxes = (
            None if any(p.heatmaps is None for p in people) else torch.stack([getattr(p, n) for p in people])
            for n in ("heatmaps", "box")
        )
        hypotheses = guided.lift(
            prior(),
            points,
            confidence,
            K,
            m,
            sigma=NOISE * sides,
            heatmaps=maps,
            boxes=boxes,
            others=others,
            seed=seed,
        )
    else:
        # One by one, with the same noise: what is said of a person depends on nobody else in the picture,
        # and a hypothesis goes on from frame to frame.
        each = [
            restore(lifter(), difficulty(), x[None], c[None], k[None], p.size[0], m, generator=seed)
            for p, x, c, k in zip(people, points, confidence, K, strict=True)
        ]
        assert all(h.translation is not None for h in each)
        hypotheses = replace(
            each[0],
            poses=torch.cat([h.poses for h in each]),
            energy=torch.cat([h.energy for h in each]),
            translation=torch.cat([h.translation for h in each if h.translation is not None]),
        )
        if video:
            hypotheses = replace(hypotheses, poses=_smoothed(hypotheses.poses))
    return [PersonHypotheses(p, method, hypotheses[i : i + 1]) for i, p in enumerate(people)]


def _recovered(
    people: Sequence[Detection],
    points: Tensor,
    confidence: Tensor,
    K: Tensor,
    sides: Tensor,
    m: int,
    seed: int,
    video: bool,
) -> list[PersonHypotheses]:

    # Its energies are in pixels of a picture of 1000: small people and large ones must mean the same there.
    factor = (BODY_SIDE / sides)[:, None, None]
    points = points * factor
    K = torch.cat([K[:, :2] * factor, K[:, 2:]], 1)
    size = (1000, 1000)
    if video:
        # One hypothesis: those of different frames would not belong together.
        m = 1
    result = recover_people(points, confidence, K, size, m=m, seed=seed, denoiser=denoiser())
    if video and len(people) > 1:
        evidence = BodyKeypoints(default_body(), result.betas, points, confidence, K, 1000.0)
        condition = keypoint_condition(points, confidence, K)
        together = SmoothRotations(len(people))
        result = recover(
            denoiser(), result.rotations, evidence, condition, VIDEO, together=together, gate=False
        )
    hypotheses = result.hypotheses(m)
    rotations, betas = (x.unflatten(0, (-1, m)) for x in (result.rotations, result.betas))
    answers = []
    for i, detection in enumerate(people):
        one = hypotheses[i : i + 1]
        # The recommended pose is a mean and no body; the body nearest to it is given with it.
        nearest = int((one.poses[0] - one.recommended()[0][0]).norm(dim=-1).mean(-1).argmin())
        answers.append(PersonHypotheses(detection, "recovery", one, rotations[i, nearest], betas[i, nearest]))
    return answers


def _smoothed(poses: Tensor, sigma: float = 1.5) -> Tensor:
    """Gaussian mean over time (T, ...); weights beyond the ends are left out."""
    t = torch.arange(len(poses), dtype=poses.dtype)
    weights = torch.exp(-((t[:, None] - t) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum(1, keepdim=True)
    return (weights @ poses.flatten(1)).view_as(poses)


def load_method(method: str) -> None:
    """Load the networks of a method now.

    Raises:
        UserError: when weights are missing.
    """
    networks: dict[str, list[Callable[[], object]]] = {
        "guided": [prior],
        "restoration": [lifter, difficulty],
        "recovery": [denoiser, default_body],
    }
    for network in networks[method]:
        network()


@lru_cache(1)
def prior() -> Prior:
    """The shipped prior."""
    return Prior.from_pretrained()


@lru_cache(1)
def lifter() -> GraphLifter:
    """The shipped lifter."""
    return GraphLifter.from_pretrained()


@lru_cache(1)
def difficulty() -> Difficulty:
    """The shipped difficulty network."""
    return Difficulty.from_pretrained()


@lru_cache(1)
def denoiser() -> RotationDenoiser:
    """The shipped denoiser of body rotations."""
    return RotationDenoiser.from_pretrained()
