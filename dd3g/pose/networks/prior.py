"""The pose prior: an unconditional denoiser of 3D poses, trained without pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from dd3g.diffusion import Prediction, Schedule, convert
from dd3g.errors import UserError
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.networks.pretrained import PoseNetwork

JOINTS = len(H36M_17)


@lru_cache(1)
def schedule() -> Schedule:
    """The cosine schedule of 1000 levels."""
    return Schedule.from_config({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"})


@dataclass
class PriorConfig:
    """Shape of a prior."""

    width: int = 512
    blocks: int = 2
    time_width: int = 256
    groups: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        # A group of one channel would be normalised to zero.
        if min(self.blocks, self.time_width, self.groups) < 1 or self.width not in range(
            2 * self.groups, 2**20, self.groups
        ):
            raise ValueError(
                f"prior: width {self.width} must be 2 or more times groups {self.groups}, all sizes positive"
            )


class Prior(PoseNetwork):
    """Denoiser of poses, with the schedule and the units of its state (score network of GFPose and ZeDO).

    A state (B, 16, 3) holds all joints but the root, centred and scaled so that its variance is 1; one
    scale serves all coordinates, so that noise is the same distance in metres for each joint and direction.
    The network predicts v, which stays well-conditioned from pure noise to the clean end. It starts at v =
    0, which is the exact denoiser of independent Gaussian coordinates.
    """

    kind = "pose-prior"
    config_class = PriorConfig
    prediction: Prediction = "v"
    mean: Tensor  # (16, 3) metres
    scale: Tensor  # () 1 / metres
    spread: Tensor  # (T, 16) metres

    def __init__(self, config: PriorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PriorConfig()
        self.schedule = schedule()
        self.register_buffer("mean", torch.zeros(JOINTS - 1, 3))
        self.register_buffer("scale", torch.tensor(4.0))
        # Root mean square error per coordinate of each joint of the predicted x0: how far the truth may lie.
        sigma = (1 - self.schedule.alpha_bar[:-1]).sqrt().float()
        self.register_buffer("spread", (sigma / self.scale)[:, None].repeat(1, JOINTS - 1))
        self.time = nn.Sequential(nn.Linear(128, config.time_width), nn.SiLU())
        self.enter = nn.Linear(3 * (JOINTS - 1), config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.leave = nn.Linear(config.width, 3 * (JOINTS - 1))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: None = None) -> Tensor:
        """Noisy states (B, 16, 3) at levels t (B,) -> v (B, 16, 3); there is no condition."""
        time = self.time(sinusoid(t, 128))
        h = self.enter(x_t.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        return self.leave(h).view_as(x_t)

    def encode(self, poses: Tensor) -> Tensor:
        """Poses (..., 17, 3) in metres -> states (..., 16, 3), root-relative."""
        return (poses[..., 1:, :] - poses[..., :1, :] - self.mean) * self.scale

    def decode(self, states: Tensor) -> Tensor:
        """States (..., 16, 3) -> poses (..., 17, 3) in metres, root at zero."""
        joints = states / self.scale + self.mean
        return torch.cat([torch.zeros_like(joints[..., :1, :]), joints], -2)


class _Block(nn.Module):
    """Twice Linear + time, normalised, SiLU, dropout; then the shortcut."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width = config.width
        self.linear = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.time = nn.ModuleList(nn.Linear(config.time_width, width) for _ in range(2))
        self.norm = nn.ModuleList(nn.GroupNorm(config.groups, width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        skip = h
        for linear, shift, norm in zip(self.linear, self.time, self.norm, strict=True):
            h = self.dropout(nn.functional.silu(norm(linear(h) + shift(time))))
        return skip + h


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Levels (B,) -> their embedding (B, width), sines then cosines."""
    frequencies = torch.exp(-math.log(1e4) / (width // 2 - 1) * torch.arange(width // 2, device=t.device))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def denoising_loss(prior: Prior, poses: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v at random levels, of poses (B, 17, 3) in metres."""
    x0 = prior.encode(poses)
    # One level from each of B even slices, so that a batch covers them all: the loss is less noisy.
    slices = torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)
    t = (slices * (prior.schedule.steps / len(x0))).long().clamp(max=prior.schedule.steps - 1)
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    x_t = prior.schedule.add_noise(x0, eps, t)
    v = convert(prior.schedule, eps, x_t, t, "eps", "v")
    return nn.functional.mse_loss(prior(x_t, t.to(x_t.device)), v)


def deepened(prior: Prior, config: PriorConfig | None) -> Prior:
    """The same function as a deeper network: blocks beyond those of `prior` add nothing until trained.

    Raises:
        UserError: when `config` has fewer blocks, or differs in anything but blocks and dropout.
    """
    config = config or prior.config
    if (
        config.blocks < prior.config.blocks
        or replace(config, blocks=prior.config.blocks, dropout=prior.config.dropout) != prior.config
    ):
        raise UserError(f"a prior of {prior.config} cannot become {config}: only blocks can be added")
    deep = Prior(config)
    deep.load_state_dict(prior.state_dict(), strict=False)
    for block in deep.blocks[prior.config.blocks :]:
        assert isinstance(block, _Block)
        for parameter in block.norm[1].parameters():
            nn.init.zeros_(parameter)
    return deep


@torch.no_grad()
def measure_spread(prior: Prior, poses: Tensor, generator: torch.Generator, every: int = 20) -> Tensor:
    """Root mean square error per coordinate of the predicted x0 at each level and joint, (T, 16) metres.

    Measured at every n-th level on poses (B, 17, 3) of the data that the prior describes, and interpolated.
    """
    x0, steps = prior.encode(poses), prior.schedule.steps
    measured = []
    levels = [*range(0, steps - 1, every), steps - 1]
    for level in levels:
        t = torch.full((len(x0),), level)
        x_t = prior.schedule.add_noise(x0, torch.randn(x0.shape, generator=generator).to(x0), t)
        predicted = convert(prior.schedule, prior(x_t, t.to(x_t.device)), x_t, t, "v", "x0")
        measured.append((predicted - x0).square().mean((0, 2)).sqrt() / prior.scale)
    table = torch.stack(measured)  # (levels, 16)
    low = (torch.arange(steps) // every).clamp(max=len(levels) - 2)
    left, right = torch.tensor(levels)[low], torch.tensor(levels)[low + 1]
    share = (torch.arange(steps) - left) / (right - left)
    return torch.lerp(table[low], table[low + 1], share.to(table)[:, None])
