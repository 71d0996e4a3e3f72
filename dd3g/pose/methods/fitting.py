"""Model fitting without a network, SMPLify-like: gradient descent on keypoints, with priors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dd3g.pose.body.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from dd3g.pose.data.motion import Motion
from dd3g.pose.methods.recovery_energies import BodyKeypoints, state
from dd3g.pose.methods.refinement import Recovery

FLOOR = 0.05  # radians added to each standard deviation of the prior


@dataclass(frozen=True)
class PosePrior:
    """A Gaussian over the axis-angle rotations of all joints but the root."""

    mean: Tensor  # (69,) radians
    precision: Tensor  # (69, 69) inverse covariance

    @staticmethod
    def from_motion(motion: Motion) -> PosePrior:
        """Mean and covariance of the valid frames of a motion with rotations."""
        assert motion.rotations is not None and motion.rotations_valid is not None
        poses = motion.rotations[motion.rotations_valid, 1:].flatten(1)
        # Some joints never move.
        covariance = torch.cov(poses.T) + FLOOR**2 * torch.eye(poses.shape[1])
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
    camera_steps: int = 50,
    steps: int = 250,
    learning_rate: float = 0.02,
) -> Recovery:
    """Fit rotations and translation by Adam: first the camera and the root, then everything.

    The start (B, 24, 3, 3) stays where the reprojection energy does not fall. The prior weighs in squared
    pixels of a 1000 pixel picture; without one, only the number of steps keeps poses near the start. In each
    stage the learning rate falls to a tenth.

    Returns:
        The bodies, as `dd3g.pose.methods.refinement.recover` gives them.
    """
    reprojection = replace(evidence, translation=None)
    with torch.no_grad():
        start_energy = reprojection(state(start))
        first = reprojection.solve(reprojection.points(state(start)))
    angles = matrix_to_axis_angle(start)
    root, pose, translation = (x.clone().requires_grad_() for x in (angles[:, :1], angles[:, 1:], first))

    def fitted() -> Tensor:
        return axis_angle_to_matrix(torch.cat([root, pose], 1))

    def energy() -> Tensor:
        return replace(evidence, translation=translation)(state(fitted()))

    for variables, count in (([root, translation], camera_steps), ([root, pose, translation], steps)):
        optimizer = torch.optim.Adam(variables, learning_rate)
        rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / max(count, 1)))
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            total = energy()
            if prior is not None:
                total = total + prior_weight * prior(pose)
            total.sum().backward()
            optimizer.step()
            rate.step()
    with torch.no_grad():
        final = energy()
        kept = final >= start_energy
        rotations = torch.where(kept[:, None, None, None], start, fitted())
        place = torch.where(kept[:, None], first, translation)
        poses = evidence.body.points(rotations, evidence.betas, "h36m-17")
        final = torch.where(kept, start_energy, final)
        return Recovery(rotations, evidence.betas, place, poses, final, start_energy, kept)
