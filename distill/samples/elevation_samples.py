"""Samples of rendered objects: one view as a picture that was framed by hand, and its elevation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from dd3g.pepd.elevation import HIGHEST, LOWEST, SIZE, framed
from dd3g.pepd.frustum import resize
from dd3g.training import Batch, generator_for
from distill.samples.render_samples import StyleShares, chance, pick
from distill.samples.renders import described

ROOM = 6  # degrees around a drawn elevation in which a view may lie; without one it is the nearest


@dataclass(frozen=True)
class ElevationSample(Batch):
    """One sample, or a batch of them with a leading B in both fields."""

    seen: Tensor  # (3, s, s), see `framed`
    elevation: Tensor  # () degrees


@dataclass
class ElevationDataset:
    """Samples by index from rendered objects."""

    objects: Any  # `RenderedObjects`, `UnpackedRenders`
    seed: int  # of the run
    members: InitVar[Sequence[int]]  # indices of the objects to draw from
    scan_fraction: float = 0.5  # share of scans and PBR objects
    shape_fraction: float = 0.0  # share of untextured shapes with made-up textures

    def __post_init__(self, members: Sequence[int]) -> None:
        found = described(self.objects, members)
        self.styles = StyleShares(found, self.scan_fraction, self.shape_fraction)

    def __len__(self) -> int:
        """Number of objects that samples are drawn from."""
        return len(self.styles)

    def __getitem__(self, index: int) -> ElevationSample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        return elevation_sample(self.objects[self.styles.draw(g)], g)


def elevation_sample(item: Any, g: torch.Generator, plain: bool = False) -> ElevationSample:
    """A view of an object, elevations drawn evenly as far as it has them.

    Args:
        item: a rendered object.
        g: draws.
        plain: leave out changes of colours, frame and side.
    """
    elevations = torch.tensor(item.meta["elevation"])
    aim = LOWEST + (HIGHEST - LOWEST) * torch.rand((), generator=g)
    away = (elevations - aim).abs()
    near = (away <= max(ROOM, float(away.min()))).nonzero()[:, 0]
    view = int(near[pick(len(near), g)])
    picture = resize(item.rgba[view][None].float() / 255, SIZE)[0]
    if plain:
        seen = framed(picture)
    else:
        picture = recoloured(picture.flip(-1) if chance(0.5, g) else picture, g)
        fill, x, y, roll = torch.rand(4, generator=g).tolist()
        shift = torch.tensor([x, y]) / 10 - 0.05
        seen = framed(picture, 0.65 + 0.25 * fill, shift, 0.1 * roll - 0.05)
    return ElevationSample(seen, elevations[view].float())


def recoloured(rgba: Tensor, g: torch.Generator) -> Tensor:
    """A straight picture (4, S, S) whose channels are mixed, most of the time, and darkened or brightened."""
    mix = torch.eye(3)
    if chance(0.7, g):
        mix = mix + 0.25 * torch.randn(3, 3, generator=g)
        mix = mix / mix.sum(1, keepdim=True).clamp(min=0.5)
    gamma = float(torch.exp(torch.rand((), generator=g) - 0.5))
    rgb = torch.einsum("ij,jhw->ihw", mix, rgba[:3]).clamp(0, 1) ** gamma
    return torch.cat([rgb, rgba[3:]])
