"""The multi-view U-Net of MVDream and ImageDream; its tensors have the names of the published files.

MVDream (Shi et al. 2023, arXiv 2308.16512) turns Stable Diffusion's self-attention into attention over the
pixels of all frames. ImageDream (Wang & Shi 2023, arXiv 2312.02201) adds the picture: tokens, and a clean
frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dd3g.nn.blocks import timestep_embedding
from dd3g.nn.config import MultiViewUNetConfig
from dd3g.nn.unet_blocks import (
    Context,
    ContextTokens,
    Downsample,
    KeyValues,
    Resampler,
    UNetResidual,
    UNetTransformer,
    Upsample,
)


class Stage(nn.Sequential):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`."""

    def forward(self, x: Tensor, emb: Tensor, frames: int, context: Sequence[Context]) -> Tensor:  # type: ignore[override]
        """Maps x (B*F, C, h, w) -> (B*F, C', h', w')."""
        for layer in self:
            if isinstance(layer, UNetResidual):
                x = layer(x, emb)
            elif isinstance(layer, UNetTransformer):
                x = layer(x, frames, context)
            else:
                x = layer(x)
        return x


class MultiViewUNet(nn.Module):
    """Noise prediction for F frames of an object at once."""

    def __init__(self, config: MultiViewUNetConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or MultiViewUNetConfig()
        width, emb = c.model_channels, 4 * c.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.camera_embed = nn.Sequential(nn.Linear(c.camera_dim, emb), nn.SiLU(), nn.Linear(emb, emb))
        if c.ip_dim:
            self.image_embed = Resampler(c.image_dim, c.context_dim, c.ip_dim)

        stages = [Stage(nn.Conv2d(c.in_channels, width, 3, padding=1))]
        skips, channels, scale = [width], width, 1
        for level, factor in enumerate(c.channel_mult):
            for _ in range(c.num_res_blocks):
                layers: list[nn.Module] = [UNetResidual(channels, emb, factor * width)]
                channels = factor * width
                stages.append(Stage(*layers, *self._transformer(channels, scale)))
                skips.append(channels)
            if level < len(c.channel_mult) - 1:
                stages.append(Stage(Downsample(channels)))
                skips.append(channels)
                scale *= 2
        self.input_blocks = nn.ModuleList(stages)

        first, second = (UNetResidual(channels, emb, channels) for _ in range(2))
        self.middle_block = Stage(first, *self._transformer(channels), second)

        stages = []
        for level, factor in reversed(list(enumerate(c.channel_mult))):
            for i in range(c.num_res_blocks + 1):
                layers = [UNetResidual(channels + skips.pop(), emb, factor * width)]
                channels = factor * width
                layers += self._transformer(channels, scale)
                if level and i == c.num_res_blocks:
                    layers.append(Upsample(channels))
                    scale //= 2
                stages.append(Stage(*layers))
        self.output_blocks = nn.ModuleList(stages)
        self.out = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, c.out_channels, 3, padding=1)
        )
        self._number_transformers()

    def _transformer(self, channels: int, scale: int | None = None) -> list[nn.Module]:
        """A transformer, where there is one at this scale."""
        c = self.config
        if scale is not None and scale not in c.attention_resolutions:
            return []
        shape = (channels, c.num_head_channels, c.transformer_depth, c.context_dim, bool(c.ip_dim))
        return [UNetTransformer(*shape)]

    def _number_transformers(self) -> None:
        """Tell each where its blocks begin in the context."""
        for i, transformer in enumerate(self.transformers()):
            transformer.first = i * self.config.transformer_depth

    def lower_levels(self) -> list[nn.Module]:
        """The stages below full resolution; the top level, embeddings and resampler are left out."""
        top = self.config.num_res_blocks + 1
        return [*self.input_blocks[top:], self.middle_block, *self.output_blocks[:-top]]

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in, and the network computes in."""
        return self.time_embed[0].get_parameter("weight").dtype

    @property
    def blocks(self) -> int:
        """How many transformer blocks there are, each with a context of its own."""
        return sum(len(t.transformer_blocks) for t in self.transformers())

    def transformers(self) -> Iterator[UNetTransformer]:
        """In the order in which they are run."""
        return (m for m in self.modules() if isinstance(m, UNetTransformer))

    def context(self, text: Tensor, image: Tensor | None = None) -> list[KeyValues]:
        """Keys and values of every cross-attention: what does not change from step to step.

        Args:
            text: (B, M, context_dim) tokens of the caption.
            image: (B, L, image_dim) tokens of the picture, for a network with `ip_dim`; zeros stand for none.
        """
        tokens = self.tokens(text, image)
        return [kv for transformer in self.transformers() for kv in transformer.context(*tokens)]

    def tokens(self, text: Tensor, image: Tensor | None = None) -> ContextTokens:
        """What every cross-attention sees, for a network that is called once; arguments as `context`."""
        seen = self.image_embed(image.to(self.dtype)) if image is not None else None
        return ContextTokens(text.to(self.dtype), seen)

    def embedding(self, t: Tensor, cameras: Tensor) -> Tensor:
        """Levels t (B,) and camera codes (B, F, 16) -> (B*F, E)."""
        time = self.time_embed(timestep_embedding(t, self.config.model_channels).to(self.dtype))
        return (time[:, None] + self.camera_embed(cameras.to(self.dtype))).flatten(0, 1)

    def features(self, x: Tensor, t: Tensor, cameras: Tensor, context: Sequence[Context]) -> Tensor:
        """The map before the last norm and convolution (B*F, width, h, w); arguments as `forward`."""
        frames = x.shape[1]
        emb = self.embedding(t, cameras)
        h, skips = x.to(self.dtype).flatten(0, 1), []
        for stage in self.input_blocks:
            h = stage(h, emb, frames, context)
            skips.append(h)
        h = self._below(h, emb, frames, context)
        for stage in self.output_blocks.children():
            h = stage(torch.cat([h, skips.pop()], 1), emb, frames, context)
        return h

    def _below(self, h: Tensor, emb: Tensor, frames: int, context: Sequence[Context]) -> Tensor:
        return self.middle_block(h, emb, frames, context)

    def forward(self, x: Tensor, t: Tensor, cameras: Tensor, context: Sequence[Context]) -> Tensor:
        """One network call.

        Args:
            x: (B, F, C, h, w) noisy latents; with `ip_dim` the picture's clean latent is the last frame.
            t: (B,) schedule index.
            cameras: (B, F, 16) codes; zeros for the clean frame.
            context: as `context` gives it, or `tokens` for each block.

        Returns:
            (B, F, C, h, w) predicted noise, in the type of x.
        """
        eps = self.out(self.features(x, t, cameras, context))
        return eps.to(x.dtype).unflatten(0, x.shape[:2])


class TopLevelUNet(MultiViewUNet):
    """Only the level at full resolution; a 1x1 convolution stands for what the others would bring.

    What is left keeps its names in the whole network.
    """

    def __init__(self, config: MultiViewUNetConfig) -> None:
        super().__init__(config)
        top, count = config.num_res_blocks + 1, len(self.output_blocks)
        self.input_blocks = self.input_blocks[:top]
        last = {str(i): self.output_blocks[i] for i in range(count - top, count)}
        self.output_blocks = nn.ModuleDict(last)  # type: ignore[assignment]
        del self.middle_block
        first: Any = last[str(count - top)]
        below = first[0].in_layers[0].num_channels - config.model_channels
        self.bridge = nn.Conv2d(config.model_channels, below, 1)
        self._number_transformers()

    def _below(self, h: Tensor, emb: Tensor, frames: int, context: Sequence[Context]) -> Tensor:
        return self.bridge(h)
