"""Blocks of the published multi-view U-Net, with the names of its tensors; our own networks have `blocks`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dd3g.nn.blocks import AttentionKernel, attention


class KeyValues(NamedTuple):
    """What one cross-attention looks at, split into heads: (B, heads, M, d) each."""

    k: Tensor
    v: Tensor
    k_image: Tensor | None = None
    v_image: Tensor | None = None

    def expand(self, batch: int) -> KeyValues:
        """Those of one object, for each of a batch."""
        wide = {n: x.expand(batch, -1, -1, -1) for n, x in self._asdict().items() if x is not None}
        return self._replace(**wide)


class ContextTokens(NamedTuple):
    """What a cross-attention looks at before its own projections: it makes its keys and values itself."""

    text: Tensor  # (B, M, Dc) of the caption
    image: Tensor | None = None  # (B, M', Dc) of the picture


Context = KeyValues | ContextTokens


class UNetResidual(nn.Module):
    """Two 3x3 convolutions with a skip; the embedding is added between them."""

    def __init__(self, channels: int, emb_dim: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # a dropout in training; it gives the convolution its number
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps x (N, C, h, w) and emb (N, E) -> (N, C', h, w)."""
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Sequential):
    """(N, C, h, w) -> (N, C, h/2, w/2), by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(OrderedDict(op=nn.Conv2d(channels, channels, 3, stride=2, padding=1)))


class Upsample(nn.Sequential):
    """(N, C, h, w) -> (N, C, 2h, 2w), by nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        nearest, conv = nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels, 3, padding=1)
        super().__init__(OrderedDict(nearest=nearest, conv=conv))


class UNetAttention(nn.Module):
    """Attention to a context; where an image has keys of its own, both results are added (IP-Adapter)."""

    def __init__(self, dim: int, context_dim: int, head_dim: int, image: bool = False) -> None:
        super().__init__()
        self.heads = dim // head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        if image:
            self.to_k_ip = nn.Linear(context_dim, dim, bias=False)
            self.to_v_ip = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.attend = AttentionKernel()

    def key_values(self, context: Tensor, image: Tensor | None = None) -> KeyValues:
        """Of tokens (B, M, Dc), and of the picture's (B, M', Dc)."""
        k, v = self._split(self.to_k(context)), self._split(self.to_v(context))
        if image is None:
            return KeyValues(k, v)
        return KeyValues(k, v, self._split(self.to_k_ip(image)), self._split(self.to_v_ip(image)))

    def forward(self, x: Tensor, context: KeyValues) -> Tensor:
        """Tokens x (B, L, D) -> (B, L, D)."""
        q = self._split(self.to_q(x))
        h = self.attend(q, context.k, context.v)
        if context.k_image is not None and context.v_image is not None:
            h = h + self.attend(q, context.k_image, context.v_image)
        return self.to_out[0](h.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class UNetTransformerBlock(nn.Module):
    """Attention over the tokens of all frames, to the caption and the picture, then a feed-forward."""

    def __init__(self, dim: int, context_dim: int, head_dim: int, image: bool) -> None:
        from diffusers.models.attention import FeedForward  # takes seconds, and small generators do without

        super().__init__()
        self.attn1 = UNetAttention(dim, dim, head_dim)
        self.ff = FeedForward(dim)
        self.attn2 = UNetAttention(dim, context_dim, head_dim, image)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Tokens of all frames x (B, F*L, D) -> (B, F*L, D)."""
        if isinstance(context, ContextTokens):
            context = self.attn2.key_values(*context)
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.key_values(h))
        # One context for all frames of an object, or one for each.
        h = self.norm2(x).reshape(len(context.k), -1, x.shape[-1])
        x = x + self.attn2(h, context).reshape(x.shape)
        return x + self.ff(self.norm3(x))


class UNetTransformer(nn.Module):
    """`depth` blocks over the maps of all frames, with a skip; with `image`, it has keys of its own."""

    first = 0  # where its blocks begin in the whole network's context

    def __init__(self, channels: int, head_dim: int, depth: int, context_dim: int, image: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            UNetTransformerBlock(channels, context_dim, head_dim, image) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels)

    def context(self, text: Tensor, image: Tensor | None) -> list[KeyValues]:
        """Keys and values of its blocks, of text (B, M, Dc) and image (B, M', Dc) tokens."""
        blocks: Iterable[Any] = self.transformer_blocks
        return [block.attn2.key_values(text, image) for block in blocks]

    def forward(self, x: Tensor, frames: int, context: Sequence[Context]) -> Tensor:
        """Maps x (B*F, C, h, w) -> the same shape; `context` is the whole network's."""
        N, C, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2).reshape(N // frames, frames * h * w, C)
        tokens = self.proj_in(tokens)
        for i, block in enumerate(self.transformer_blocks):
            tokens = block(tokens, context[self.first + i])
        # Contiguous: on other strides the CPU's group norm sums less exactly.
        return x + self.proj_out(tokens).reshape(N, h * w, C).transpose(1, 2).reshape(x.shape).contiguous()


class ResamplerAttention(nn.Module):
    """Latent tokens look at the picture's tokens and at themselves."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Picture tokens x (B, L, D) and latents (B, M, D) -> (B, M, D)."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        return self.to_out(attention(self.to_q(latents), k, v, self.heads))


class Resampler(nn.Module):
    """Many tokens of the image encoder -> a few of the context's width (IP-Adapter Plus)."""

    def __init__(self, image_dim: int, dim: int, tokens: int, depth: int = 4, heads: int = 12) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(image_dim, dim)
        self.proj_out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attend = ResamplerAttention(dim, heads, 64)
            up, down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
            feed_forward = nn.Sequential(nn.LayerNorm(dim), up, nn.GELU(), down)
            self.layers.append(nn.ModuleList([attend, feed_forward]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, image_dim) -> (B, tokens, dim)."""
        latents = self.latents.expand(len(x), -1, -1)
        x = self.proj_in(x)
        layers: Iterable[Any] = self.layers
        for attend, feed_forward in layers:
            latents = attend(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))
