"""The CPU engine: tile-based blending and its gradient in numba.

Each 16x16 tile is drawn Gaussian by Gaussian over rows of 16 pixels, without branches, so that LLVM turns a row into
vector instructions. The backward pass walks front to back again: transmittance is then the same number as in the
forward pass, and what lies behind a Gaussian is one scalar a pixel, however many channels there are.
"""

from __future__ import annotations

import contextlib
import math
import threading
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.extending import overload
from torch import Tensor
from torch.autograd.function import once_differentiable

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterize.cpu_projection import project_fused
from dd3g.rasterize.projection import MIN_ALPHA, project

MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4
TILE = 16
PIXELS = TILE * TILE
CHECK_EVERY = 16  # Gaussians between two looks at whether a tile is finished
HEAD = 7  # columns of a splat before its features: x, y, conic xx, xy, yy, opacity, half height
CHUNK = 256  # Gaussians that one task gathers
U = (
    np.uint64
)  # numba adds a branch for negative indices, which breaks vectorisation, unless they are unsigned
# No nnan/ninf: NaN inputs must compare false and be skipped.
FAST = {"contract", "reassoc", "arcp", "nsz"}

try:
    from numba.np.ufunc import omppool  # noqa: F401

    numba.config.THREADING_LAYER = "omp"
    turn: Any = contextlib.nullcontext()
except ImportError:
    # Without OpenMP numba falls back to a pool that aborts the process on concurrent calls.
    turn = threading.Lock()

_polynomial = np.polynomial.Chebyshev.interpolate(np.exp, 6, domain=[-0.7, 0.0]).convert(
    kind=np.polynomial.Polynomial
)
E0, E1, E2, E3, E4, E5, E6 = (np.float32(c) for c in _polynomial.coef)


def exp_visible(x: float) -> float:
    """exp(x) for x in -5.6..0, below which alpha < 1/255: math.exp in float64, within 3e-7 and vectorised in float32."""
    return math.exp(x)


@overload(exp_visible, inline="always")
def _exp_visible(x: Any) -> Any:
    if x == numba.float32:

        def eighth_power(x: Any) -> Any:
            u = x * np.float32(0.125)
            e = E0 + u * (E1 + u * (E2 + u * (E3 + u * (E4 + u * (E5 + u * E6)))))
            e = e * e
            e = e * e
            return e * e

        return eighth_power

    def library(x: Any) -> Any:
        return math.exp(x)

    return library


def draw(gaussians: Gaussians, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor]:
    """Blend on the CPU.

    Args:
        gaussians: batch (B,), N each, float32 or float64.
        cameras: batch (B, V), same type.
        antialiased: compensate the dilation.

    Returns:
        (B, V, C + 1, H, W) colours and depth over black, and (B, V, 1, H, W) alpha.
    """
    moving = torch.is_grad_enabled() and (cameras.viewmats.requires_grad or cameras.Ks.requires_grad)
    projected = (project if moving else project_fused)(gaussians, cameras, antialiased)
    return Blend.apply(*projected, gaussians.colors, cameras.width, cameras.height)


class Blend(torch.autograd.Function):
    """Front-to-back blending of projected Gaussians (Kerbl et al. 2023, eq. 3)."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        depths: Tensor,
        opacities: Tensor,
        extents: Tensor,
        colors: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        """Sort, bin and draw.

        Args:
            ctx: autograd's context.
            means2d: (B, V, N, 2), as are the next four those of `projection.Projection`.
            conics: (B, V, N, 3).
            depths: (B, V, N).
            opacities: (B, V, N).
            extents: (B, V, N, 2).
            colors: (B, N, C).
            width: pixels.
            height: pixels.

        Returns:
            (B, V, C + 1, H, W) colours and depth, and (B, V, 1, H, W) alpha.
        """
        B, V, N = depths.shape
        C = colors.shape[-1]
        flat = [
            t.detach().reshape(B * V, N, *t.shape[3:]).contiguous().numpy()
            for t in (means2d, conics, depths, opacities, extents)
        ]
        values = colors.detach().contiguous().numpy()
        across, down = -(-width // TILE), -(-height // TILE)
        with turn:
            splats, owner, rank, slots, isects, tiles = _bin(*flat, values, V, width, height, across, down)
            image = np.zeros((B * V, C + 1, height, width), values.dtype)
            left = np.ones((B * V, height, width), values.dtype)
            _draw_all(splats, isects, tiles, image, left, across, down)
        shown = torch.from_numpy(image).view(B, V, C + 1, height, width)
        ctx.save_for_backward(shown)
        ctx.bins = (splats, rank, slots, isects, tiles, left)
        ctx.sizes = (B, V, N, C, across, down)
        return shown, torch.from_numpy(1 - left).view(B, V, 1, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means2d, conics, depths, opacities and colors; extents carry none."""
        splats, rank, slots, isects, tiles, left = ctx.bins
        B, V, N, C, across, down = ctx.sizes
        image = ctx.saved_tensors[0].numpy().reshape(B * V, C + 1, *left.shape[1:])
        v_image_ = v_image.contiguous().numpy().reshape(image.shape)
        v_alpha_ = v_alpha.contiguous().numpy().reshape(left.shape)
        real = splats.dtype
        v_isects = np.zeros((len(isects), splats.shape[1]), real)
        v_means2d, v_conics = np.zeros((B * V, N, 2), real), np.zeros((B * V, N, 3), real)
        v_depths, v_opacities = np.zeros((B * V, N), real), np.zeros((B * V, N), real)
        v_colors = np.zeros((B, N, C), real)
        with turn:
            _draw_all_backward(splats, isects, tiles, image, left, v_image_, v_alpha_, v_isects, across, down)
            _gather(v_isects, rank, slots, V, v_means2d, v_conics, v_depths, v_opacities, v_colors)
        shape = (B, V, N)
        return (
            torch.from_numpy(v_means2d).view(*shape, 2),
            torch.from_numpy(v_conics).view(*shape, 3),
            torch.from_numpy(v_depths).view(shape),
            torch.from_numpy(v_opacities).view(shape),
            None,
            torch.from_numpy(v_colors),
            None,
            None,
        )


def _bin(
    means2d: np.ndarray,
    conics: np.ndarray,
    depths: np.ndarray,
    opacities: np.ndarray,
    extents: np.ndarray,
    colors: np.ndarray,
    views: int,
    width: int,
    height: int,
    across: int,
    down: int,
) -> tuple[np.ndarray, ...]:
    """Visible splats of each image in depth order, and for each tile the splats that touch it, in that order.

    Returns:
        splats (M, HEAD + K), K = C + 1 features padded to a multiple of 4; `owner` is unused outside; rank (I, N)
        index into splats or -1; slots (M + 1,) first gradient row of each splat; isects (L, 2) splat and gradient
        row; tiles (I * tiles + 1,) first intersection of each tile.
    """
    I, N = depths.shape
    visible, touched = np.zeros(I + 1, np.int64), np.zeros(I + 1, np.int64)
    _count(means2d, extents, width, height, visible, touched)
    visible, touched = visible.cumsum(), touched.cumsum()
    K = -(-(colors.shape[-1] + 1) // 4) * 4
    splats = np.zeros((visible[-1], HEAD + K), depths.dtype)
    owner = np.empty(visible[-1], np.int32)
    rank = np.full((I, N), -1, np.int32)
    slots = np.empty(visible[-1] + 1, np.int64)
    isects = np.empty((touched[-1], 2), np.int32)
    tiles = np.empty(I * across * down + 1, np.int64)
    slots[-1] = tiles[-1] = touched[-1]
    # Positive floats sort like the integers that share their bits.
    keys = depths.view(np.uint32 if depths.dtype == np.float32 else np.uint64)
    _fill(
        means2d, conics, depths, keys, opacities, extents, colors, views, width, height, across, down,
        visible, touched, splats, owner, rank, slots, isects, tiles,
    )  # fmt: skip
    return splats, owner, rank, slots, isects, tiles


@njit(cache=True, nogil=True)
def _tile_box(x: float, y: float, hx: float, hy: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Tiles (first x, last x, first y, last y) with a pixel centre inside the box; first > last if there is none."""
    if not (hx > 0):
        return 1, 0, 1, 0
    px0, px1 = math.ceil(max(x - hx - 0.5, 0.0)), math.floor(min(x + hx - 0.5, width - 1.0))
    py0, py1 = math.ceil(max(y - hy - 0.5, 0.0)), math.floor(min(y + hy - 0.5, height - 1.0))
    if px0 > px1 or py0 > py1:
        return 1, 0, 1, 0
    return int(px0) // TILE, int(px1) // TILE, int(py0) // TILE, int(py1) // TILE


@njit(cache=True, nogil=True, parallel=True)
def _count(
    means2d: Any, extents: Any, width: int, height: int, visible: np.ndarray, touched: np.ndarray
) -> None:
    for i in prange(means2d.shape[0]):
        seen, isects = 0, 0
        for n in range(means2d.shape[1]):
            x0, x1, y0, y1 = _tile_box(
                means2d[i, n, 0], means2d[i, n, 1], extents[i, n, 0], extents[i, n, 1], width, height
            )
            if x0 <= x1:
                seen += 1
                isects += (x1 - x0 + 1) * (y1 - y0 + 1)
        visible[i + 1] = seen
        touched[i + 1] = isects


@njit(cache=True, nogil=True)
def _sort_by_key(keys: Any, index: Any) -> None:
    """Stable radix sort of `index` by keys[index], 11 bits a pass; passes in which all keys agree are free."""
    if len(index) < 2:
        return
    low, high = keys[index[0]], keys[index[0]]
    for n in index:
        low, high = min(low, keys[n]), max(high, keys[n])
    span = high - low
    other = np.empty_like(index)
    shift = U(0)
    swapped = False
    while span >> shift > U(0):
        first = np.zeros(2049, np.int64)
        for n in index:
            first[((U(keys[n] - low) >> shift) & U(2047)) + U(1)] += 1
        for d in range(2048):
            first[d + 1] += first[d]
        for n in index:
            d = (U(keys[n] - low) >> shift) & U(2047)
            other[first[d]] = n
            first[d] += 1
        index, other = other, index
        swapped = not swapped
        shift += U(11)
        if shift >= U(64):
            break
    if swapped:
        other[:] = index


@njit(cache=True, nogil=True, parallel=True)
def _fill(
    means2d: Any, conics: Any, depths: Any, keys: Any, opacities: Any, extents: Any, colors: Any,
    views: int, width: int, height: int, across: int, down: int,
    visible: Any, touched: Any, splats: Any, owner: Any, rank: Any, slots: Any, isects: Any, tiles: Any,
) -> None:  # fmt: skip
    C = colors.shape[2]
    for i in prange(depths.shape[0]):
        m0, m1 = visible[i], visible[i + 1]
        index = owner[m0:m1]
        boxes = np.empty((depths.shape[1], 4), np.int16)
        k = 0
        for n in range(depths.shape[1]):
            x0, x1, y0, y1 = _tile_box(
                means2d[i, n, 0], means2d[i, n, 1], extents[i, n, 0], extents[i, n, 1], width, height
            )
            if x0 <= x1:
                index[k] = n
                k += 1
                boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x0, x1, y0, y1
        _sort_by_key(keys[i], index)

        first = np.zeros(across * down + 1, np.int64)
        slot = touched[i]
        for m in range(m0, m1):
            n = owner[m]
            rank[i, n] = m
            splats[m, 0], splats[m, 1] = means2d[i, n, 0], means2d[i, n, 1]
            splats[m, 2], splats[m, 3], splats[m, 4] = conics[i, n, 0], conics[i, n, 1], conics[i, n, 2]
            splats[m, 5], splats[m, 6] = opacities[i, n], extents[i, n, 1]
            for c in range(C):
                splats[m, HEAD + c] = colors[i // views, n, c]
            splats[m, HEAD + C] = depths[i, n]
            slots[m] = slot
            slot += (boxes[n, 1] - boxes[n, 0] + 1) * (boxes[n, 3] - boxes[n, 2] + 1)
            for ty in range(boxes[n, 2], boxes[n, 3] + 1):
                for tx in range(boxes[n, 0], boxes[n, 1] + 1):
                    first[ty * across + tx + 1] += 1
        first[0] = touched[i]
        for t in range(across * down):
            first[t + 1] += first[t]
            tiles[i * across * down + t] = first[t]
        for m in range(m0, m1):
            n = owner[m]
            slot = slots[m]
            for ty in range(boxes[n, 2], boxes[n, 3] + 1):
                for tx in range(boxes[n, 0], boxes[n, 1] + 1):
                    t = ty * across + tx
                    isects[first[t], 0] = m
                    isects[first[t], 1] = slot
                    first[t] += 1
                    slot += 1


@njit(cache=True, nogil=True)
def _rows(y: Any, half_height: Any) -> tuple[int, int]:
    """First row and one past the last row of the tile that lie within `half_height` of y."""
    return int(math.ceil(max(y - half_height, 0))), int(math.floor(min(y + half_height, TILE - 1))) + 1


@njit(cache=True, nogil=True, fastmath=FAST)
def _unfinished(S: Any) -> bool:
    alive = False
    for p in range(PIXELS):
        alive |= S[p] > 0
    return alive


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _draw_tile(splats: Any, isects: Any, left: float, top: float, S: Any) -> None:
    """Blend into S, flat planes of one tile: transmittance (negative once finished), weight, then K features."""
    real = splats.dtype.type
    zero, half, min_alpha, max_alpha = real(0), real(0.5), real(MIN_ALPHA), real(MAX_ALPHA)
    stop, far = real(MIN_TRANSMITTANCE), real(5.6)
    K = splats.shape[1] - HEAD
    for k in range(len(isects)):
        if k % CHECK_EVERY == CHECK_EVERY - 1 and not _unfinished(S):
            break
        g = splats[isects[k, 0]]
        x, y = g[0] - real(left) - half, g[1] - real(top) - half  # from the tile's first pixel centre
        a, b, c, o = half * g[2], g[3], half * g[4], g[5]
        f0, f1, f2, f3 = g[HEAD], g[HEAD + 1], g[HEAD + 2], g[HEAD + 3]
        row0, row1 = _rows(y, g[6])
        for row in range(row0, row1):
            dy = y - real(row)
            by, cyy = b * dy, c * dy * dy
            p = U(TILE) * U(row)
            for lane in range(U(TILE)):
                q = p + lane
                dx = x - real(lane)
                sigma = dx * (a * dx + by) + cyy
                alpha = min(max_alpha, o * exp_visible(-sigma))
                T = S[q]
                hit = (sigma >= zero) & (sigma <= far) & (alpha >= min_alpha) & (T > zero)
                after = T - T * alpha
                drawn = hit & (after > stop)
                w = alpha * T if drawn else zero
                S[q] = after if drawn else (-T if hit else T)
                S[U(PIXELS) + q] = w
                S[U(2 * PIXELS) + q] += w * f0
                S[U(3 * PIXELS) + q] += w * f1
                S[U(4 * PIXELS) + q] += w * f2
                S[U(5 * PIXELS) + q] += w * f3
        for j in range(4, K, 4):
            f0, f1, f2, f3 = g[HEAD + j], g[HEAD + j + 1], g[HEAD + j + 2], g[HEAD + j + 3]
            for p in range(U(TILE) * U(row0), U(TILE) * U(row1)):
                q = U(PIXELS) * U(2 + j) + p
                w = S[U(PIXELS) + p]
                S[q] += w * f0
                S[U(PIXELS) + q] += w * f1
                S[U(2 * PIXELS) + q] += w * f2
                S[U(3 * PIXELS) + q] += w * f3


@njit(cache=True, nogil=True, parallel=True)
def _draw_all(
    splats: Any, isects: Any, tiles: Any, image: Any, transmittance: Any, across: int, down: int
) -> None:
    _, channels, height, width = image.shape
    K = splats.shape[1] - HEAD
    for t in prange(len(tiles) - 1):
        if tiles[t + 1] > tiles[t]:
            i, ty, tx = t // (across * down), t // across % down, t % across
            y0, x0 = ty * TILE, tx * TILE
            rows, columns = min(TILE, height - y0), min(TILE, width - x0)
            S = np.zeros((2 + K) * PIXELS, splats.dtype)
            for r in range(rows):
                S[r * TILE : r * TILE + columns] = 1
            _draw_tile(splats, isects[tiles[t] : tiles[t + 1]], x0, y0, S)
            for r in range(rows):
                for c in range(columns):
                    p = r * TILE + c
                    transmittance[i, y0 + r, x0 + c] = abs(S[p])
                    for f in range(channels):
                        image[i, f, y0 + r, x0 + c] = S[(2 + f) * PIXELS + p]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _draw_tile_backward(
    splats: Any, isects: Any, left: float, top: float, S: Any, L: Any, v_isects: Any
) -> None:
    """Gradients of a tile, one row of `v_isects` for each Gaussian in it.

    S holds flat planes: transmittance, the gradient-weighted light still to come (`rem`), the part of v . f from
    the features past the fourth, weight, then K planes v of incoming gradients. L holds 7 sums for each lane.
    """
    real = splats.dtype.type
    zero, one, half, min_alpha, max_alpha = real(0), real(1), real(0.5), real(MIN_ALPHA), real(MAX_ALPHA)
    stop, far = real(MIN_TRANSMITTANCE), real(5.6)
    K = splats.shape[1] - HEAD
    for k in range(len(isects)):
        if k % CHECK_EVERY == CHECK_EVERY - 1 and not _unfinished(S):
            break
        g = splats[isects[k, 0]]
        out = v_isects[isects[k, 1]]
        x, y = g[0] - real(left) - half, g[1] - real(top) - half
        a, b, c, o = half * g[2], g[3], half * g[4], g[5]
        f0, f1, f2, f3 = g[HEAD], g[HEAD + 1], g[HEAD + 2], g[HEAD + 3]
        row0, row1 = _rows(y, g[6])
        p0, p1 = U(TILE) * U(row0), U(TILE) * U(row1)
        L[:] = zero
        if K > 4:
            for p in range(p0, p1):
                S[U(2 * PIXELS) + p] = zero
        for j in range(4, K):
            f = g[HEAD + j]
            for p in range(p0, p1):
                S[U(2 * PIXELS) + p] += S[U(PIXELS) * U(4 + j) + p] * f
        for row in range(row0, row1):
            dy = y - real(row)
            by, cyy, dyy = b * dy, c * dy * dy, dy * dy
            p = U(TILE) * U(row)
            for lane in range(U(TILE)):
                q = p + lane
                dx = x - real(lane)
                sigma = dx * (a * dx + by) + cyy
                raw = o * exp_visible(-sigma)
                alpha = min(max_alpha, raw)
                T = S[q]
                hit = (sigma >= zero) & (sigma <= far) & (alpha >= min_alpha) & (T > zero)
                after = T - T * alpha
                drawn = hit & (after > stop)
                w = alpha * T if drawn else zero
                S[q] = after if drawn else (-T if hit else T)
                S[U(3 * PIXELS) + q] = w
                v0, v1 = S[U(4 * PIXELS) + q], S[U(5 * PIXELS) + q]
                v2, v3 = S[U(6 * PIXELS) + q], S[U(7 * PIXELS) + q]
                vf = S[U(2 * PIXELS) + q] + v0 * f0 + v1 * f1 + v2 * f2 + v3 * f3
                rem = S[U(PIXELS) + q] - w * vf
                S[U(PIXELS) + q] = rem
                # alpha * dL/dalpha, which is minus dL/dsigma; the clamp at 0.999 cuts it.
                v = alpha * (T * vf - rem / (one - alpha))
                v = v if drawn & (raw <= max_alpha) else zero
                L[lane] += v
                L[U(TILE) + lane] += v * dy
                L[U(2 * TILE) + lane] += v * dyy
                L[U(3 * TILE) + lane] += w * v0
                L[U(4 * TILE) + lane] += w * v1
                L[U(5 * TILE) + lane] += w * v2
                L[U(6 * TILE) + lane] += w * v3
        s, sx, sy, sxx, sxy, syy = zero, zero, zero, zero, zero, zero
        for lane in range(TILE):
            dx = x - real(lane)
            s += L[lane]
            sx += L[lane] * dx
            sxx += L[lane] * dx * dx
            sy += L[TILE + lane]
            sxy += L[TILE + lane] * dx
            syy += L[2 * TILE + lane]
        out[0], out[1] = -(g[2] * sx + b * sy), -(b * sx + g[4] * sy)
        out[2], out[3], out[4] = -half * sxx, -sxy, -half * syy
        out[5] = s / o
        for j in range(4):
            total = zero
            for lane in range(TILE):
                total += L[(3 + j) * TILE + lane]
            out[HEAD + j] = total
        for j in range(4, K):
            total = zero
            for p in range(p0, p1):
                total += S[U(3 * PIXELS) + p] * S[U(PIXELS) * U(4 + j) + p]
            out[HEAD + j] = total


@njit(cache=True, nogil=True, parallel=True)
def _draw_all_backward(
    splats: Any, isects: Any, tiles: Any, image: Any, transmittance: Any, v_image: Any, v_alpha: Any,
    v_isects: Any, across: int, down: int,
) -> None:  # fmt: skip
    _, channels, height, width = image.shape
    K = splats.shape[1] - HEAD
    for t in prange(len(tiles) - 1):
        if tiles[t + 1] > tiles[t]:
            i, ty, tx = t // (across * down), t // across % down, t % across
            y0, x0 = ty * TILE, tx * TILE
            rows, columns = min(TILE, height - y0), min(TILE, width - x0)
            S = np.zeros((4 + K) * PIXELS, splats.dtype)
            L = np.empty(7 * TILE, splats.dtype)
            for r in range(rows):
                for c in range(columns):
                    p = r * TILE + c
                    S[p] = 1
                    rem = -v_alpha[i, y0 + r, x0 + c] * transmittance[i, y0 + r, x0 + c]
                    for f in range(channels):
                        v = v_image[i, f, y0 + r, x0 + c]
                        rem += v * image[i, f, y0 + r, x0 + c]
                        S[(4 + f) * PIXELS + p] = v
                    S[PIXELS + p] = rem
            _draw_tile_backward(splats, isects[tiles[t] : tiles[t + 1]], x0, y0, S, L, v_isects)


@njit(cache=True, nogil=True, parallel=True)
def _gather(
    v_isects: Any, rank: Any, slots: Any, views: int,
    v_means2d: Any, v_conics: Any, v_depths: Any, v_opacities: Any, v_colors: Any,
) -> None:  # fmt: skip
    """Sum the rows of each Gaussian over its tiles, colours over views as well, in a fixed order."""
    B, N, C = v_colors.shape
    chunks = -(-N // CHUNK)
    for task in prange(B * chunks):
        b = task // chunks
        total = np.empty(v_isects.shape[1], v_isects.dtype)
        for n in range(task % chunks * CHUNK, min(N, (task % chunks + 1) * CHUNK)):
            for i in range(b * views, (b + 1) * views):
                m = rank[i, n]
                if m >= 0:
                    total[:] = 0
                    for row in range(slots[m], slots[m + 1]):
                        for j in range(len(total)):
                            total[j] += v_isects[row, j]
                    v_means2d[i, n, 0], v_means2d[i, n, 1] = total[0], total[1]
                    v_conics[i, n, 0], v_conics[i, n, 1], v_conics[i, n, 2] = total[2], total[3], total[4]
                    v_opacities[i, n] = total[5]
                    for c in range(C):
                        v_colors[b, n, c] += total[HEAD + c]
                    v_depths[i, n] = total[HEAD + C]
