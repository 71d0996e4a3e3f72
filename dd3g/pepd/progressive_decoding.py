"""Phase 2, progressive decoding: positions first, then scale and rotation, then opacity and colour.

Gaussian attributes are coupled, so each group is decoded from tokens that have seen the groups before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.nn import MultiViewTransformer, fourier

CHANNELS = {"position": 4, "scale": 3, "rotation": 4, "opacity": 1, "color": 3}
ORDERS: dict[str, list[tuple[str, ...]]] = {
    "progressive": [("position",), ("scale", "rotation"), ("opacity", "color")],
    "swapped": [("opacity", "color"), ("scale", "rotation"), ("position",)],
    "one_shot": [("position", "scale", "rotation", "opacity", "color")],
}


@dataclass
class Bounds:
    """Ranges of the activations; a bounded scale was worth 3 dB over an exponential one in GRM."""

    depth_near: float = 0.6  # camera depth of a Gaussian's anchor, world units
    depth_far: float = 2.2
    depth_start: float = 1.3  # mean surface depth of objects in the house rig
    offset: float = 0.08  # largest shift from the ray, world units
    scale_min: float = 0.003
    scale_max: float = 0.065


@dataclass
class Frame:
    """Tokens of one kind of frame and what is known at each of their Gaussians."""

    tokens: Tensor  # (B, V, W, h, w)
    prior: Tensor  # (B, V, P, S, S) maps at the Gaussians' resolution; first four: corresponding straight RGBA
    cameras: Cameras  # (B, V)
    gated: bool = False  # nothing may stand where the prior's alpha is zero


class PixelHead(nn.Module):
    """Tokens -> attribute channels at the Gaussians' resolution, seeing the prior maps and all earlier groups."""

    def __init__(self, width: int, expansion: int, prior: int, earlier: int, out: int, hidden: int) -> None:
        super().__init__()
        lifted = max(8, width // 12)
        self.lift = nn.Sequential(
            nn.Conv2d(width, lifted * expansion**2, 1), nn.PixelShuffle(expansion), nn.SiLU()
        )
        self.mix = nn.Conv2d(lifted + prior + earlier, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, out, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, maps: list[Tensor]) -> Tensor:
        """tokens (N, W, h, w), maps (N, ., S, S) -> (N, out, S, S)."""
        return self.out(F.silu(self.mix(torch.cat([self.lift(tokens), *maps], 1))))


class Feedback(nn.Module):
    """Brings what a tap decoded back to the tokens: Fourier features of the raw channels, averaged per token."""

    def __init__(self, channels: int, width: int, expansion: int, bands: int = 2) -> None:
        super().__init__()
        self.expansion, self.bands = expansion, bands
        self.project = nn.Conv2d(channels * (1 + 2 * bands) * 4, width, 1)

    def forward(self, raw: Tensor) -> Tensor:
        """raw (N, c, S, S) -> (N, W, h, w)."""
        half = F.avg_pool2d(raw, self.expansion // 2)  # (N, c, 2h, 2w): a 2x2 layout is kept per token
        features = fourier(half.movedim(1, -1), self.bands).movedim(-1, 1)
        return self.project(F.pixel_unshuffle(features, 2))


class ProgressiveDecoding(nn.Module):
    """Blocks of attention over all tokens with a tap after each group of blocks.

    Args:
        width: token width.
        heads: attention heads.
        blocks: blocks before each tap; summed up when everything is decoded at once.
        order: "progressive", or the ablations "swapped" and "one_shot".
        expansions: Gaussians per token side, for imagined and for copied frames (None: no copied frame).
        priors: channels of the prior maps of both kinds.
        head_hidden: width of the pixel heads.
        detach_taps: stop the gradient of later groups at the earlier ones' values.
        bounds: ranges of the activations.
        scale_starts: standard deviation at which Gaussians of either kind start, world units.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        blocks: tuple[int, int, int],
        order: Literal["progressive", "swapped", "one_shot"],
        expansions: tuple[int, int | None],
        priors: tuple[int, int],
        head_hidden: int,
        detach_taps: bool,
        bounds: Bounds,
        scale_starts: tuple[float, float],
    ) -> None:
        super().__init__()
        self.groups, self.detach_taps, self.bounds, self.scale_starts = (
            ORDERS[order],
            detach_taps,
            bounds,
            scale_starts,
        )
        counts = blocks if len(self.groups) == 3 else (sum(blocks),)
        kinds = [(e, p) for e, p in zip(expansions, priors, strict=True) if e is not None]
        self.blocks = nn.ModuleList(
            nn.ModuleList(MultiViewTransformer(width, heads) for _ in range(n)) for n in counts
        )
        self.heads, self.feedback = nn.ModuleList(), nn.ModuleList()
        earlier = 0
        for group in self.groups:
            out = sum(CHANNELS[a] for a in group)
            self.heads.append(
                nn.ModuleList(PixelHead(width, e, p, earlier, out, head_hidden) for e, p in kinds)
            )
            self.feedback.append(nn.ModuleList(Feedback(out, width, e) for e, _ in kinds))
            earlier += out

    def forward(self, frames: list[Frame]) -> list[Gaussians]:
        """Decode all frames together.

        Returns:
            One (B, V * S * S) set of Gaussians per kind of frame, pixel by pixel, row-major.
        """
        shapes = [f.tokens.shape for f in frames]  # (B, V, W, h, w)
        maps = [[f.prior.flatten(0, 1)] for f in frames]
        x = torch.cat([f.tokens.permute(0, 1, 3, 4, 2).flatten(1, 3) for f in frames], 1)  # (B, L, W)
        raw: list[dict[str, Tensor]] = [{} for _ in frames]
        for g, group in enumerate(self.groups):
            for block in self.blocks[g]:
                x = block(x)
            parts = x.split([V * h * w for _, V, _, h, w in shapes], 1)
            grids = [p.reshape(B * V, h, w, W).movedim(-1, 1) for p, (B, V, W, h, w) in zip(parts, shapes, strict=True)]
            fed = []
            for k, grid in enumerate(grids):
                out = self.heads[g][k](grid, maps[k])  # (B*V, c, S, S)
                raw[k].update(zip(group, out.split([CHANNELS[a] for a in group], 1), strict=True))
                told = out.detach() if self.detach_taps else out
                maps[k].append(told)
                if g + 1 < len(self.groups):
                    B, V, W, h, w = shapes[k]
                    back = self.feedback[g][k](told)
                    fed.append(back.unflatten(0, (B, V)).permute(0, 1, 3, 4, 2).flatten(1, 3))
            if fed:
                x = x + torch.cat(fed, 1)
        return [
            activate(r, f, self.bounds, start)
            for r, f, start in zip(raw, frames, self.scale_starts, strict=False)
        ]


def activate(raw: dict[str, Tensor], frame: Frame, bounds: Bounds, scale_start: float) -> Gaussians:
    """Raw channels (B*V, c, S, S) -> Gaussians (B, V*S*S), anchored on the rays of the frame's pixels.

    Zero channels mean: depth `depth_start`, on the ray, round at `scale_start`, the prior's opacity and colour.
    """
    B, V = frame.tokens.shape[:2]
    b = bounds

    def per_gaussian(x: Tensor) -> Tensor:
        return x.float().unflatten(0, (B, V)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, V*S*S, c)

    size = frame.prior.shape[-1]
    origins, directions = frame.cameras.resized(size).rays()  # (B, V, 1, 1, 3), (B, V, S, S, 3)
    position = per_gaussian(raw["position"])
    depth = interval(position[..., :1], b.depth_near, b.depth_far, b.depth_start)
    means = origins.expand_as(directions).flatten(1, 3) + depth * directions.flatten(1, 3)
    means = means + b.offset * position[..., 1:].tanh()

    scales = interval(per_gaussian(raw["scale"]), b.scale_min, b.scale_max, scale_start)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], device=means.device)
    quats = F.normalize(per_gaussian(raw["rotation"]) + identity, dim=-1)

    prior = per_gaussian(frame.prior[:, :, :4].flatten(0, 1))
    rgb, alpha = prior[..., :3].clamp(0.02, 0.98), prior[..., 3]
    opacities = (per_gaussian(raw["opacity"])[..., 0] + 6 * alpha - 3).sigmoid()
    if frame.gated:
        opacities = opacities * alpha
    colors = (per_gaussian(raw["color"]) + rgb.logit()).sigmoid()
    return Gaussians(means, quats, scales, opacities, colors)


def interval(x: Tensor, low: float, high: float, start: float) -> Tensor:
    """Sigmoid into (low, high) that gives `start` at zero."""
    share = (start - low) / (high - low)
    return low + (high - low) * (x + math.log(share / (1 - share))).sigmoid()
