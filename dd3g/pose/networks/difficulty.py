"""How hard each joint is to lift: networks that predict a lifter's relative error (PRPose)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dd3g.pose.networks.lifter import JOINTS, GraphNetwork
from dd3g.pose.networks.pretrained import PoseNetwork

TRUSTED = 0.5  # confidence from which on the place of a keypoint counts
AWAY = -2.0  # where the network finds all other keypoints: outside of any picture


@dataclass
class DifficultyConfig:
    """Which of the two published networks: "graph" beside HTNet, "mlp" beside a light lifter."""

    network: Literal["graph", "mlp"] = "mlp"  # of 1,099,100 and 12,049 parameters
    alpha: float = 0.005  # strength of the noise that suits the trained network, see `restoration.restore`
    fixed_alpha: float = 0.005  # strength that suits fixed noise with the same lifter, for comparison

    def __post_init__(self) -> None:
        if self.network not in ("graph", "mlp"):
            raise ValueError(f"difficulty: network must be 'graph' or 'mlp', got {self.network!r}")


class Difficulty(PoseNetwork):
    """Predicts each joint's error relative to the mean over all joints and poses."""

    kind = "pose-difficulty"
    config_class = DifficultyConfig

    def __init__(self, config: DifficultyConfig | None = None) -> None:
        super().__init__()
        self.config = config or DifficultyConfig()
        graph = self.config.network == "graph"
        self.network: nn.Module = GraphNetwork(2, 256, 4, 1, split=True) if graph else _Perceptron(64)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Normalised keypoints (B, 17, 2) -> relative difficulty (B, 17), mean 1 over the training data."""
        return self.network(keypoints).view(-1, JOINTS)


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(*_layer(2 * JOINTS, width))
        self.stage = nn.Sequential(*_layer(width, width), *_layer(width, width))
        self.leave = nn.Linear(width, JOINTS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.flatten(1))
        return self.leave(h + self.stage(h))


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.5)]


def shown(keypoints: Tensor, confidence: Tensor) -> Tensor:
    """Keypoints (B, 17, 2) as `Difficulty` wants them: those that are not to be trusted lie far away.

    The published networks have no input for confidences; so they still learn that such joints are hard.
    """
    return torch.where((confidence >= TRUSTED)[..., None], keypoints, AWAY)


def relative_errors(lifted: Tensor, poses: Tensor, mean: Tensor | float | None = None) -> Tensor:
    """Pseudo-labels (B, 17): errors of a lifter's poses (B, 17, 3) against true ones, over their mean.

    The root of the true ones counts as zero. `mean` is the error of the training set over all joints and
    poses, metres; None takes that of these poses.
    """
    errors = (lifted - (poses - poses[:, :1])).norm(dim=-1)
    return errors / (errors.mean() if mean is None else mean)
