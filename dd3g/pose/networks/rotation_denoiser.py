"""The conditional denoiser of body rotations, and what it is conditioned on (ScoreHMR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dd3g.diffusion import Prediction
from dd3g.pose.body.geometry import unproject
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.networks.pretrained import PoseNetwork
from dd3g.pose.networks.prior import sinusoid

STATE = 144  # 24 rotations by 6 numbers, the root's first
KEYPOINT_FEATURES = 3 * len(H36M_17) + 1


@dataclass(frozen=True)
class Condition:
    """What the denoiser knows of B people."""

    features: Tensor  # (B, F) for the network's encoder
    # (B, 3, 3) turns the camera so that it looks at the person; None where features are not of such a camera
    view: Tensor | None = None

    def to(self, device: str | torch.device) -> Condition:
        """The same on another device."""
        return Condition(self.features.to(device), None if self.view is None else self.view.to(device))

    def rows(self, rows: Tensor) -> Condition:
        """Of some of the people, by their numbers."""
        return Condition(self.features[rows], None if self.view is None else self.view[rows])


@dataclass
class RotationConfig:
    """Shape of a denoiser; the published one is RotationConfig("features", 3072, 1024)."""

    condition_kind: Literal["keypoints", "features"] = "keypoints"
    condition: int = 256  # width of what the blocks see of the condition
    hidden: int = 768
    blocks: int = 3

    def __post_init__(self) -> None:
        if self.condition_kind not in ("keypoints", "features"):
            raise ValueError(
                f"recovery: condition_kind must be 'keypoints' or 'features', got {self.condition_kind!r}"
            )
        if min(self.condition, self.hidden, self.blocks) < 1:
            raise ValueError("recovery: condition, hidden and blocks must be positive")


class RotationDenoiser(PoseNetwork):
    """Predicts the noise in 24 rotations of 6 numbers each, given features of the picture.

    Keypoint features are those of a camera turned towards the person. The root's rotation is turned with it
    on the way in and its noise back on the way out, so the answer is the same wherever the person stands in
    the picture.
    """

    kind = "pose-recovery"
    config_class = RotationConfig
    prediction: Prediction = "eps"

    def __init__(self, config: RotationConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or RotationConfig()
        self.encoder: nn.Module = Standardise(c.condition)
        if c.condition_kind == "keypoints":
            self.encoder = nn.Sequential(
                nn.Linear(KEYPOINT_FEATURES, c.hidden), nn.GELU(), nn.Linear(c.hidden, c.condition)
            )
        self.time = nn.Sequential(nn.Linear(STATE, 4 * STATE), nn.GELU(), nn.Linear(4 * STATE, 4 * STATE))
        self.enter = nn.Linear(STATE, STATE)
        self.blocks = nn.ModuleList(_Block(c.condition, c.hidden) for _ in range(c.blocks))
        self.leave = nn.Linear(STATE, STATE)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy rotations (B, 144) at levels t (B,) -> their noise (B, 144)."""
        c = self.encoder(condition.features)
        time = self.time(sinusoid(t, STATE).to(x_t))
        h = self.enter(_turned(x_t, condition.view))
        for block in self.blocks:
            h = block(h, time, c)
        back = None if condition.view is None else condition.view.transpose(1, 2)
        return _turned(self.leave(h), back)


class Standardise(nn.Module):
    """Features of another network by their mean and deviation over its training set."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, ...) -> (B, F)."""
        return (features.flatten(1) - self.mean) / self.deviation


class _Block(nn.Module):
    def __init__(self, condition: int, hidden: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(4 * STATE, 2 * STATE)
        self.mix = nn.Sequential(
            nn.LayerNorm(STATE + condition),
            nn.Linear(STATE + condition, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, STATE),
            nn.GELU(),
        )

    def forward(self, h: Tensor, time: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(nn.functional.silu(time)).chunk(2, -1)
        h = h * (scale + 1) + shift
        return h + self.mix(torch.cat([h, c], -1))


def _turned(x: Tensor, view: Tensor | None) -> Tensor:
    """Rotate the root's six numbers, two columns of its matrix, by `view` (B, 3, 3)."""
    if view is None:
        return x
    root = x[:, :6].unflatten(1, (2, 3)) @ view.transpose(1, 2).to(x)
    return torch.cat([root.flatten(1), x[:, 6:]], 1)


def keypoint_condition(keypoints: Tensor, confidence: Tensor, K: Tensor) -> Condition:
    """Features of keypoints that do not depend on the camera's focal length, size or aim.

    Args:
        keypoints: (B, 17, 2) pixels, H36M-17; anything where the confidence is 0.
        confidence: (B, 17) in 0..1.
        K: (B, 3, 3) pixels.

    Returns:
        Rays in a camera turned to their confidence-weighted middle, in units of their spread, the
        confidences, and the logarithm of the spread, which tells how strong the perspective is.
    """
    seen = confidence > 0
    weight = confidence / confidence.sum(1, keepdim=True).clamp(min=1e-6)  # (B, 17)
    rays = unproject(torch.where(seen[..., None], keypoints, K[:, None, :2, 2]), K)  # (B, 17, 2)
    rays = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)
    middle = (weight[..., None] * rays).sum(1) + (weight.sum(1) == 0)[:, None] * rays.new_tensor([0.0, 0, 1])
    view = look_at(middle)
    turned = rays @ view.transpose(1, 2)
    flat = turned[..., :2] / turned[..., 2:].clamp(min=0.1)
    flat = flat - (weight[..., None] * flat).sum(1, keepdim=True)
    spread = (weight * flat.square().sum(-1)).sum(1, keepdim=True).clamp(min=1e-8).sqrt()  # (B, 1)
    flat = torch.where(seen[..., None], flat / spread[..., None], 0.0)
    return Condition(torch.cat([flat.flatten(1), confidence, spread.log()], 1), view)


def look_at(direction: Tensor) -> Tensor:
    """(B, 3) in front of the camera -> (B, 3, 3), smallest rotations that put them on the optical axis."""
    x, y, z = nn.functional.normalize(direction, dim=-1).unbind(-1)
    k = 1 / (1 + z)
    rows = [1 - k * x * x, -k * x * y, -x, -k * x * y, 1 - k * y * y, -y, x, y, z]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
