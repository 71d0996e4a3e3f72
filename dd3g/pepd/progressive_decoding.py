"""Phase 2, progressive decoding: positions first, then scale and rotation, then opacity and colour.

Gaussian attributes are coupled, so each group is decoded from tokens that have seen the groups before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians, matrix_to_quaternion, quaternion_multiply
from dd3g.nn.blocks import MultiViewTransformer, fourier
from dd3g.pepd.config import Bounds, GeneratorConfig
from dd3g.pepd.point_transformer import PointTransformer, nearest

CHANNELS = {"position": 4, "scale": 3, "rotation": 4, "opacity": 1, "color": 3}
ORDERS: dict[str, list[tuple[str, ...]]] = {
    "progressive": [("position",), ("scale", "rotation"), ("opacity", "color")],
    "swapped": [("opacity", "color"), ("scale", "rotation"), ("position",)],
    "one_shot": [("position", "scale", "rotation", "opacity", "color")],
}


@dataclass
class Frame:
    """Tokens of one kind of frame and what is known at each of their Gaussians."""

    tokens: Tensor  # (B, V, W, h, w)
    prior: Tensor  # (B, V, P, S, S) maps at the Gaussians' resolution; first the corresponding straight RGBA
    cameras: Cameras  # (B, V)
    gated: bool = False  # nothing may stand where the prior's alpha is zero
    further: float = 0.0  # by how much its cameras stand further from the origin than usual, world units

    @property
    def axes(self) -> Tensor:
        """(B, V, 3, 3) axes of the cameras in the world, as columns."""
        return self.cameras.viewmats[..., :3, :3].mT


class PixelHead(nn.Module):
    """Tokens -> channels of one group at the Gaussians' resolution; sees prior maps and earlier groups."""

    def __init__(self, width: int, expansion: int, prior: int, earlier: int, out: int, hidden: int) -> None:
        super().__init__()
        lifted = max(8, width // 12)
        self.lift = nn.Sequential(
            nn.Conv2d(width, lifted * expansion**2, 1), nn.PixelShuffle(expansion), nn.SiLU()
        )
        self.mix = nn.Conv2d(lifted + prior + earlier, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, out, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.get_parameter("bias"))

    def forward(self, tokens: Tensor, maps: list[Tensor]) -> Tensor:
        """Tokens (N, W, h, w) and maps (N, ., S, S) -> (N, out, S, S)."""
        return self.out(F.silu(self.mix(torch.cat([self.lift(tokens), *maps], 1))))


class Feedback(nn.Module):
    """Brings what a tap decoded back to the tokens: Fourier features of raw channels, pooled per token."""

    def __init__(self, channels: int, width: int, expansion: int, bands: int = 2) -> None:
        super().__init__()
        self.expansion, self.bands = expansion, bands
        self.project = nn.Conv2d(channels * (1 + 2 * bands) * 4, width, 1)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw channels (N, c, S, S) -> (N, W, h, w)."""
        half = F.avg_pool2d(raw, self.expansion // 2)  # (N, c, 2h, 2w): a 2x2 layout is kept per token
        features = fourier(half.movedim(1, -1), self.bands).movedim(-1, 1)
        return self.project(F.pixel_unshuffle(features, 2))


class Blocks(nn.ModuleList):
    """Attention over all tokens, or with neighbours among the tokens nearest to each."""

    def forward(self, x: Tensor, near: tuple[Tensor, Tensor] | None) -> Tensor:
        """Tokens (B, L, W) -> (B, L, W)."""
        for block in self:
            x = block(x) if near is None else block(x, *near)
        return x


class Each(nn.ModuleList):
    """One module for each kind of frame."""

    def forward(self, *columns: Sequence[Any]) -> list[Tensor]:
        """The result of each module for its row of the columns."""
        return [module(*row) for module, *row in zip(self, *columns, strict=True)]


class ProgressiveDecoding(nn.Module):
    """Stages of attention over all tokens, each with a tap that decodes a group of attributes.

    With `pt_mode` "knn" the blocks behind the position tap attend only to the tokens whose decoded positions
    are nearest.

    Args:
        config: shape of the generator; `blocks` are summed up when everything is decoded at once.

    Raises:
        ValueError: unknown order, or a start out of bounds.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        c = config
        self.neighbours = c.neighbours if c.pt_mode == "knn" else 0
        if c.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {c.order!r}")
        self.groups, self.detach_taps, self.bounds = ORDERS[c.order], c.detach_taps, c.bounds
        self.kinds, bounds = c.frame_kinds, c.bounds
        # Says now what the first picture would stumble over.
        widths = [kind.scale_start for kind in self.kinds]
        scales = [("scale_min", "scale_max", s) for w in widths for s in (w, bounds.length_start(w))]
        for low, high, start in [*scales, ("depth_near", "depth_far", bounds.depth_start)]:
            least, most = getattr(bounds, low), getattr(bounds, high)
            if not least < start < most:
                raise ValueError(
                    f"generator: bounds.{low} {least:g} and bounds.{high} {most:g} must lie on either side "
                    f"of {start:.3g}, where training begins"
                )

        def block(stage: int) -> nn.Module:
            nearby = self.neighbours and stage
            return PointTransformer(c.width) if nearby else MultiViewTransformer(c.width, c.heads)

        counts = c.blocks if len(self.groups) == 3 else (sum(c.blocks),)
        self.blocks = nn.ModuleList(Blocks(block(g) for _ in range(n)) for g, n in enumerate(counts))
        self.heads, self.feedback = nn.ModuleList(), nn.ModuleList()
        earlier = 0
        for group in self.groups:
            out = sum(CHANNELS[a] for a in group)
            sizes = [(k.expansion, k.prior, earlier, out, c.head_hidden) for k in self.kinds]
            self.heads.append(Each(PixelHead(c.width, *own) for own in sizes))
            if group is not self.groups[-1]:
                self.feedback.append(Each(Feedback(out, c.width, k.expansion) for k in self.kinds))
            earlier += out

    def forward(self, frames: list[Frame]) -> list[Gaussians]:
        """Decode all frames together.

        Returns:
            One (B, V * S * S) set of Gaussians per kind of frame, pixel by pixel, row-major.
        """
        maps = [[f.prior.flatten(0, 1)] for f in frames]
        raw: list[dict[str, Tensor]] = [{} for _ in frames]
        x = to_tokens([f.tokens for f in frames])  # (B, L, W)
        near = None
        stages = zip_longest(self.groups, self.blocks, self.heads, self.feedback)
        for group, blocks, heads, feedback in stages:
            x = blocks(x, near)
            grids = to_grids(x, [f.tokens for f in frames])
            outs = heads([grid.flatten(0, 1) for grid in grids], maps)  # (B*V, c, S, S)
            for k, out in enumerate(outs):
                raw[k].update(zip(group, out.split([CHANNELS[a] for a in group], 1), strict=True))
                maps[k].append(out.detach() if self.detach_taps else out)
            if feedback is not None:
                returned = feedback([m[-1] for m in maps])
                x = x + to_tokens([t.view_as(grid) for t, grid in zip(returned, grids, strict=True)])
            if self.neighbours and near is None:
                near = nearest(self.token_positions(raw, frames), self.neighbours)
        return [
            activate(r, f, self.bounds, kind.scale_start)
            for r, f, kind in zip(raw, frames, self.kinds, strict=True)
        ]

    def token_positions(self, raw: list[dict[str, Tensor]], frames: list[Frame]) -> Tensor:
        """(B, L, 3) mean world position of each token's Gaussians."""
        found = []
        for r, f in zip(raw, frames, strict=True):
            means = locate(r["position"], f, self.bounds).unflatten(1, (-1, *f.prior.shape[-2:]))
            means = means.movedim(-1, 2)  # (B, V, 3, S, S)
            found.append(F.avg_pool2d(means.flatten(0, 1), f.prior.shape[-1] // f.tokens.shape[-1]))
            found[-1] = found[-1].unflatten(0, means.shape[:2])
        positions = to_tokens(found)
        return positions.detach() if self.detach_taps else positions


def to_tokens(grids: list[Tensor]) -> Tensor:
    """Grids (B, V, C, h, w) of several kinds -> one sequence (B, L, C), view by view, row-major."""
    return torch.cat([g.permute(0, 1, 3, 4, 2).flatten(1, 3) for g in grids], 1)


def to_grids(x: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The inverse of `to_tokens`, with the views and sides of `like`."""
    sizes = [(g.shape[1], *g.shape[3:]) for g in like]  # (V, h, w)
    parts = x.split([math.prod(s) for s in sizes], 1)
    return [p.unflatten(1, s).movedim(-1, 2) for p, s in zip(parts, sizes, strict=True)]


def locate(raw: Tensor, frame: Frame, bounds: Bounds) -> Tensor:
    """Raw channels (B*V, 4, S, S) -> means (B, V*S*S, 3) world: on the rays of the pixels, plus an offset."""
    position = _per_gaussian(raw, frame)
    depth = interval(position[..., :1], bounds.depth_near, bounds.depth_far, bounds.depth_start)
    depth = depth + frame.further
    cameras = frame.cameras.resized(frame.prior.shape[-1])
    origins, directions = cameras.rays()  # (B, V, 1, 1, 3), (B, V, S, S, 3)
    anchors = origins.expand_as(directions).flatten(1, 3) + depth * directions.flatten(1, 3)
    shift = position[..., 1:].tanh().unflatten(1, (len(frame.axes[0]), -1))  # (B, V, S*S, 3) camera axes
    return anchors + bounds.offset * (shift @ frame.axes.mT).flatten(1, 2)


def activate(raw: dict[str, Tensor], frame: Frame, bounds: Bounds, scale_start: float) -> Gaussians:
    """Raw channels (B*V, c, S, S) -> Gaussians (B, V*S*S), anchored on the rays of the frame's pixels.

    Offsets, rotations and scales are along the axes of the frame's camera, so that one head means the same in
    every frame. Zero means: depth `depth_start`, on the ray, `scale_start` wide and `stretch` times as long,
    the prior's opacity and colour.
    """
    means = locate(raw["position"], frame, bounds)
    starts = [scale_start, scale_start, bounds.length_start(scale_start)]
    parts = zip(_per_gaussian(raw["scale"], frame).split(1, -1), starts, strict=True)
    scales = torch.cat([interval(x, bounds.scale_min, bounds.scale_max, start) for x, start in parts], -1)
    # Renders at the training size are dilated by half a pixel, which hides gaps that larger pictures show:
    # a 3D smoothing filter closes them (Mip-Splatting, Yu et al. 2024, section 5.1).
    scales = (scales.square() + bounds.smoothing**2).sqrt()
    w, xyz = _per_gaussian(raw["rotation"], frame).split([1, 3], -1)
    local = F.normalize(torch.cat([w + 1, xyz], -1), dim=-1)  # the identity at zero
    axes = matrix_to_quaternion(frame.axes)[:, :, None]  # (B, V, 1, 4)
    quats = quaternion_multiply(axes, local.unflatten(1, (axes.shape[1], -1))).flatten(1, 2)

    prior = _per_gaussian(frame.prior[:, :, :4].flatten(0, 1), frame)
    rgb, alpha = prior[..., :3].clamp(0.02, 0.98), prior[..., 3]
    opacities = (_per_gaussian(raw["opacity"], frame)[..., 0] + 6 * alpha - 3).sigmoid()
    if frame.gated:
        opacities = opacities * alpha
    colors = (_per_gaussian(raw["color"], frame) + rgb.logit()).sigmoid()
    return Gaussians(means, quats, scales, opacities, colors)


def _per_gaussian(x: Tensor, frame: Frame) -> Tensor:
    """(B*V, c, S, S) -> (B, V*S*S, c) float32."""
    return to_tokens([x.float().unflatten(0, frame.tokens.shape[:2])])


def interval(x: Tensor, low: float, high: float, start: float) -> Tensor:
    """Sigmoid into (low, high) that gives `start`, strictly between them, at zero."""
    share = (start - low) / (high - low)
    return low + (high - low) * (x + math.log(share / (1 - share))).sigmoid()
