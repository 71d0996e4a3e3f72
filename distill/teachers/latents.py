"""Published latent diffusion as a teacher: its VAE as the codec, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.encoders import TextEncoder
from distill.teachers.protocol import Teacher
from distill.teachers.published import over_white

T = TypeVar("T")

AT_ONCE = 16  # pictures that the VAE sees in one call; memory, not results, depends on it


class LatentCodec(nn.Module):
    """Pictures on white <-> latents: the mode of the VAE's posterior, scaled; nothing is drawn.

    Args:
        vae: diffusers' AutoencoderKL.
        side: of the latents; of the pictures that it sees 8 times as much in the published ones.
    """

    def __init__(self, vae: Any, side: int) -> None:
        super().__init__()
        self.vae = vae
        self.size = side * self.factor
        self.scale: float = vae.config.scaling_factor

    @property
    def factor(self) -> int:
        """Side of a picture by that of its latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA, or RGB, (..., 4 or 3, S, S) in 0..1 -> (..., C, h, w) float32."""
        batch = over_white(rgba)
        batch = batch.reshape(-1, *batch.shape[-3:])
        if batch.shape[-2:] != (self.size, self.size):
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


class LatentTeacher(Teacher):
    """Latent diffusion as published; it only answers: no gradients of its weights, never in training mode."""

    unet: Any  # the network
    codec: LatentCodec  # the VAE
    text: TextEncoder  # of captions
    image: Any  # transformers' CLIP vision model, for one that sees the picture
    identity: str  # hash of the weights
    draws_alpha = False
    default_steps = 50

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.unet.parameters()).device

    def caption(self, words: str = "") -> Tensor:
        """(1, 77, D) tokens of a caption that many pictures share."""
        return self.once(f"caption {words}", lambda: self.text([words]))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What follows from the weights alone: made at the first call, and again when they have moved."""
        kept = self.__dict__.setdefault("_kept", {})
        if name not in kept:
            with torch.inference_mode(False), torch.no_grad():  # a later call may want gradients through it
                kept[name] = make()
        return kept[name]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop("_kept", None)
        return super()._apply(*args, **kwargs)
