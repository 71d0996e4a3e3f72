"""Lifters turn 2D keypoints into one 3D pose; ours is a light modulated graph convolution network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dd3g.pose.body.geometry import unproject
from dd3g.pose.body.skeletons import H36M_17, flip
from dd3g.pose.networks.pretrained import PoseNetwork

JOINTS = len(H36M_17)
FOCAL = 2.29  # H36M's focal length in half picture widths: normalised keypoints are those of such a camera


class Lifter(Protocol):
    """One 3D pose for one set of 2D keypoints."""

    def __call__(self, keypoints: Tensor, confidence: Tensor) -> Tensor:
        """Normalised keypoints (B, 17, 2) and confidences (B, 17) -> poses (B, 17, 3) in metres."""


@dataclass(frozen=True)
class Plain:
    """Any function of keypoints alone as a `Lifter`; a missing joint is put amid its neighbours."""

    # Normalised keypoints (B, 17, 2), as H36M-trained lifters expect them, -> poses (B, 17, 3)
    function: Callable[[Tensor], Tensor]

    def __call__(self, keypoints: Tensor, confidence: Tensor) -> Tensor:
        """Arguments as for `Lifter`."""
        known = (confidence > 0)[..., None].to(keypoints)
        points = torch.where(known > 0, keypoints, 0.0)
        graph = (adjacency(False) > 0).to(keypoints)
        for _ in range(JOINTS):  # more than lie between any two
            total, count = graph @ (points * known), graph @ known
            points = torch.where(known == 0, total / count.clamp(min=1), points)
            known = (count > 0).to(known)
        return self.function(points)


def normalise(keypoints: Tensor, K: Tensor) -> Tensor:
    """Pixels (..., 17, 2) of a camera K (..., 3, 3) -> those of H36M's camera, in half picture widths."""
    return FOCAL * unproject(keypoints, K)


def lift(lifter: Lifter, keypoints: Tensor, confidence: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """The mean of a lifter's answers to keypoints and to their mirror image, or to another one in its place.

    Normalised keypoints (B, 17, 2) and confidence (B, 17) -> (B, 17, 3) metres, camera frame, root at zero.
    """
    both = torch.cat([keypoints, flip(keypoints) if mirrored is None else mirrored])
    first, second = lifter(both, torch.cat([confidence, confidence[:, H36M_17.mirrored]])).chunk(2)
    poses = (first + flip(second)) / 2
    return poses - poses[:, :1]


def adjacency(split: bool) -> Tensor:
    """(17, 17) skeleton with self loops, whose rows sum to 1.

    With `split`, as in PRPose and HTNet, neighbours alone do, and a joint itself counts 1.
    """
    A, loops = torch.zeros(JOINTS, JOINTS), torch.eye(JOINTS)
    for parent, child in H36M_17.bones:
        A[parent, child] = A[child, parent] = 1
    if split:
        return A / A.sum(1, keepdim=True) + loops
    return (A + loops) / (A.sum(1, keepdim=True) + 1)


class GraphConv(nn.Module):
    """Modulated graph convolution (Zou & Tang 2021), with joints as the first dimension: A (M * xW) + b.

    If `split`, it has own weights for a joint itself, (A . I)(M * xW0) + (A . (1 - I))(M * xW1) + b, and the
    published skeleton.
    """

    skeleton: Tensor  # (17, 17)

    def __init__(self, inputs: int, outputs: int, split: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 if split else 1, inputs, outputs))
        self.modulation = nn.Parameter(torch.empty(JOINTS, outputs))
        self.learned = nn.Parameter(torch.full((JOINTS, JOINTS), 1e-6))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("skeleton", adjacency(split), persistent=False)
        for weight in [*self.weight, self.modulation]:
            nn.init.xavier_uniform_(weight.data, gain=1.414)

    def forward(self, x: Tensor) -> Tensor:
        """(17, B, inputs) -> (17, B, outputs)."""
        A = self.skeleton + self.learned
        A = (A + A.T) / 2
        # The modulation scales outputs, so it goes into the weights: one product less over the whole batch.
        W = self.weight[:, None] * self.modulation[:, None]  # (1 or 2, 17, inputs, outputs)
        if len(W) == 1:
            return _mixed(A, torch.bmm(x, W[0])) + self.bias
        own = torch.bmm(x, W[0] * A.diagonal()[:, None, None])
        return own + _mixed(A - A.diagonal().diag(), torch.bmm(x, W[1])) + self.bias


def _mixed(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x.flatten(1)).view_as(x)


class GraphNetwork(nn.Module):
    """A graph convolution, residual blocks of two, and a graph convolution: (B, 17, C) -> (B, 17, D)."""

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int, split: bool) -> None:
        super().__init__()
        self.enter = _Layer(inputs, width, split)
        self.blocks = nn.ModuleList(
            nn.Sequential(_Layer(width, width, split), _Layer(width, width, split)) for _ in range(blocks)
        )
        self.leave = GraphConv(width, outputs, split)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 17, inputs) -> (B, 17, outputs)."""
        h = self.enter(x.transpose(0, 1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h).transpose(0, 1)


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, split: bool) -> None:
        super().__init__()
        self.convolution = GraphConv(inputs, outputs, split)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution(x)
        return self.norm(h.flatten(0, 1)).view_as(h).relu()


@dataclass
class LifterConfig:
    """Shape of a lifter."""

    width: int = 96
    blocks: int = 4
    split: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.blocks) < 1:
            raise ValueError(f"lifter: width {self.width} and blocks {self.blocks} must be positive")


class GraphLifter(PoseNetwork):
    """A `Lifter` that knows how far to trust each keypoint and where in the picture the person is."""

    kind = "pose-lifter"
    config_class = LifterConfig

    def __init__(self, config: LifterConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LifterConfig()
        self.network = GraphNetwork(6, c.width, c.blocks, 3, c.split)

    def forward(self, keypoints: Tensor, confidence: Tensor | None = None) -> Tensor:
        """Normalised keypoints (B, 17, 2), confidences (B, 17), all 1 by default -> poses (B, 17, 3) metres.

        A keypoint with confidence 0 is not looked at.
        """
        c = keypoints.new_ones(keypoints.shape[:2]) if confidence is None else confidence
        weight = (c / c.sum(1, keepdim=True).clamp(min=1e-6))[..., None]  # (B, 17, 1)
        points = torch.where(weight > 0, keypoints, 0.0)
        centre = (weight * points).sum(1, keepdim=True)  # (B, 1, 2)
        points = torch.where(weight > 0, points - centre, 0.0)
        scale = (weight * points.square()).sum((1, 2), keepdim=True).clamp(min=1e-8).sqrt()  # (B, 1, 1)
        whole = torch.cat([centre, scale.log()], -1).expand(-1, JOINTS, -1)
        poses = self.network(torch.cat([points / scale, c[..., None], whole], -1))
        return poses - poses[:, :1]
