"""Phase 1 as the teacher's own network: ImageDream's U-Net at the level where its noise enters.

One call of the whole pretrained network costs what the random stack of `pattern_extraction` costs at the
paper's scale, and already knows what is behind an object. Its tensors keep their published names below
`extraction.unet`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.nn.blocks import orbit_code
from dd3g.nn.clip_vision import ClipVision
from dd3g.nn.low_rank import make_low_rank
from dd3g.nn.multiview_unet import MultiViewUNet, TopLevelUNet
from dd3g.pepd.config import GeneratorConfig, TeacherPhase

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class TeacherExtraction(nn.Module):
    """Noise, cameras and picture -> tokens of the network's last map and of its one-step picture."""

    caption: Tensor  # (1, 77, D) the text encoder's tokens of no caption

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        assert config.teacher is not None
        self.phase = p = config.teacher
        self.unet = (TopLevelUNet if p.top_only else MultiViewUNet)(p.unet)
        self.image = ClipVision(p.image)
        self.vae = _encoder(p.vae)
        self.register_buffer("caption", torch.zeros(1, 77, p.unet.context_dim))
        self.tokens = nn.Conv2d(p.unet.model_channels, config.width, 1)
        self.picture = nn.Conv2d(p.unet.in_channels, config.width, 3, padding=1)
        for frozen in (self.image, self.vae):
            frozen.requires_grad_(False)
        if not p.top_only:
            set_lower_levels(self.unet, p)

    def forward(self, noise: Tensor, cameras: Cameras, image: Tensor) -> Tensor:
        """Make the imagined tokens.

        Args:
            noise: (B, V, C, h, w) the teacher's starting noise.
            cameras: (B, V) the teacher's cameras, relative to the input view.
            image: (B, 4, S, S) straight RGBA.

        Returns:
            (B, V, W, h, w).
        """
        B, V = noise.shape[:2]
        h, eps = self.predict(noise, cameras, image)
        x0 = (noise - math.sqrt(1 - self.phase.alpha_bar) * eps) / math.sqrt(self.phase.alpha_bar)
        x = self.tokens(h) + self.picture(x0.flatten(0, 1).to(h.dtype))
        return x.unflatten(0, (B, V))

    def predict(self, noise: Tensor, cameras: Cameras, image: Tensor) -> tuple[Tensor, Tensor]:
        """The last map (B*V, model_channels, h, w) and the predicted noise (B, V, C, h, w); see `forward`."""
        B, V = noise.shape[:2]
        with torch.no_grad():
            tokens, clean = self.see(image)
        codes = orbit_code(cameras)
        codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], 1)  # the clean frame has no camera
        t = torch.full((B,), self.phase.level, device=noise.device)
        # One call: each block makes its keys and values, also where its weights are split over processes.
        context = [self.unet.tokens(self.caption.expand(B, -1, -1), tokens)] * self.unet.blocks
        h = self.unet.features(torch.cat([noise, clean[:, None]], 1), t, codes, context)
        h = h.unflatten(0, (B, V + 1))[:, :V].flatten(0, 1)
        return h, self.unet.out(h).to(noise.dtype).unflatten(0, (B, V))

    def see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Straight RGBA (B, 4, S, S) -> CLIP's tokens (B, L, D) and the clean latent (B, C, h, w)."""
        rgb = image[:, :3] * image[:, 3:] + 1 - image[:, 3:]
        latent = self.vae.encode(2 * rgb - 1).latent_dist.mode() * self.vae.config.scaling_factor
        return self.image(rgb), latent


def set_lower_levels(unet: MultiViewUNet, phase: TeacherPhase) -> None:
    """Freeze the levels below the top, or let them learn by low-rank changes or at a share of the rate."""
    for module in unet.lower_levels():
        if phase.lower == "frozen":
            module.requires_grad_(False)
        elif phase.lower == "low_rank":
            make_low_rank(module, phase.rank, PROJECTIONS)
        else:
            for parameter in module.parameters():
                parameter.rate_share = phase.lower_rate  # type: ignore[attr-defined]


def _encoder(config: dict[str, Any]) -> Any:
    """A published VAE without its decoder."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(**config)
    vae.decoder, vae.post_quant_conv = nn.Identity(), nn.Identity()
    return vae
