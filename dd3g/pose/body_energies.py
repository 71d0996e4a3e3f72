"""What is known about bodies, as energies of their joint rotations: keypoints, other views, other frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dd3g.diffusion import Energy
from dd3g.pose.body import PosedBody
from dd3g.pose.geometry import matrix_to_rotation_6d, project, rotation_6d_to_matrix, solve_translation


@dataclass(frozen=True, eq=False)
class BodyKeypoints(Energy):
    """Robust distance in the picture, sum (1000 / size)^2 c^2 r^2 s^2 / (r^2 + s^2) over joints and axes.

    Args:
        body: turns rotations into points.
        betas: (B, 10) shape.
        keypoints: (B, J, 2) pixels; anything finite where the confidence is 0.
        confidence: (B, J).
        K: (B, 3, 3) pixels.
        size: longer side of the picture in pixels.
        layout: of the keypoints.
        translation: (B, 3) metres of the pelvis; None solves for it at each call.
        scale: s in pixels, beyond which a residual pulls less and less (Geman & McClure).
    """

    body: PosedBody
    betas: Tensor  # (B, 10)
    keypoints: Tensor  # (B, J, 2) pixels
    confidence: Tensor  # (B, J)
    K: Tensor  # (B, 3, 3) pixels
    size: float
    layout: str = "h36m-17"
    translation: Tensor | None = None  # (B, 3) metres
    scale: float = 100.0

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (B, 144) -> (B,)."""
        points = self.points(x0)
        # Where the root is solved for, the energy is least there or nearly so: its own slope does not matter.
        T = self.solve(points.detach()) if self.translation is None else self.translation
        square = (project(points + T[:, None], self.K) - self.keypoints).square()  # (B, J, 2)
        robust = self.scale**2 * square / (self.scale**2 + square)
        return (1000 / self.size) ** 2 * (self.confidence.square()[..., None] * robust).sum((1, 2))

    def points(self, x0: Tensor) -> Tensor:
        """Rotations (B, 144) -> points (B, J, 3), pelvis at zero."""
        return self.body.points(matrices(x0), self.betas, self.layout)

    def solve(self, points: Tensor) -> Tensor:
        """Translation (B, 3) that brings points (B, J, 3) closest to the keypoints."""
        return solve_translation(points, self.keypoints, self.confidence, self.K)


@dataclass(frozen=True)
class MultiView(Energy):
    """Views of one person agree on the body's pose: w sum |x_v - mean|^2 over joints but the root.

    Args:
        views: that follow each other in the batch, for each person.
        weight: w; the published .005 * 300^2.
    """

    views: int
    weight: float = 450.0

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (B * views, 144) -> each view's share (B * views,)."""
        body = x0[:, 6:].unflatten(0, (-1, self.views))  # (B, V, 138)
        return self.weight * (body - body.mean(1, keepdim=True)).square().sum(-1).flatten()


@dataclass(frozen=True)
class SmoothRotations(Energy):
    """Consecutive frames differ little: w sum |x_n - x_{n-1}|^2 over all 144 numbers.

    Args:
        frames: length of each clip; clips follow each other in the batch.
        weight: w; the published 30.
    """

    frames: int
    weight: float = 30.0

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (clips * frames, 144) -> (clips * frames,); a step counts for its later frame."""
        step = x0.unflatten(0, (-1, self.frames)).diff(dim=1).square().sum(-1)
        return self.weight * torch.nn.functional.pad(step, (1, 0)).flatten()


def matrices(x: Tensor) -> Tensor:
    """States (B, 144) -> rotations (B, 24, 3, 3)."""
    return rotation_6d_to_matrix(x.unflatten(-1, (24, 6)))


def state(rotations: Tensor) -> Tensor:
    """Rotations (B, 24, 3, 3) -> states (B, 144)."""
    return matrix_to_rotation_6d(rotations).flatten(-2)
