"""A published VAE as the codec of a teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.published import over_white

AT_ONCE = 16  # pictures that the VAE sees in one call; memory, not results, depends on it


class LatentCodec(nn.Module):
    """Pictures on white <-> latents: the mode of the VAE's posterior, scaled; nothing is drawn.

    Args:
        vae: diffusers' AutoencoderKL.
        size: side in pixels that it sees; latents have an eighth of it in the published ones.
    """

    def __init__(self, vae: Any, size: int) -> None:
        super().__init__()
        self.vae, self.size = vae, size
        self.scale: float = vae.config.scaling_factor

    @property
    def factor(self) -> int:
        """Side of a picture by that of its latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA, or RGB, (..., 4 or 3, S, S) in 0..1 -> (..., C, h, w) float32."""
        batch = over_white(rgba)
        batch = batch.reshape(-1, *batch.shape[-3:])
        if batch.shape[-1] != self.size:
            # Without antialiasing, as the authors do.
            batch = F.interpolate(batch, (self.size, self.size), mode="bilinear", align_corners=False)
        latent = self.mode(2 * batch - 1) * self.scale
        return latent.reshape(*rgba.shape[:-3], *latent.shape[1:])

    def decode(self, latent: Tensor) -> Tensor:
        """(..., C, h, w) -> RGB (..., 3, S, S) in 0..1."""
        rgb = self.picture(latent.reshape(-1, *latent.shape[-3:]) / self.scale)
        return (rgb / 2 + 0.5).clamp(0, 1).reshape(*latent.shape[:-3], *rgb.shape[1:])

    def mode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in -1..1 -> the posterior's mode (N, C, h, w) float32, not scaled."""
        parts = pixels.to(self.vae.dtype).contiguous().split(AT_ONCE)
        return torch.cat([self.vae.encode(part).latent_dist.mode() for part in parts]).float()

    def picture(self, latent: Tensor) -> Tensor:
        """The inverse of `mode`: (N, C, h, w) -> (N, 3, H, W) about -1..1, float32."""
        parts = latent.to(self.vae.dtype).contiguous().split(AT_ONCE)
        return torch.cat([self.vae.decode(part).sample for part in parts]).float()
