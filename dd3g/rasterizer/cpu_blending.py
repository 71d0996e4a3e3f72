"""Blending of one tile after another, and its gradient, in numba.

A 16x16 tile is drawn Gaussian by Gaussian over rows of 16 pixels, with selects in place of branches, so that
LLVM turns a row into vector instructions. All planes of a tile lie in one flat array at constant distances,
which tells LLVM that they don't overlap. The backward pass walks front to back as well: transmittance is then
the same as in the forward pass, and what lies behind a Gaussian is one scalar a pixel, whatever the channels.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from dd3g.numba_setup import njit, prange
from dd3g.rasterizer.projection import MIN_ALPHA

TILE = 16
HEAD = 7  # columns of a splat before its features: x, y, conic xx, xy, yy, opacity, half height
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4
MAX_SIGMA = 5.6  # exp(-5.6) < 1/255
CHECK_EVERY = 16  # Gaussians between two looks at whether the tile is finished
U = np.uint64  # a signed index costs a branch for negative values, which breaks vectorisation
PLANE = U(TILE * TILE)
FAST = {"contract", "reassoc", "arcp", "nsz"}  # not nnan or ninf: comparisons with NaN must stay false

_series = np.polynomial.Chebyshev.interpolate(np.exp, 6, domain=[-MAX_SIGMA / 8, 0.0])
E0, E1, E2, E3, E4, E5, E6 = (np.float32(c) for c in _series.convert(kind=np.polynomial.Polynomial).coef)


def exp_visible(x: float) -> float:
    """exp(x) for x in -5.6..0; in compiled float32 code a polynomial, which vectorises and is within 3e-7."""
    return math.exp(x)


@overload(exp_visible, inline="always")
def _exp_visible(x: Any) -> Any:
    def polynomial(x: Any) -> Any:
        u = x * np.float32(0.125)
        e = E0 + u * (E1 + u * (E2 + u * (E3 + u * (E4 + u * (E5 + u * E6)))))
        e = e * e
        e = e * e
        return e * e

    def library(x: Any) -> Any:
        return math.exp(x)

    return polynomial if x == numba.float32 else library


@njit(cache=True, nogil=True)
def _rows(y: Any, half_height: Any) -> tuple[int, int]:
    """First row of the tile within `half_height` of y, and one past the last."""
    return int(math.ceil(max(y - half_height, 0))), int(math.floor(min(y + half_height, TILE - 1))) + 1


@njit(cache=True, nogil=True, fastmath=FAST)
def _finished(S: Any) -> bool:
    alive = False
    for p in range(TILE * TILE):
        alive |= S[p] > 0
    return not alive


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _blend_tile(splats: Any, isects: Any, left: int, top: int, S: Any) -> None:
    """Blend into the planes of S: transmittance, negative once a pixel is finished; weight; K features."""
    real = splats.dtype.type
    zero, half, min_alpha, max_alpha = real(0), real(0.5), real(MIN_ALPHA), real(MAX_ALPHA)
    stop, max_sigma = real(MIN_TRANSMITTANCE), real(MAX_SIGMA)
    for k in range(len(isects)):
        if k % CHECK_EVERY == CHECK_EVERY - 1 and _finished(S):
            break
        g = splats[isects[k, 0]]
        x, y = g[0] - real(left) - half, g[1] - real(top) - half  # from the tile's first pixel centre
        a, b, c, o = half * g[2], g[3], half * g[4], g[5]
        f0, f1, f2, f3 = g[HEAD], g[HEAD + 1], g[HEAD + 2], g[HEAD + 3]
        row0, row1 = _rows(y, g[6])
        for row in range(row0, row1):
            dy = y - real(row)
            by, cyy = b * dy, c * dy * dy
            for lane in range(U(TILE)):
                p = U(TILE) * U(row) + lane
                dx = x - real(lane)
                sigma = dx * (a * dx + by) + cyy
                alpha = min(max_alpha, o * exp_visible(-sigma))
                T = S[p]
                hit = (sigma >= zero) & (sigma <= max_sigma) & (alpha >= min_alpha) & (T > zero)
                after = T - T * alpha
                drawn = hit & (after > stop)
                w = alpha * T if drawn else zero
                S[p] = after if drawn else (-T if hit else T)
                S[PLANE + p] = w
                S[U(2) * PLANE + p] += w * f0
                S[U(3) * PLANE + p] += w * f1
                S[U(4) * PLANE + p] += w * f2
                S[U(5) * PLANE + p] += w * f3
        for j in range(4, splats.shape[1] - HEAD, 4):
            f0, f1, f2, f3 = g[HEAD + j], g[HEAD + j + 1], g[HEAD + j + 2], g[HEAD + j + 3]
            for i in range(U(TILE) * U(row0), U(TILE) * U(row1)):
                w, q = S[PLANE + i], PLANE * U(2 + j) + i
                S[q] += w * f0
                S[PLANE + q] += w * f1
                S[U(2) * PLANE + q] += w * f2
                S[U(3) * PLANE + q] += w * f3


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _blend_tile_backward(
    splats: Any, isects: Any, left: int, top: int, S: Any, L: Any, v_isects: Any
) -> None:
    """Write one row of `v_isects` for each Gaussian of a tile.

    Planes of S: transmittance; `rem`, the gradient-weighted light of all that is still to come; the part of
    v . f from features past the fourth; weight; K incoming gradients v. L holds 7 sums for each lane.
    """
    real = splats.dtype.type
    zero, one, half = real(0), real(1), real(0.5)
    min_alpha, max_alpha = real(MIN_ALPHA), real(MAX_ALPHA)
    stop, max_sigma = real(MIN_TRANSMITTANCE), real(MAX_SIGMA)
    K = splats.shape[1] - HEAD
    for k in range(len(isects)):
        if k % CHECK_EVERY == CHECK_EVERY - 1 and _finished(S):
            break
        g, out = splats[isects[k, 0]], v_isects[isects[k, 1]]
        x, y = g[0] - real(left) - half, g[1] - real(top) - half
        a, b, c, o = half * g[2], g[3], half * g[4], g[5]
        f0, f1, f2, f3 = g[HEAD], g[HEAD + 1], g[HEAD + 2], g[HEAD + 3]
        row0, row1 = _rows(y, g[6])
        p0, p1 = U(TILE) * U(row0), U(TILE) * U(row1)
        L[:] = zero
        if K > 4:
            for i in range(p0, p1):
                S[U(2) * PLANE + i] = zero
        for j in range(4, K):
            f = g[HEAD + j]
            for i in range(p0, p1):
                S[U(2) * PLANE + i] += S[PLANE * U(4 + j) + i] * f
        for row in range(row0, row1):
            dy = y - real(row)
            by, cyy, dyy = b * dy, c * dy * dy, dy * dy
            for lane in range(U(TILE)):
                p = U(TILE) * U(row) + lane
                dx = x - real(lane)
                sigma = dx * (a * dx + by) + cyy
                raw = o * exp_visible(-sigma)
                alpha = min(max_alpha, raw)
                T = S[p]
                hit = (sigma >= zero) & (sigma <= max_sigma) & (alpha >= min_alpha) & (T > zero)
                after = T - T * alpha
                drawn = hit & (after > stop)
                w = alpha * T if drawn else zero
                S[p] = after if drawn else (-T if hit else T)
                v0, v1 = S[U(4) * PLANE + p], S[U(5) * PLANE + p]
                v2, v3 = S[U(6) * PLANE + p], S[U(7) * PLANE + p]
                vf = S[U(2) * PLANE + p] + v0 * f0 + v1 * f1 + v2 * f2 + v3 * f3
                rem = S[PLANE + p] - w * vf
                S[PLANE + p] = rem
                S[U(3) * PLANE + p] = w
                # alpha * dloss/dalpha = -dloss/dsigma; the clamp at 0.999 cuts it.
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
            for i in range(p0, p1):
                total += S[U(3) * PLANE + i] * S[PLANE * U(4 + j) + i]
            out[HEAD + j] = total


@njit(cache=True, nogil=True, parallel=True)
def blend(splats: Any, isects: Any, tiles: Any, image: Any, transmittance: Any) -> None:
    """Features (I, channels, H, W) over black, and the transmittance that is left (I, H, W)."""
    _, channels, height, width = image.shape
    across, down = -(-width // TILE), -(-height // TILE)
    for t in prange(len(tiles) - 1):
        if tiles[t + 1] > tiles[t]:
            i, top, left = t // (across * down), t // across % down * TILE, t % across * TILE
            rows, columns = min(TILE, height - top), min(TILE, width - left)
            S = np.zeros((2 + splats.shape[1] - HEAD) * PLANE, splats.dtype)
            for r in range(rows):
                S[r * TILE : r * TILE + columns] = 1  # pixels outside the image stay at 0, which is finished
            _blend_tile(splats, isects[tiles[t] : tiles[t + 1]], left, top, S)
            for r in range(rows):
                for c in range(columns):
                    transmittance[i, top + r, left + c] = abs(S[r * TILE + c])
                    for f in range(channels):
                        image[i, f, top + r, left + c] = S[((2 + f) * TILE + r) * TILE + c]


@njit(cache=True, nogil=True, parallel=True)
def blend_backward(
    splats: Any, isects: Any, tiles: Any, image: Any, transmittance: Any,
    v_image: Any, v_alpha: Any, v_isects: Any,
) -> None:  # fmt: skip
    """Gradients (L, HEAD + K) of `splats`, one row for each tile that a splat touches."""
    _, channels, height, width = image.shape
    across, down = -(-width // TILE), -(-height // TILE)
    for t in prange(len(tiles) - 1):
        if tiles[t + 1] > tiles[t]:
            i, top, left = t // (across * down), t // across % down * TILE, t % across * TILE
            S = np.zeros((4 + splats.shape[1] - HEAD) * PLANE, splats.dtype)
            L = np.empty(7 * TILE, splats.dtype)
            for r in range(min(TILE, height - top)):
                for c in range(min(TILE, width - left)):
                    y, x = top + r, left + c
                    S[r * TILE + c] = 1
                    rem = -v_alpha[i, y, x] * transmittance[i, y, x]
                    for f in range(channels):
                        v = v_image[i, f, y, x]
                        rem += v * image[i, f, y, x]
                        S[((4 + f) * TILE + r) * TILE + c] = v
                    S[(TILE + r) * TILE + c] = rem
            _blend_tile_backward(splats, isects[tiles[t] : tiles[t + 1]], left, top, S, L, v_isects)
