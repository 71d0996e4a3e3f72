"""Phase 1, pattern extraction: noise and cameras become tokens that imagine what the picture hides."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.nn.blocks import MultiViewTrunk, camera_code, correspond
from dd3g.pepd.config import GeneratorConfig


class PatternExtraction(nn.Module):
    """Constant-resolution stack over the views of the rig; the picture enters each block by cross-attention.

    A `depth` of 0 leaves only the prior, and `use_noise` False makes the generator deterministic: ablations.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.use_noise, width, ratio = config.use_noise, config.width, int(config.noise_ratio)
        if self.use_noise:
            self.stem = nn.Sequential(
                nn.Conv2d(config.latent_shape[1], width // 4, 3, padding=1),
                nn.SiLU(),
                nn.PixelUnshuffle(ratio),
                nn.Conv2d(width // 4 * ratio**2, width, 1),
            )
        self.rays = nn.Conv2d(6, width, 1)
        self.prior = nn.Conv2d(width, width, 1)
        self.camera = None
        if config.depth:  # a parameter that nothing reads gets no gradient, which stops a parallel training
            self.camera = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.trunk = MultiViewTrunk(width, config.depth, config.heads, width, config.residual_hidden)

    def forward(self, noise: Tensor, cameras: Cameras, coarse: Tensor, pooled: Tensor) -> Tensor:
        """Make the imagined tokens.

        Args:
            noise: (B, V, C, ratio * h, ratio * w) the teacher's starting noise.
            cameras: (B, V) the teacher's cameras, relative to the input view.
            coarse: (B, W, h, w) the picture's tokens as a map.
            pooled: (B, W) the picture at a glance.

        Returns:
            (B, V, W, h, w).
        """
        B, V = noise.shape[:2]
        h = coarse.shape[-1]
        prior = correspond(coarse, cameras.azimuths)  # (B, V, W, h, w)
        rays = cameras.resized(h).plucker()  # (B, V, 6, h, w)
        x = self.prior(prior.flatten(0, 1)) + self.rays(rays.flatten(0, 1).to(prior.dtype))
        if self.use_noise:
            x = x + self.stem(noise.flatten(0, 1))
        x = x.unflatten(0, (B, V))
        if self.camera is None:
            return x
        emb = self.camera(camera_code(cameras)) + pooled[:, None]
        context = coarse.flatten(2).transpose(1, 2)
        return self.trunk(x, emb, context)


class CopiedTokens(nn.Module):
    """The second column of tokens, straight from the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, width, 1)
        self.rays = nn.Conv2d(6, width, 1)

    def forward(self, camera: Cameras, coarse: Tensor) -> Tensor:
        """Camera (B,) of the input view and coarse (B, W, h, w) -> (B, W, h, w)."""
        rays = camera.resized(coarse.shape[-1]).plucker()
        return self.project(F.silu(coarse)) + self.rays(rays.to(coarse.dtype))
