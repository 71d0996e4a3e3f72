"""How hard each joint is to lift: networks that predict a lifter's relative error (PRPose)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dd3g.nn.checkpoint import build, load_weights, read_config, save_folder
from dd3g.pose.networks.lifter import JOINTS, WEIGHTS, GraphNetwork, Lifter, lift, normalise

if TYPE_CHECKING:
    from dd3g.pose.data.motion import Motion

TRUSTED = 0.5  # confidence from which on a keypoint is where it is said to be
AWAY = -2.0  # where the network finds all other keypoints: outside of any picture


@dataclass
class DifficultyConfig:
    """Which of the two published networks: "graph" beside HTNet, "mlp" beside a light lifter.

    Args:
        network: "graph" or "mlp".
        alpha: strength of the noise that suits the trained network, see `restoration.restore`.
        fixed_alpha: strength that suits fixed noise with the same lifter, for comparison.
    """

    network: Literal["graph", "mlp"] = "mlp"
    alpha: float = 0.005
    fixed_alpha: float = 0.005

    def __post_init__(self) -> None:
        if self.network not in ("graph", "mlp"):
            raise ValueError(f"difficulty: network must be 'graph' or 'mlp', got {self.network!r}")


class Difficulty(nn.Module):
    """Predicts each joint's error relative to the mean over all joints and poses.

    Args:
        config: "graph" has 1,099,100 parameters, "mlp" 12,049.
    """

    def __init__(self, config: DifficultyConfig | None = None) -> None:
        super().__init__()
        self.config = config or DifficultyConfig()
        graph = self.config.network == "graph"
        self.network: nn.Module = GraphNetwork(2, 256, 4, 1, split=True) if graph else _Perceptron(64)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Normalised keypoints (B, 17, 2) -> relative difficulty (B, 17), mean 1 over the training data."""
        return self.network(keypoints).view(-1, JOINTS)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> Path:
        """Write config.json and model.safetensors; half precision unless told."""
        return save_folder(folder, self, {"kind": "pose-difficulty", **asdict(self.config)}, dtype)

    @staticmethod
    def from_pretrained(folder: str | Path = WEIGHTS / "pose-difficulty") -> Difficulty:
        """Read a folder that `save_pretrained` wrote; the shipped one by default.

        Raises:
            UserError: when it is missing, broken or of another kind.
        """
        network = build(folder, read_config(folder, "pose-difficulty"), DifficultyConfig, Difficulty)
        load_weights(folder, network)
        return network.eval()


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
    """Pseudo-labels: errors of a lifter over their mean.

    Args:
        lifted: (B, 17, 3) metres.
        poses: (B, 17, 3) metres, the truth; its root counts as zero.
        mean: error of the training set over all joints and poses, metres; None takes that of these poses.

    Returns:
        (B, 17), mean 1 over the set that `mean` belongs to.
    """
    errors = (lifted - (poses - poses[:, :1])).norm(dim=-1)
    return errors / (errors.mean() if mean is None else mean)


def train_difficulty(
    motion: Motion,
    output: str | Path,
    *,
    lifter: Lifter,
    steps: int = 8_000,
    batch: int = 512,
    minutes: float | None = None,
    learning_rate: float = 5e-4,
    tuning: int = 256,
    config: DifficultyConfig | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Difficulty:
    """Learn the error of a frozen lifter from views as it was trained on, by least squares.

    At the end the strength of the noise is chosen on such views, too.

    Args:
        motion: training frames.
        output: folder for checkpoints and the result.
        lifter: the frozen lifter.
        steps: length of the run.
        batch: views a step.
        minutes: ends it earlier, see `fit`.
        learning_rate: the highest.
        tuning: views on which alpha is chosen.
        config: which network.
        seed: of all draws.
        resume: go on from the checkpoint in `output`.

    Returns:
        The network with averaged weights.
    """
    from dd3g.pose.data.synthesis import synthesise
    from dd3g.pose.methods.restoration import best_alpha
    from dd3g.training import fit, generator_for

    motion = replace(motion, rotations=None)

    @torch.no_grad()
    def labelled(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        views = synthesise(motion, torch.randint(2**40, (count,), generator=generator), seed)
        keypoints = normalise(views.keypoints, views.K)
        return shown(keypoints, views.confidence), lift(lifter, keypoints, views.confidence), views.pose

    _, lifted, poses = labelled(4096, generator_for(seed, -1))
    mean = (lifted - poses).norm(dim=-1).mean()

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        keypoints, lifted, poses = labelled(batch, generator)
        return nn.functional.mse_loss(model(keypoints), relative_errors(lifted, poses, mean))

    torch.manual_seed(seed)
    difficulty = fit(
        Difficulty(config),
        loss,
        output,
        steps,
        learning_rate=learning_rate,
        amsgrad=True,
        minutes=minutes,
        seed=seed,
        resume=resume,
    )
    generator = generator_for(seed, -2)
    views = synthesise(motion, torch.randint(2**40, (tuning,), generator=generator), seed)
    for name, fixed in (("alpha", False), ("fixed_alpha", True)):
        setattr(difficulty.config, name, best_alpha(lifter, difficulty, views, fixed=fixed))
    difficulty.save_pretrained(output)
    return difficulty
