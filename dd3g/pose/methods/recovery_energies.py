"""What is known about bodies, as energies of their joint rotations: keypoints, other views, other frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dd3g.diffusion import Energy
from dd3g.pose.body.bodies import PosedBody
from dd3g.pose.body.geometry import matrix_to_rotation_6d, project, rotation_6d_to_matrix, solve_translation

SCALE = 100.0  # s, px beyond which a residual pulls less and less (Geman & McClure)
MULTI_VIEW = 450.0  # weights as published, .005 * 300^2 and 30
SMOOTH = 30.0


@dataclass(frozen=True, eq=False)
class BodyKeypoints(Energy):
    """Robust distance in the picture, sum (1000 / size)^2 c^2 r^2 s^2 / (r^2 + s^2) over joints and axes."""

    body: PosedBody  # turns rotations into points
    betas: Tensor  # (B, 10) shape
    keypoints: Tensor  # (B, J, 2) pixels; anything finite where the confidence is 0
    confidence: Tensor  # (B, J)
    K: Tensor  # (B, 3, 3) pixels
    size: float  # longer side of the picture in pixels
    layout: str = "h36m-17"  # of the keypoints
    translation: Tensor | None = None  # (B, 3) metres of the pelvis; None solves for it at each call

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (B, 144) -> (B,)."""
        points = self.points(x0)
        # Where the root is solved for, the energy is least there or nearly so: its own slope does not matter.
        T = self.solve(points.detach()) if self.translation is None else self.translation
        square = (project(points + T[:, None], self.K) - self.keypoints).square()  # (B, J, 2)
        robust = SCALE**2 * square / (SCALE**2 + square)
        return (1000 / self.size) ** 2 * (self.confidence.square()[..., None] * robust).sum((1, 2))

    def points(self, x0: Tensor) -> Tensor:
        """Rotations (B, 144) -> points (B, J, 3), pelvis at zero."""
        return self.body.points(matrices(x0), self.betas, self.layout)

    def solve(self, points: Tensor) -> Tensor:
        """Translation (B, 3) that brings points (B, J, 3) closest to the keypoints."""
        return solve_translation(points, self.keypoints, self.confidence, self.K)


@dataclass(frozen=True, eq=False)
class Balanced(Energy):
    """The same energy with a gradient that moves every joint at the same rate.

    A turn of the hips moves all keypoints and a turn of an elbow only one, so a plain gradient that is small
    enough for the one hardly moves the other. Here each joint's gradient is divided by its own curvature (the
    diagonal of Gauss-Newton) at an upright pose, which also makes the size of the picture irrelevant.
    """

    evidence: BodyKeypoints  # the energy; its value does not change
    curvature: Tensor  # (B, 24) from `curvatures`
    scale: float  # of the gradient after that

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (B, 144) -> (B,)."""
        factor = (self.scale / self.curvature).repeat_interleave(6, 1)  # (B, 144)
        held = x0.detach()
        return self.evidence(held + factor * (x0 - held))


def curvatures(evidence: BodyKeypoints, depth: Tensor) -> Tensor:
    """About the second derivative (B, 24) of an energy along rotations of joints at depths (B,), metres."""
    levers = _levers(evidence.body, evidence.layout).to(depth)  # (J, 24)
    pixels = (1000 / evidence.size) * evidence.K[:, 0, 0] / depth.clamp(min=0.5)  # (B,) a metre
    found = 2 * pixels[:, None].square() * (evidence.confidence.square() @ levers)
    # Rotations vary by about 0.3 and keypoints by 5 pixels: what is known of a joint beforehand.
    return found + 2 * (5 / 0.3) ** 2


@lru_cache(8)
def _levers(body: PosedBody, layout: str) -> Tensor:
    """(J, 24) squared metres by which each point moves with each rotation, at rest."""
    rest = state(torch.eye(3).expand(1, 24, 3, 3))
    betas = torch.zeros(1, 10)
    slopes = torch.autograd.functional.jacobian(lambda x: body.points(matrices(x), betas, layout), rest)
    # Half of it: of the two turns that move a point, the camera sees about one.
    return slopes[0, :, :, 0].square().sum(1).unflatten(1, (24, 6)).sum(2) / 2


@dataclass(frozen=True)
class MultiView(Energy):
    """Views of one person agree on the body's pose: w sum |x_v - mean|^2 over joints but the root."""

    views: int  # that follow each other in the batch, for each person

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (B * views, 144) -> each view's share (B * views,)."""
        body = x0[:, 6:].unflatten(0, (-1, self.views))  # (B, V, 138)
        return MULTI_VIEW * (body - body.mean(1, keepdim=True)).square().sum(-1).flatten()


@dataclass(frozen=True)
class SmoothRotations(Energy):
    """Consecutive frames differ little: w sum |x_n - x_{n-1}|^2 over all 144 numbers."""

    frames: int  # length of each clip; clips follow each other in the batch
    weight: Tensor | float = 1.0  # of each step next to the published one, one or (frames - 1,)

    @staticmethod
    def over(times: Tensor, fps: float = 30.0) -> SmoothRotations:
        """For one clip at times (frames,) seconds; at `fps` frames a second it is the published energy."""
        weight = (1 / (fps * times.diff().clamp(min=1e-3)).square()).float()
        return SmoothRotations(len(times), weight)

    def __call__(self, x0: Tensor) -> Tensor:
        """Rotations (clips * frames, 144) -> (clips * frames,); a step counts for its later frame."""
        step = x0.unflatten(0, (-1, self.frames)).diff(dim=1).square().sum(-1)
        step = torch.as_tensor(self.weight).to(x0) * step
        return SMOOTH * torch.nn.functional.pad(step, (1, 0)).flatten()


def matrices(x: Tensor) -> Tensor:
    """States (B, 144) -> rotations (B, 24, 3, 3)."""
    return rotation_6d_to_matrix(x.unflatten(-1, (24, 6)))


def state(rotations: Tensor) -> Tensor:
    """Rotations (B, 24, 3, 3) -> states (B, 144)."""
    return matrix_to_rotation_6d(rotations).flatten(-2)
