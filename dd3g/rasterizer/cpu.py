"""The CPU engine: project, bin and blend in numba behind torch's autograd.

One stable sort by depth for each image, then a counting pass and a fill: every tile lists its Gaussians front
to back without a sort of its own. A Gaussian owns one row of the gradient buffer for each tile it touches, so
tiles write without atomics, and rows are added up in a fixed order whatever the number of threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.numba_setup import njit, prange, turn
from dd3g.rasterizer.cpu_blending import HEAD, TILE, blend, blend_backward
from dd3g.rasterizer.cpu_projection import project_fused
from dd3g.rasterizer.projection import project

CHUNK = 256  # Gaussians that one task gathers


def rasterize_batch(gaussians: Gaussians, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor]:
    """Blend Gaussians, batch (B,), for cameras, batch (B, V), both float32 or float64, on the CPU.

    Returns:
        (B, V, C + 1, H, W) colours and depth over black, and (B, V, 1, H, W) alpha.
    """
    if torch.is_grad_enabled() and (cameras.viewmats.requires_grad or cameras.Ks.requires_grad):
        with torch.autocast("cpu", enabled=False):
            projected = project(gaussians, cameras, antialiased)
    else:
        projected = project_fused(gaussians, cameras, antialiased)
    return Blend.apply(gaussians.colors, cameras.width, cameras.height, *projected)


class Blend(torch.autograd.Function):
    """Front-to-back blending of projected Gaussians (Kerbl et al. 2023, eq. 3)."""

    @staticmethod
    def forward(
        ctx: Any, colors: Tensor, width: int, height: int, *projected: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sort, bin and draw the fields of `projection.Projection` (B, V, N, ...) in colours (B, N, C)."""
        B, V, N = projected[0].shape[:3]
        arrays = [t.detach().contiguous().numpy().reshape(B * V, N, *t.shape[3:]) for t in projected]
        bins = bin_splats(arrays, colors.detach().contiguous().numpy(), width, height)
        image = np.zeros((B * V, colors.shape[-1] + 1, height, width), bins.splats.dtype)
        left = np.ones((B * V, height, width), bins.splats.dtype)  # transmittance
        with turn:
            blend(bins.splats, bins.isects, bins.tiles, image, left)
        shown = torch.from_numpy(image.reshape(B, V, *image.shape[1:]))
        ctx.save_for_backward(shown)
        ctx.bins, ctx.left = bins, left
        return shown, torch.from_numpy(1 - left.reshape(B, V, 1, height, width))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of colors, means2d, conics, depths and opacities."""
        bins: Bins = ctx.bins
        B, V = v_image.shape[:2]
        images, N = bins.rank.shape
        image = ctx.saved_tensors[0].numpy().reshape(images, *v_image.shape[2:])
        v_isects = np.zeros((len(bins.isects), bins.splats.shape[1]), image.dtype)
        colors = np.zeros((B, N, image.shape[1] - 1), image.dtype)
        # Of means2d, conics, depths and opacities.
        projected = [np.zeros((images, N, *last), image.dtype) for last in ((2,), (3,), (), ())]
        with turn:
            blend_backward(
                bins.splats, bins.isects, bins.tiles, image, ctx.left,
                v_image.contiguous().numpy().reshape(image.shape),
                v_alpha.contiguous().numpy().reshape(ctx.left.shape), v_isects,
            )  # fmt: skip
            _sum_gradients(v_isects, bins.rank, bins.rows, colors, *projected)
        by_view = (torch.from_numpy(v.reshape(B, V, *v.shape[1:])) for v in projected)
        return torch.from_numpy(colors), None, None, *by_view, None


class Bins(NamedTuple):
    """Visible splats of I images and which tiles they touch."""

    # (M, HEAD + K) by image, then by depth. K is the C colours and the depth, zero-padded to a multiple of 4
    splats: np.ndarray
    rank: np.ndarray  # (I, N) row of each Gaussian in `splats`, -1 if it is not visible
    rows: np.ndarray  # (M + 1,) first row of each splat in the gradient buffer
    # (L, 2) row in `splats` and row in the gradient buffer, by image, then tile, then depth
    isects: np.ndarray
    tiles: np.ndarray  # (I * tiles + 1,) first intersection of each tile, row by row


def bin_splats(projected: list[np.ndarray], colors: np.ndarray, width: int, height: int) -> Bins:
    """Sort and bin every splat whose box holds a pixel centre.

    The fields of `projection.Projection` are (I, N, ...), colours (B, N, C), and I is a multiple of B.
    """
    means2d, _, depths, _, extents = projected
    images, N = depths.shape
    visible, touched = np.zeros(images + 1, np.int64), np.zeros(images + 1, np.int64)
    with turn:
        _count(means2d, extents, width, height, visible, touched)
    visible, touched = visible.cumsum(), touched.cumsum()
    K = -(-(colors.shape[-1] + 1) // 4) * 4
    bins = Bins(
        splats=np.zeros((visible[-1], HEAD + K), depths.dtype),
        rank=np.full((images, N), -1, np.int32),
        rows=np.full(visible[-1] + 1, touched[-1]),
        isects=np.empty((touched[-1], 2), np.int32),
        tiles=np.full(images * -(-width // TILE) * -(-height // TILE) + 1, touched[-1]),
    )
    # Positive floats sort like the integers that share their bits.
    keys = depths.view(np.uint32 if depths.dtype == np.float32 else np.uint64)
    with turn:
        _fill(*projected, keys, colors, width, height, visible, touched, *bins)
    return bins


@njit(cache=True, nogil=True)
def _tile_box(center: Any, extent: Any, width: int, height: int) -> tuple[int, int, int, int]:
    """First x, last x, first y, last y of the tiles with a pixel centre in the box; first > last if none."""
    x, y, hx, hy = center[0] - 0.5, center[1] - 0.5, extent[0], extent[1]
    if not hx > 0:
        return 1, 0, 1, 0
    x0, x1 = math.ceil(max(x - hx, 0.0)), math.floor(min(x + hx, width - 1.0))
    y0, y1 = math.ceil(max(y - hy, 0.0)), math.floor(min(y + hy, height - 1.0))
    if x0 > x1 or y0 > y1:
        return 1, 0, 1, 0
    return int(x0) // TILE, int(x1) // TILE, int(y0) // TILE, int(y1) // TILE


@njit(cache=True, nogil=True, parallel=True)
def _count(means2d: Any, extents: Any, width: int, height: int, visible: Any, touched: Any) -> None:
    for i in prange(means2d.shape[0]):
        splats, isects = 0, 0
        for n in range(means2d.shape[1]):
            x0, x1, y0, y1 = _tile_box(means2d[i, n], extents[i, n], width, height)
            if x0 <= x1:
                splats += 1
                isects += (x1 - x0 + 1) * (y1 - y0 + 1)
        visible[i + 1], touched[i + 1] = splats, isects


@njit(cache=True, nogil=True)
def _sort_by_key(keys: Any, index: Any) -> None:
    """Stable radix sort of `index` by the unsigned keys[index], 11 bits a pass."""
    low, high = keys[index[0]], keys[index[0]]
    for n in index:
        low, high = min(low, keys[n]), max(high, keys[n])
    source, target = index, np.empty_like(index)
    shift = 0
    while shift < 64 and (high - low) >> np.uint64(shift) > 0:
        first = np.zeros(2049, np.int64)
        for n in source:
            first[(((keys[n] - low) >> np.uint64(shift)) & np.uint64(2047)) + np.uint64(1)] += 1
        for d in range(2048):
            first[d + 1] += first[d]
        for n in source:
            d = ((keys[n] - low) >> np.uint64(shift)) & np.uint64(2047)
            target[first[d]] = n
            first[d] += 1
        source, target = target, source
        shift += 11
    for n in range(len(index)):  # a slice would cost two seconds of compiling
        index[n] = source[n]


@njit(cache=True, nogil=True, parallel=True)
def _fill(
    means2d: Any, conics: Any, depths: Any, opacities: Any, extents: Any, keys: Any, colors: Any,
    width: int, height: int, visible: Any, touched: Any,
    splats: Any, rank: Any, rows: Any, isects: Any, tiles: Any,
) -> None:  # fmt: skip
    images, N = depths.shape
    C, views = colors.shape[2], images // max(1, colors.shape[0])
    across, down = -(-width // TILE), -(-height // TILE)
    for i in prange(images):
        m0 = visible[i]
        order = np.empty(visible[i + 1] - m0, np.int32)
        box = np.empty((N, 4), np.int16)  # tiles touched by each Gaussian
        seen = 0
        for n in range(N):
            x0, x1, y0, y1 = _tile_box(means2d[i, n], extents[i, n], width, height)
            if x0 <= x1:
                box[n, 0], box[n, 1], box[n, 2], box[n, 3] = x0, x1, y0, y1
                order[seen] = n
                seen += 1
        if seen > 1:
            _sort_by_key(keys[i], order)

        first = np.zeros(across * down + 1, np.int64)
        row = touched[i]
        for k in range(seen):
            n, m = order[k], m0 + k
            rank[i, n] = m
            splats[m, 0], splats[m, 1] = means2d[i, n, 0], means2d[i, n, 1]
            splats[m, 2], splats[m, 3], splats[m, 4] = conics[i, n, 0], conics[i, n, 1], conics[i, n, 2]
            splats[m, 5], splats[m, 6] = opacities[i, n], extents[i, n, 1]
            for c in range(C):
                splats[m, HEAD + c] = colors[i // views, n, c]
            splats[m, HEAD + C] = depths[i, n]
            rows[m] = row
            for ty in range(box[n, 2], box[n, 3] + 1):
                for tx in range(box[n, 0], box[n, 1] + 1):
                    first[ty * across + tx + 1] += 1
                    row += 1
        first[0] = touched[i]
        for t in range(across * down):
            first[t + 1] += first[t]
            tiles[i * across * down + t] = first[t]
        for k in range(seen):
            n = order[k]
            row = rows[m0 + k]
            for ty in range(box[n, 2], box[n, 3] + 1):
                for tx in range(box[n, 0], box[n, 1] + 1):
                    t = ty * across + tx
                    isects[first[t], 0], isects[first[t], 1] = m0 + k, row
                    first[t] += 1
                    row += 1


@njit(cache=True, nogil=True, parallel=True)
def _sum_gradients(
    v_isects: Any, rank: Any, rows: Any,
    v_colors: Any, v_means2d: Any, v_conics: Any, v_depths: Any, v_opacities: Any,
) -> None:  # fmt: skip
    B, N, C = v_colors.shape
    views = rank.shape[0] // max(1, B)
    chunks = -(-N // CHUNK)
    for task in prange(B * chunks):
        b = task // chunks
        total = np.empty(v_isects.shape[1], v_isects.dtype)
        for n in range(task % chunks * CHUNK, min(N, (task % chunks + 1) * CHUNK)):
            for i in range(b * views, (b + 1) * views):
                m = rank[i, n]
                if m >= 0:
                    total[:] = 0
                    for row in range(rows[m], rows[m + 1]):
                        for j in range(len(total)):
                            total[j] += v_isects[row, j]
                    v_means2d[i, n, 0], v_means2d[i, n, 1] = total[0], total[1]
                    v_conics[i, n, 0], v_conics[i, n, 1], v_conics[i, n, 2] = total[2], total[3], total[4]
                    v_opacities[i, n], v_depths[i, n] = total[5], total[HEAD + C]
                    for c in range(C):
                        v_colors[b, n, c] += total[HEAD + c]
