"""Model fitting without a network, SMPLify-like: gradient descent on keypoints, with priors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dd3g.pose.body.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from dd3g.pose.methods.recovery import Recovery
from dd3g.pose.methods.recovery_energies import BodyKeypoints, state

if TYPE_CHECKING:
    from dd3g.pose.data.motion import Motion


@dataclass(frozen=True)
class PosePrior:
    """A Gaussian over the axis-angle rotations of all joints but the root.

    Args:
        mean: (69,) radians.
        precision: (69, 69) inverse covariance.
    """

    mean: Tensor  # (69,)
    precision: Tensor  # (69, 69)

    @staticmethod
    def from_motion(motion: Motion, floor: float = 0.05) -> PosePrior:
        """Mean and covariance of the valid frames.

        Args:
            motion: with rotations.
            floor: radians added to each standard deviation, for joints that never move.
        """
        assert motion.rotations is not None and motion.rotations_valid is not None
        poses = motion.rotations[motion.rotations_valid, 1:].flatten(1)
        covariance = torch.cov(poses.T) + floor**2 * torch.eye(poses.shape[1])
        return PosePrior(poses.mean(0), torch.linalg.inv(covariance))

    def __call__(self, pose: Tensor) -> Tensor:
        """Poses (B, 23, 3) -> squared Mahalanobis distances (B,)."""
        away = pose.flatten(1) - self.mean
        return (away @ self.precision * away).sum(1)


def fit_body(
    start: Tensor,
    evidence: BodyKeypoints,
    prior: PosePrior | None = None,
    *,
    prior_weight: float = 20.0,
    shape_weight: float = 25.0,
    fit_shape: bool = False,
    camera_steps: int = 50,
    steps: int = 250,
    learning_rate: float = 0.02,
    gate: bool = True,
) -> Recovery:
    """Fit rotations, translation and, if told, shape by Adam: first the camera and the root, then everything.

    Args:
        start: (B, 24, 3, 3) first estimate.
        evidence: keypoints, cameras and the shape to begin with.
        prior: of poses; None leaves only the start's nearness in the number of steps.
        prior_weight: of the prior, in squared pixels of a 1000 pixel picture.
        shape_weight: of |betas|^2, in the same.
        fit_shape: whether betas move.
        camera_steps: of the first stage.
        steps: of the second.
        learning_rate: of Adam; falls to a tenth.
        gate: keep the start where the reprojection energy did not fall.

    Returns:
        The bodies, as `dd3g.pose.methods.recovery.recover` gives them.
    """
    judge = replace(evidence, translation=None)
    with torch.no_grad():
        start_energy = judge(state(start))
        first = judge.solve(judge.points(state(start)))
    angles = matrix_to_axis_angle(start)
    root = angles[:, :1].clone().requires_grad_()
    pose = angles[:, 1:].clone().requires_grad_()
    translation = first.clone().requires_grad_()
    betas = evidence.betas.clone().requires_grad_(fit_shape)

    def energy() -> Tensor:
        rotations = axis_angle_to_matrix(torch.cat([root, pose], 1))
        return replace(evidence, betas=betas, translation=translation)(state(rotations))

    for variables, count in (
        ([root, translation], camera_steps),
        ([root, pose, translation, *([betas] if fit_shape else [])], steps),
    ):
        optimizer = torch.optim.Adam(variables, learning_rate)
        rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / max(count, 1)))
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            total = energy() + shape_weight * betas.square().sum(1)
            if prior is not None:
                total = total + prior_weight * prior(pose)
            total.sum().backward()
            optimizer.step()
            rate.step()
    with torch.no_grad():
        rotations = axis_angle_to_matrix(torch.cat([root, pose], 1))
        final = energy()
        kept = (final >= start_energy) & gate
        rotations = torch.where(kept[:, None, None, None], start, rotations)
        shape = torch.where(kept[:, None], evidence.betas, betas)
        return Recovery(
            rotations,
            shape.detach(),
            torch.where(kept[:, None], first, translation).detach(),
            evidence.body.points(rotations, shape, "h36m-17"),
            torch.where(kept, start_energy, final),
            start_energy,
            kept,
        )
