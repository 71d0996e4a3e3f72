"""A teacher whose ODE has a closed form: views of coloured ellipsoids, spread by Gaussian noise.

The picture gives width, height and colour of an ellipsoid; its depth is not visible, and a few depths are
equally likely. Around the latent views mu_k of each lies N(mu_k, s^2 I). The score of this mixture is known
exactly at every noise level, and for a single mode so is the end of the probability-flow ODE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dd3g.cameras import ELEVATION, RADIUS, Cameras
from dd3g.diffusion import Prediction, Schedule
from dd3g.fingerprint import fingerprint
from dd3g.nn.checkpoint import build, read_config
from distill.teachers.compact import SpaceToDepth
from distill.teachers.protocol import Teacher


@dataclass
class AnalyticConfig:
    """Shape of an analytic teacher."""

    size: int = 32  # pixels, a multiple of 4
    modes: int = 2  # depths that a picture leaves possible
    spread: float = 0.1  # s, in latent units
    guidance_scale: float = 1.0
    steps: int = 10


@dataclass(frozen=True)
class AnalyticCondition:
    """Mean latents of each mode."""

    means: Tensor  # (B, K, V, C, h, w)
    blank: Tensor  # (B, 1, V, C, h, w) views of nothing

    def null(self) -> AnalyticCondition:
        """Without a picture: views of nothing, with the same spread."""
        return AnalyticCondition(self.blank, self.blank)


class AnalyticTeacher(Teacher):
    """Gaussian mixture around views of ellipsoids, eps-prediction."""

    prediction: Prediction = "eps"
    about = {"teacher": "analytic", "licence": "Apache-2.0"}

    def __init__(self, config: AnalyticConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or AnalyticConfig()
        if c.size < 4 or c.size % 4 or c.modes < 1 or c.spread <= 0:
            raise ValueError(f"size must be a multiple of 4, modes >= 1 and spread > 0, got {c}")
        self.codec = SpaceToDepth()
        # That of the published latent teachers with its two traps, the offset and the end that is not clean.
        self.schedule = Schedule.from_config(
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "steps_offset": 1,
                "timestep_spacing": "trailing",
                "set_alpha_to_one": False,
            }
        )
        self.rig = Cameras.default_rig(c.size)
        self.latent_shape = (4, 64, c.size // 4, c.size // 4)
        self.picture_size = c.size
        self.default_steps, self.default_guidance = c.steps, c.guidance_scale

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AnalyticTeacher:
        """Read a folder with a config.json; it has no weights."""
        config = read_config(folder, "teacher")
        config.pop("teacher", None)
        return build(folder, config, AnalyticConfig, cls)

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration."""
        return fingerprint(repr(sorted(asdict(self.config).items())))

    def condition(
        self, rgba: Tensor, cameras: Cameras | None = None, captions: Sequence[str] | None = None
    ) -> AnalyticCondition:
        """Straight RGBA (B, 4, S, S) -> the ellipsoids that it may show, seen by the cameras."""
        cameras = (self.rig if cameras is None else cameras).to(rgba.device)
        width, height, colour = measure(rgba)
        deepness = torch.linspace(0.6, 1.4, 2 * self.config.modes + 1).to(rgba)[1::2]  # (K,) depth by width
        # The silhouette lies where rays from the camera touch, nearer than the centre.
        x = RADIUS * width[:, None] / (1 + (width[:, None] * deepness).square()).sqrt()  # (B, K)
        z = x * deepness
        shadow = height[:, None].square() * (RADIUS**2 - z.square()).clamp(min=0)
        tilt = math.radians(ELEVATION)
        y = ((shadow - (z * math.sin(tilt)).square()) / math.cos(tilt) ** 2).maximum(0.1 * shadow).sqrt()
        axes = torch.stack([x, y, z], -1).clamp(min=1e-3)
        means = self.codec.encode(draw_ellipsoids(axes, colour[:, None].expand_as(axes), cameras))
        blank = rgba.new_zeros(len(rgba), 1, means.shape[2], *rgba.shape[1:])
        return AnalyticCondition(means, self.codec.encode(blank))

    def forward(self, x_t: Tensor, t: Tensor, condition: AnalyticCondition) -> Tensor:
        """Exact eps = sigma / v (x_t - alpha E[mu | x_t]), (B, V, C, h, w); v = alpha^2 s^2 + sigma^2."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        variance = alpha**2 * self.config.spread**2 + sigma**2
        means = condition.means
        distance = (x_t[:, None] - alpha[:, None] * means).double().square().flatten(2).sum(-1)  # (B, K)
        weight = (-0.5 * distance / variance.reshape(-1, 1)).softmax(1).to(x_t)
        mean = (weight.reshape(*weight.shape, *[1] * 4) * means).sum(1)
        return sigma / variance * (x_t - alpha * mean)


def measure(rgba: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Half-width (B,) and half-height (B,) at depth 1, and mean colour (B, 3) of pictures (B, 4, S, S)."""
    alpha = rgba[:, 3].double()  # (B, S, S)
    total = alpha.sum((1, 2)).clamp(min=1e-6)
    place = torch.arange(rgba.shape[-1], device=rgba.device, dtype=torch.float64)
    focal = Cameras.default_rig(rgba.shape[-1]).Ks[0, 0, 0].item()
    half = []
    for row in (alpha.sum(1), alpha.sum(2)):  # (B, S) by x, by y
        mean = (row * place).sum(1) / total
        variance = (row * (place - mean[:, None]).square()).sum(1) / total
        # A uniform ellipse has a variance of a quarter of its squared half-axis.
        half.append((2 * variance.sqrt() / focal).to(rgba))
    colour = (rgba[:, :3] * rgba[:, 3:]).sum((2, 3)) / total[:, None].to(rgba)
    return half[0], half[1], colour


def draw_ellipsoids(axes: Tensor, colours: Tensor, cameras: Cameras) -> Tensor:
    """Soft views of axis-aligned ellipsoids at the origin; the half that faces away from +z is darker.

    Args:
        axes: (B, K, 3) half-axes, world units.
        colours: (B, K, 3).
        cameras: (V,) or (B, V).

    Returns:
        (B, K, V, 4, S, S) straight RGBA.
    """
    origins, directions = cameras.rays()
    if cameras.viewmats.dim() == 3:
        origins, directions = origins[None], directions[None]
    axes = axes[:, :, None, None, None]
    o, d = origins[:, None] / axes, directions[:, None] / axes  # (B, K, V, S, S, 3) from a unit sphere
    dd, od = d.square().sum(-1), (o * d).sum(-1)
    nearest = o.square().sum(-1) - od.square() / dd  # squared distance of the ray to the centre
    alpha = torch.sigmoid((1 - nearest) / 0.1)
    depth = (-od - (dd * (1 - nearest)).clamp(min=0).sqrt()) / dd
    facing = (o + depth[..., None] * d)[..., 2]  # z of the unit normal
    shade = 0.6 + 0.4 * torch.sigmoid(6 * facing)
    rgb = colours[:, :, None, :, None, None] * shade[..., None, :, :]
    return torch.cat([rgb, alpha[..., None, :, :]], -3)
