"""Gaussian splatting tile by tile with torch autograd: the baseline that needs no kernel."""

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer.projection import Projection, project

TILE = 8  # the fastest of 8, 16 and 32


def tile_render(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """One object (N,) seen by cameras (V,) -> (V, C + 2, H, W): colours over black, depth, alpha."""
    batched = Gaussians(*(getattr(gaussians, k)[None] for k in _FIELDS))
    p = project(batched, cameras[None])
    return torch.stack(
        [_image(Projection(*(x[0, v] for x in p)), gaussians.colors, cameras) for v in range(len(cameras))]
    )


_FIELDS = ("means", "quats", "scales", "opacities", "colors")


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
