"""How the networks of the pose methods learn: from motion capture seen by virtual cameras, without pictures.

The functions share their arguments: `motion` has the training frames; `output` is the folder for checkpoints
and the result; `config` is the shape of the network; a step is of `batch` samples; `run` are options of
`SmallNetworkConfig.of`, `RUNS` by default. Batches are drawn on the CPU, the network learns where `fit` puts
it. They return the network with averaged weights, on the CPU, which `output` holds too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, matrix_to_rotation_6d
from dd3g.pose.data.motion import Motion
from dd3g.pose.data.synthesis import Views, posed, synthesise
from dd3g.pose.methods.restoration import best_alpha
from dd3g.pose.networks.difficulty import Difficulty, DifficultyConfig, relative_errors, shown
from dd3g.pose.networks.lifter import GraphLifter, Lifter, LifterConfig, lift, normalise
from dd3g.pose.networks.prior import Prior, PriorConfig, deepened, denoising_loss, measure_spread, schedule
from dd3g.pose.networks.rotation_denoiser import (
    Condition,
    RotationConfig,
    RotationDenoiser,
    Standardise,
    keypoint_condition,
)
from dd3g.training import SmallNetworkConfig, fit, generator_for

RUNS: dict[str, dict[str, Any]] = {
    "prior": {"steps": 40_000, "learning_rate": 1e-3, "ema_decay": 0.9995},
    "lifter": {"steps": 20_000, "learning_rate": 2e-3},
    "difficulty": {"steps": 8_000, "learning_rate": 5e-4, "adam_amsgrad": True},
    "recovery": {"steps": 40_000, "learning_rate": 1e-3, "lr_warmup_steps": 500},
    "recovery on features": {"steps": 40_000, "learning_rate": 1e-4, "lr_warmup_steps": 500},
}


@dataclass
class _Training(SmallNetworkConfig):
    """How a network of poses is trained, and from what."""

    data: str = ""  # fingerprint; a run that learnt from others does not go on with these


def _training(
    network: str, output: str | Path, run: dict[str, Any], batch: int, *data: Tensor | None
) -> _Training:
    """The configuration of a run that learns from some tensors; a few thousand of their numbers tell."""
    parts = [x.flatten()[:: max(1, x.numel() // 4096)].numpy().tobytes() for x in data if x is not None]
    shapes = str([None if x is None else tuple(x.shape) for x in data])
    about = {"train_batch_size": batch, "data": fingerprint(shapes, *parts)}
    return _Training.of(output, **RUNS[network] | run | about)


def train_prior(
    motion: Motion,
    output: str | Path,
    *,
    config: PriorConfig | None = None,
    init_from: str | Path | None = None,
    batch: int = 512,
    **run: Any,
) -> Prior:
    """Train on poses seen from random cameras with random bone lengths.

    `init_from` is the folder of a prior of the same width to begin with, see `deepened`.

    Raises:
        UserError: when `init_from` is not a prior, or of another shape; and see `fit`.
    """
    training = _training("prior", output, run, batch, motion.joints)
    seed = training.seed

    def poses(count: int, generator: torch.Generator) -> Tensor:
        return _views(motion, count, seed, generator).pose

    def loss(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        assert isinstance(model, Prior)
        return denoising_loss(model, poses(batch, generator).to(_device(model)), generator)

    torch.manual_seed(seed)
    if init_from is not None:
        prior = deepened(Prior.from_pretrained(init_from), config)
    else:
        prior = Prior(config)
        known = poses(16_384, generator_for(seed, -1))[:, 1:]
        prior.mean.copy_(known.mean(0))
        prior.scale.copy_(1 / (known - prior.mean).square().mean().sqrt())
    prior = fit(prior, loss, None, training).cpu()
    generator = generator_for(seed, -2)
    prior.spread.copy_(measure_spread(prior, poses(4096, generator), generator))
    prior.save_pretrained(output)
    return prior


def train_lifter(
    motion: Motion, output: str | Path, *, config: LifterConfig | None = None, batch: int = 256, **run: Any
) -> GraphLifter:
    """Train on people seen by random cameras through a detector's eyes: mean distance of joints."""
    training = _training("lifter", output, run, batch, motion.joints)

    def loss(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        views = _views(motion, batch, training.seed, generator).to(_device(model))
        poses = model(normalise(views.keypoints, views.K), views.confidence)
        return (poses - views.pose)[:, 1:].norm(dim=-1).mean()

    torch.manual_seed(training.seed)
    lifter = fit(GraphLifter(config), loss, None, training).cpu()
    lifter.save_pretrained(output)
    return lifter


def train_difficulty(
    motion: Motion,
    output: str | Path,
    *,
    lifter: Lifter,
    config: DifficultyConfig | None = None,
    batch: int = 512,
    tuning: int = 256,
    **run: Any,
) -> Difficulty:
    """Learn the error of a frozen lifter from views as it was trained on, by least squares.

    At the end the strength of the noise, alpha, is chosen on `tuning` such views.
    """
    weights = [p.detach().cpu() for p in lifter.parameters()] if isinstance(lifter, nn.Module) else []
    training = _training("difficulty", output, run, batch, motion.joints, *weights)
    seed = training.seed

    @torch.no_grad()
    def labelled(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        views = _views(motion, count, seed, generator)
        keypoints = normalise(views.keypoints, views.K)
        return shown(keypoints, views.confidence), lift(lifter, keypoints, views.confidence), views.pose

    _, lifted, poses = labelled(4096, generator_for(seed, -1))
    mean = (lifted - poses).norm(dim=-1).mean()

    def loss(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        keypoints, lifted, poses = labelled(batch, generator)
        targets = relative_errors(lifted, poses, mean)
        return nn.functional.mse_loss(model(keypoints.to(_device(model))), targets.to(_device(model)))

    torch.manual_seed(seed)
    difficulty = fit(Difficulty(config), loss, None, training).cpu()
    views = _views(motion, tuning, seed, generator_for(seed, -2))
    difficulty.config.alpha = best_alpha(lifter, difficulty, views)
    difficulty.config.fixed_alpha = best_alpha(lifter, difficulty, views, fixed=True)
    difficulty.save_pretrained(output)
    return difficulty


def train_recovery(
    motion: Motion, output: str | Path, *, config: RotationConfig | None = None, batch: int = 512, **run: Any
) -> RotationDenoiser:
    """Train on rotations of the motion, worn by random bodies, seen by random cameras and a noisy detector.

    Frames whose rotations are not valid are left out.

    Raises:
        UserError: motion without rotations, or a network that is conditioned on features.
    """
    config = config or RotationConfig()
    if motion.rotations is None or motion.rotations_valid is None or not motion.rotations_valid.any():
        raise UserError("recovery learns joint rotations, and this motion has none: train on the CMU archive")
    if config.condition_kind != "keypoints":
        raise UserError(
            "features of another network cannot be made from motion: see train_recovery_on_features"
        )
    frames = motion.rotations_valid.nonzero()[:, 0]
    body = default_body()

    @torch.no_grad()
    def seen(generator: torch.Generator) -> tuple[Tensor, Condition]:
        chosen = frames[torch.randint(len(frames), (batch,), generator=generator)]
        betas = torch.randn(batch, 10, generator=generator)
        sigma, occluded = (torch.rand(2, generator=generator) * torch.tensor([8.0, 0.2])).tolist()
        seed = int(torch.randint(2**40, (), generator=generator))
        views = synthesise(
            posed(motion, chosen, body, betas), torch.arange(batch), seed, bones=0.08, sigma=sigma,
            occluded=occluded,
        )  # fmt: skip
        assert views.rotations is not None
        x0 = matrix_to_rotation_6d(axis_angle_to_matrix(views.rotations)).flatten(1)
        return x0, keypoint_condition(views.keypoints, views.confidence, views.K)

    training = _training("recovery", output, run, batch, motion.rotations)
    torch.manual_seed(training.seed)
    return _fit_denoiser(RotationDenoiser(config), seen, training)


def train_recovery_on_features(
    rotations: Tensor,
    features: Tensor,
    output: str | Path,
    *,
    config: RotationConfig | None = None,
    batch: int = 128,
    **run: Any,
) -> RotationDenoiser:
    """Train on what another network saw of people in pictures, with rate and batch of ScoreHMR.

    `rotations` (N, 24, 3, 3) have the root's in the camera frame, `features` (N, F) are of the same people.
    These are standardised by their mean and deviation, which the network keeps.

    Raises:
        UserError: different numbers of people, nobody, or features that are not finite.
    """
    if len(rotations) != len(features) or not len(features):
        raise UserError(
            f"rotations are of {len(rotations)} people, features of {len(features)}: give both of all"
        )
    if not features.isfinite().all():
        raise UserError("features must be finite: some are NaN or infinite")
    states = matrix_to_rotation_6d(rotations).flatten(1)

    def seen(generator: torch.Generator) -> tuple[Tensor, Condition]:
        rows = torch.randint(len(states), (batch,), generator=generator)
        return states[rows], Condition(features[rows])

    training = _training("recovery on features", output, run, batch, rotations, features)
    torch.manual_seed(training.seed)
    model = RotationDenoiser(config or RotationConfig("features", features.shape[1], 1024))
    assert isinstance(model.encoder, Standardise)
    model.encoder.mean.copy_(features.mean(0))
    # A feature that never changes tells nothing, and must not be divided by 0.
    model.encoder.deviation.copy_(features.std(0, correction=0).clamp(min=1e-6))
    return _fit_denoiser(model, seen, training)


def _fit_denoiser(
    model: RotationDenoiser,
    seen: Callable[[torch.Generator], tuple[Tensor, Condition]],
    training: SmallNetworkConfig,
) -> RotationDenoiser:
    """Learn the noise in batches of clean states (B, 144), the root's rotation in the camera frame."""

    def loss(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        x0, condition = seen(generator)
        t = torch.randint(schedule().steps, (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        device = _device(model)
        x0, t, eps, condition = x0.to(device), t.to(device), eps.to(device), condition.to(device)
        return (model(schedule().add_noise(x0, eps, t), t, condition) - eps).square().mean()

    model = fit(model, loss, None, training).cpu()
    model.save_pretrained(training.output_dir)
    return model


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _views(motion: Motion, count: int, seed: int, generator: torch.Generator) -> Views:
    """Views of random frames; without rotations, as turning them with the camera would cost time."""
    indices = torch.randint(2**40, (count,), generator=generator)
    return synthesise(replace(motion, rotations=None), indices, seed)
