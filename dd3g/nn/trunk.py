"""The constant-resolution multi-view trunk, the picture encoder, and the copy prior that links the two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dd3g.nn.blocks import MultiViewTransformer, ResidualBlock


def correspond(features: Tensor, azimuths: Tensor) -> Tensor:
    """Spread the picture's map to other views of an orbit by what usually corresponds.

    Views that face the same way as the input get the map itself, views from behind get it mirrored, and views
    from the side get each row's mean: at one elevation a point stays near its image row, and nothing more is
    known of its column. Angles between blend the three with cos and |sin| of the azimuth.

    Args:
        features: (B, C, h, w) map of the input picture.
        azimuths: (B, V) radians from the input view.

    Returns:
        (B, V, C, h, w).
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
    """Pairs of residual and multi-view transformer blocks at one resolution.

    Args:
        width: channels.
        depth: number of pairs.
        heads: attention heads.
        context_dim: width of the picture's tokens.
        hidden: inner width of the residual blocks.
    """

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
