"""The CPU rasteriser, forward and backward, against a per-tile rasteriser on torch's autograd."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import rasterize
from dd3g.rasterizer.projection import Projection, project

# Gaussians, pixels per side, and how many times faster than torch tiles the CPU engine must be.
SCENES = ((16_384, 128, 8.0), (65_536, 256, 9.0))
TILE = 8  # of torch, the fastest of 8, 16 and 32


def race(count: int, size: int, floor: float, repeats: int) -> dict[str, Any]:
    """Median milliseconds of both engines on one scene, and the speed-up."""
    gaussians, camera = blob(count, size)
    leaves = list(vars(gaussians).values())
    weights = torch.randn(5, size, size, generator=torch.Generator().manual_seed(1))

    def timed(draw: Callable[[Gaussians, Cameras], Tensor]) -> tuple[float, float]:
        start = time.perf_counter()
        image = draw(gaussians, camera)
        drawn = time.perf_counter()
        torch.autograd.grad((image * weights).sum(), leaves)
        return 1e3 * (drawn - start), 1e3 * (time.perf_counter() - start)

    with torch.no_grad():
        difference = (_dd3g(gaussians, camera) - tile_render(gaussians, camera)).abs().mean().item()
    # In turns, so that a disturbance of the machine meets both; the first turn does not count.
    turns = [(timed(_dd3g), timed(tile_render)) for _ in range(repeats + 1)][1:]
    medians = np.median(turns, 0).tolist()
    ours, tiles = (dict(zip(("forward", "both"), parts, strict=True)) for parts in medians)
    return {
        "gaussians": count,
        "size": size,
        "dd3g": ours,
        "tiles": tiles,
        "speedup": tiles["both"] / ours["both"],
        "floor": floor,
        "mean_difference": difference,
    }


def blob(count: int, size: int) -> tuple[Gaussians, Cameras]:
    """A ball of Gaussians of about a pixel, radii of 3 to 7 px, filling the frame of one camera."""
    draw = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1)
    means = 0.55 * direction * torch.rand(count, 1, generator=draw) ** (1 / 3)
    pixel = RADIUS * 2 * torch.tan(torch.deg2rad(torch.tensor(FOVY / 2))) / size
    gaussians = Gaussians(
        means.requires_grad_(),
        torch.randn(count, 4, generator=draw).requires_grad_(),
        (1.2 * pixel * torch.exp(0.4 * torch.randn(count, 3, generator=draw))).requires_grad_(),
        torch.rand(count, generator=draw).requires_grad_(),
        torch.rand(count, 3, generator=draw).requires_grad_(),
    )
    return gaussians, Cameras.orbit([30.0], size=size)


def _dd3g(gaussians: Gaussians, camera: Cameras) -> Tensor:
    render = rasterize(gaussians, camera, background=0.0)
    return torch.cat([render.rgb, render.depth, render.alpha], 1)[0]


def tile_render(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """The baseline, which needs no kernel: splatting tile by tile by torch's autograd.

    One object (N,) seen by cameras (V,) -> (V, C + 2, H, W): colours over black, depth, alpha.
    """
    batched = Gaussians(*(x[None] for x in vars(gaussians).values()))
    p = project(batched, cameras[None])
    return torch.stack(
        [_image(Projection(*(x[0, v] for x in p)), gaussians.colors, cameras) for v in range(len(cameras))]
    )


def _image(p: Projection, colors: Tensor, cameras: Cameras) -> Tensor:
    W, H = cameras.width, cameras.height
    across, down = -(-W // TILE), -(-H // TILE)
    with torch.no_grad():
        tiles, owners = _intersections(p, W, H, across)
        counts = torch.bincount(tiles, minlength=across * down).tolist()
    features = torch.cat([colors, p.depths[:, None], torch.ones_like(p.depths)[:, None]], 1)  # (N, C + 2)
    packed = torch.cat([p.means2d, p.conics, p.opacities[:, None], features], 1)
    # One gather and one split for the whole image: backward then adds up once, not once a tile.
    splats = packed.index_select(0, owners).split(counts)
    lane = torch.arange(TILE, dtype=colors.dtype) + 0.5
    rows = []
    for ty in range(down):
        row = []
        for tx in range(across):
            x, y = tx * TILE + lane, ty * TILE + lane
            row.append(_tile(splats[ty * across + tx], x.repeat(TILE), y.repeat_interleave(TILE)))
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)[:, :H, :W]


def _intersections(p: Projection, W: int, H: int, across: int) -> tuple[Tensor, Tensor]:
    """Tile and Gaussian of each intersection, by tile and then by depth."""
    seen = (p.extents[:, 0] > 0).nonzero()[:, 0]
    seen = seen[torch.argsort(p.depths[seen], stable=True)]
    size = torch.tensor([W, H])
    low = (p.means2d[seen] - p.extents[seen] - 0.5).ceil().clamp(min=0).long() // TILE
    high = torch.minimum((p.means2d[seen] + p.extents[seen] - 0.5).floor().long(), size - 1) // TILE
    span = (high - low + 1).clamp(min=0)
    count = span.prod(-1)
    k = torch.arange(int(count.sum())) - torch.repeat_interleave(count.cumsum(0) - count, count)
    low, wide = low.repeat_interleave(count, 0), span[:, 0].repeat_interleave(count)
    tiles = (low[:, 1] + k // wide) * across + low[:, 0] + k % wide
    tiles, order = torch.sort(tiles, stable=True)
    return tiles, seen.repeat_interleave(count)[order]


def _tile(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(n, 6 + F) splats front to back on a tile -> (F, TILE, TILE)."""
    if not len(g):
        return g.new_zeros(g.shape[1] - 6, TILE, TILE)
    cx, cy, a, b, c, opacity = g[:, :6, None].unbind(1)  # (n, 1)
    dx, dy = cx - x, cy - y  # (n, TILE * TILE)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = torch.clamp(opacity * torch.exp(-sigma), max=0.999)
    alpha = alpha * (alpha >= 1 / 255)
    through = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(through[:1]), through[:-1]])
    weight = alpha * before * (through > 1e-4)
    return (g[:, 6:].T @ weight).unflatten(-1, (TILE, TILE))
