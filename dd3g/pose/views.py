"""Several pictures of one person at one instant, by several cameras: the one pose that all of them show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix, nearest_rotation, project, solve_translation
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.data.arrays import need, read_cameras, tensor
from dd3g.pose.detection.people import stacked
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods.advice import sized
from dd3g.pose.methods.guided_energies import keypoint_noise

OUTLIER = 20.0  # standard deviations from which on a keypoint counts as wrong and pulls ever less
ANSWER_ERROR = 0.1  # metres by which a view's own answer may be wrong in each coordinate
STEPS = 100  # of the optimiser


@dataclass(frozen=True)
class Station:
    """Where a camera stands: points of the world go to R X + t in its frame."""

    rotation: Tensor  # (3, 3)
    translation: Tensor  # (3,) metres
    K: Tensor | None = None  # (3, 3) px; None takes that of the detection


def read_stations(path: Path, names: Sequence[str]) -> list[Station]:
    """Calibrated cameras from JSON: {"NAME": {"R": 3x3, "t": [x, y, z], "K": 3x3}}, metres and pixels.

    Names are those of the pictures without suffix, whose cameras are wanted in this order.

    Raises:
        UserError: unreadable, a camera missing, or an R that is not a rotation.
    """
    found = []
    for name, camera in zip(names, need(read_cameras(path), names, str(path)), strict=True):
        R, t = need(camera, ["R", "t"], f"{path}, {name}")
        rotation = tensor(R, (3, 3), f"{path}, {name}, R")
        if (rotation @ rotation.T - torch.eye(3)).abs().max() > 1e-3 or torch.linalg.det(rotation) < 0:
            raise UserError(f"{path}, {name}: R is not a rotation, its rows must be orthonormal: {R}")
        K = None if camera.get("K") is None else tensor(camera["K"], (3, 3), f"{path}, {name}, K")
        found.append(Station(rotation, tensor(t, (3,), f"{path}, {name}, t"), K))
    return found


def combine(
    people: Sequence[PersonHypotheses], stations: Sequence[Station] | None = None
) -> list[PersonHypotheses]:
    """One person in several views: their advised poses become one, which fits the keypoints of all views.

    Without stations the views' turns towards each other are unknown too: they start where the views' own
    answers agree best, and joints and turns are then fitted to all keypoints together (bundle adjustment,
    Triggs et al. 2000), held by those answers. The size stays that of the answers. With stations it follows.

    The people of V views, one station each, come back with the common pose, each in its own camera frame.

    Raises:
        UserError: fewer than two views, or as many stations as there are not views.
    """
    if len(people) < 2:
        raise UserError(f"{len(people)} view is too few to combine: give two or more pictures")
    if stations is not None and len(stations) != len(people):
        raise UserError(f"{len(stations)} cameras for {len(people)} views: give one each")
    seen = [person.detection for person in people]
    keypoints, confidence, K = (stacked(seen, name) for name in ("keypoints", "confidence", "K"))
    poses = torch.stack([person.pose for person in people])  # (V, 17, 3)
    size = bone_lengths(poses).sum(-1).mean()
    sigma = keypoint_noise(keypoints, confidence)[:, None]  # (V, 1)
    keypoints = torch.where(confidence[..., None] > 0, keypoints, 0.0)
    if stations is None:
        turns, common = _agreed(poses)
        offset, answers = torch.zeros(len(people), 3), poses
    else:
        K = torch.stack([k if s.K is None else s.K for s, k in zip(stations, K, strict=True)])
        turns = torch.stack([s.rotation for s in stations])
        offset = torch.stack([s.translation for s in stations])
        roots = solve_translation(poses, keypoints, confidence, K)
        world = (poses + roots[:, None] - offset[:, None]) @ turns  # back by R^T
        common, answers = world.mean(0), poses - poses[:, :1]
    joints = common.clone().requires_grad_()
    away = torch.zeros(len(people), 3, requires_grad=stations is None)
    variables = [joints, away] if stations is None else [joints]

    def placed() -> tuple[Tensor, Tensor]:
        """Joints (V, 17, 3) in the frame of each camera, and their root (V, 3)."""
        points = joints @ (turns @ axis_angle_to_matrix(away)).transpose(1, 2) + offset[:, None]
        if stations is not None:
            return points, points[:, 0]
        relative = points - points[:, :1]
        root = solve_translation(relative, keypoints, confidence, K)
        return relative + root[:, None], root

    def closure() -> float:
        optimizer.zero_grad()
        points, root = placed()
        square = (project(points, K) - keypoints).square().sum(-1) / sigma.square()
        fit = confidence.square() * square / (2 + 2 * square / OUTLIER**2)
        prior = (points - root[:, None] - answers).square().sum(-1) / (2 * ANSWER_ERROR**2)
        total = fit.sum() + prior.sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    optimizer = torch.optim.LBFGS(variables, max_iter=STEPS, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        points, root = placed()
        found = points - root[:, None]
        if stations is None:
            found = sized(found, float(size))
            root = solve_translation(found, keypoints, confidence, K)
        apart = (answers - found).norm(dim=-1).mean()
        # Errors of views are nearly independent: their mean is wrong by so much less.
        expected = (apart / len(people) ** 0.5).expand(1)
    return [
        replace(
            person,
            hypotheses=replace(person.hypotheses, advised=pose[None], expected=expected),
            root=place,
            detection=replace(person.detection, K=k),
        )
        for person, pose, place, k in zip(people, found, root, K, strict=True)
    ]


def _agreed(poses: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (V, 3, 3) and a mean pose (17, 3) with R_v X nearest to poses (V, 17, 3) (Gower 1975)."""
    common = poses[0]
    for _ in range(10):
        turns = nearest_rotation(poses.transpose(1, 2) @ common)
        common = (poses @ turns).mean(0)  # back by R^T
    return turns, common
