"""The bricks of teacher and generator: attention, embeddings, residual and multi-view blocks, encoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import RADIUS, Cameras

KERNELS = ("sdpa", "xformers")  # of torch, or in published networks where somebody wants it that of xformers


class AttentionKernel(nn.Module):
    """softmax(q k^T / sqrt(d)) v; `name` chooses who computes it, and may be changed at any time."""

    name = "sdpa"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, heads, L, d), keys and values (B, heads, M, d) -> (B, heads, L, d)."""
        if self.name == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        from xformers.ops import memory_efficient_attention

        # It wants (B, L, heads, d).
        return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def use_kernel(module: nn.Module, name: str) -> None:
    """Let every `AttentionKernel` of a module be computed by one of `KERNELS`."""
    for kernel in module.modules():
        if isinstance(kernel, AttentionKernel):
            kernel.name = name


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of tokens (B, L, heads * d) over others (B, M, heads * d), head by head."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; between them, at width `hidden`, the embedding scales and shifts."""

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
        k, v = self.to_kv(x if context is None else context).chunk(2, -1)
        return self.to_out(attention(self.to_q(x), k, v, self.heads))


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))


class MultiViewTransformer(nn.Module):
    """Joint self-attention over the tokens of all views, cross-attention to the picture, feed-forward.

    The inner order of MVDream's SpatialTransformer3D, pre-norm and residual. Per-view constants of the camera
    and the time enter through the residual blocks between these blocks. Without a `context_dim`, the width of
    the picture's tokens, there is no cross-attention.
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


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (..., dim) of schedule indices (...), cosines first; dim is even."""
    half = dim // 2
    freqs = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angle = t[..., None].float() * freqs
    return torch.cat([angle.cos(), angle.sin()], -1)


def fourier(x: Tensor, bands: int) -> Tensor:
    """Coordinates (..., C) of order 1 -> (..., C * (1 + 2 * bands)): themselves, sines, cosines by octave."""
    angle = x[..., None] * (math.pi * 2.0 ** torch.arange(bands, device=x.device, dtype=x.dtype))
    return torch.cat([x, angle.sin().flatten(-2), angle.cos().flatten(-2)], -1)


def camera_code(cameras: Cameras) -> Tensor:
    """(..., 16) camera-to-world matrix, row-major, in units of the radius of the canonical rig."""
    pose = cameras.camera_to_world.clone()
    pose[..., :3, 3] /= RADIUS
    return pose.flatten(-2)


def orbit_code(cameras: Cameras) -> Tensor:
    """(..., 16) camera codes of MVDream and ImageDream, for cameras around the origin.

    Their world has z up and the camera looks along its -z; the distance is left out. What this project calls
    azimuth 0 is 90 there, where their condition pictures stand.
    """
    pose = cameras.camera_to_world.clone()
    pose[..., :3, 1:3] *= -1
    pose[..., :3, 3] /= pose[..., :3, 3].norm(dim=-1, keepdim=True)
    x, y, z, last = pose.unbind(-2)  # a list as an index would be copied to a GPU, which no graph can hold
    return torch.stack([z, x, y, last], -2).flatten(-2)


def correspond(features: Tensor, azimuths: Tensor) -> Tensor:
    """Spread the picture's map to other views of an orbit by what usually corresponds.

    Views that face the same way as the input get the map itself, views from behind get it mirrored, and views
    from the side get each row's mean: at one elevation a point stays near its image row, and nothing more is
    known of its column. Angles between, (B, V) radians from the input view, blend the three with cos and
    |sin|: a map (B, C, h, w) becomes (B, V, C, h, w).
    """
    front = azimuths.cos().clamp(min=0)[..., None, None, None]
    back = (-azimuths.cos()).clamp(min=0)[..., None, None, None]
    side = azimuths.sin().abs()[..., None, None, None]
    f = features[:, None]  # (B, 1, C, h, w)
    return (front * f + back * f.flip(-1) + side * f.mean(-1, keepdim=True)) / (front + back + side)


def correspond_rgba(rgba: Tensor, azimuths: Tensor) -> Tensor:
    """Straight RGBA (B, 4, S, S) at the corresponding pixels of other views (B, V, 4, S, S), mixed by alpha.

    Where nothing corresponds, the colour is the picture's mean colour.
    """
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    color, alpha = correspond(premultiplied, azimuths).split([3, 1], 2)
    total = premultiplied.sum((-1, -2), keepdim=True)[:, None]  # (B, 1, 4, 1, 1)
    faint = 0.01  # weight of the mean colour; and of grey, should the picture be empty
    mean = (total[:, :, :3] + 0.5 * faint) / (total[:, :, 3:] + faint)
    return torch.cat([(color + faint * mean) / (alpha + faint), alpha], 2).clamp(0, 1)


class PictureEncoder(nn.Module):
    """RGBA picture -> maps at three scales, light enough to train from scratch on a laptop.

    Args:
        width: channels of the coarse map, which serves as tokens.
        size: side of the picture in pixels; the coarse map has side size / 8.
        fine: channels of the full-resolution map.
        mid: channels of the map at size / 4.
    """

    def __init__(self, width: int, size: int, fine: int = 16, mid: int = 96) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(4, fine, 3, padding=1), nn.SiLU())
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * fine, mid, 1),
            nn.SiLU(),
            nn.Conv2d(mid, mid, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(mid, mid, 3, padding=1),
        )
        self.down = nn.Sequential(nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * mid, width, 1))
        self.place = nn.Parameter(torch.randn(1, width, size // 8, size // 8) * 0.02)
        self.pool = nn.Linear(width, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, width, width // 2) for _ in range(2))

    def forward(self, rgba: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Look at straight RGBA (B, 4, S, S) in 0..1.

        Returns:
            fine (B, f, S, S), mid (B, m, S/4, S/4), coarse (B, W, S/8, S/8) and pooled (B, W).
        """
        x = torch.cat([(2 * rgba[:, :3] - 1) * rgba[:, 3:], 2 * rgba[:, 3:] - 1], 1)
        fine = self.fine(x)
        mid = self.stem(fine)
        coarse = self.down(mid) + self.place
        pooled = self.pool(coarse.mean((-1, -2)))
        for block in self.blocks:
            coarse = block(coarse, pooled)
        return fine, mid, coarse, pooled


class MultiViewTrunk(nn.Module):
    """Pairs, `depth` of them, of residual and multi-view transformer blocks at one resolution."""

    def __init__(self, width: int, depth: int, heads: int, context_dim: int, hidden: int) -> None:
        super().__init__()
        self.residual = nn.ModuleList(ResidualBlock(width, width, hidden) for _ in range(depth))
        self.transformer = nn.ModuleList(
            MultiViewTransformer(width, heads, context_dim) for _ in range(depth)
        )

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Maps x (B, V, W, h, w), emb (B, V, W), context (B, M, Dc) -> (B, V, W, h, w)."""
        B, V, W, h, w = x.shape
        for residual, transformer in zip(self.residual, self.transformer, strict=True):
            x = residual(x.flatten(0, 1), emb.flatten(0, 1))  # (B*V, W, h, w)
            tokens = x.unflatten(0, (B, V)).permute(0, 1, 3, 4, 2).reshape(B, V * h * w, W)
            tokens = transformer(tokens, context)
            x = tokens.reshape(B, V, h, w, W).permute(0, 1, 4, 2, 3)
        return x
