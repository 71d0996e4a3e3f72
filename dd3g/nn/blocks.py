"""Residual block and multi-view transformer block, the two bricks of teacher and generator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; the embedding scales and shifts between them.

    Args:
        channels: width of the map.
        emb_dim: width of the embedding.
        hidden: width between the convolutions.
    """

    def __init__(self, channels: int, emb_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.film = nn.Linear(emb_dim, 2 * hidden)
        self.norm2 = nn.GroupNorm(8, hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.get_parameter("bias"))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x (N, C, h, w) and emb (N, E) -> (N, C, h, w)."""
        scale, shift = self.film(F.silu(emb))[..., None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head attention of `x` over `context` (over itself by default), with torch's fused kernel."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim or dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens x (B, L, D), context (B, M, Dc) -> (B, L, D)."""
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.to_kv(x if context is None else context)
        k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in kv.chunk(2, -1))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, factor: int = 4) -> None:
        super().__init__(
            nn.Linear(dim, factor * dim), nn.GELU(approximate="tanh"), nn.Linear(factor * dim, dim)
        )


class MultiViewTransformer(nn.Module):
    """Joint self-attention over the tokens of all views, cross-attention to the picture, feed-forward.

    The inner order of MVDream's SpatialTransformer3D, pre-norm and residual. Per-view constants of the camera
    and the time enter through the residual blocks between these blocks.

    Args:
        dim: token width.
        heads: attention heads.
        context_dim: width of the picture's tokens; None leaves cross-attention out.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.attn2 = None
        if context_dim is not None:
            self.norm2 = nn.LayerNorm(dim)
            self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens x (B, V*L, D), context (B, M, Dc) -> (B, V*L, D)."""
        x = x + self.attn1(self.norm1(x))
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))
