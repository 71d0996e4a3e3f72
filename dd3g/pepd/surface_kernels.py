"""The loops of `surface`, compiled by numba; arrays are float32 and C-contiguous."""

from __future__ import annotations

import numpy as np

from dd3g.numba_setup import njit, prange


@njit(cache=True, nogil=True, parallel=True)
def least_along(alpha, depth, softness, viewmats, Ks, points, found):  # type: ignore[no-untyped-def]
    """The least value that masks (V, S, S) have at points (P, 3), into found (P,).

    With depth of the masks' shape, that is less before it: it rises from 0 to 1 over `softness` around it.
    """
    V, S = alpha.shape[0], alpha.shape[1]
    for p in prange(len(points)):
        x, y, z = points[p]
        least = np.float32(1.0)
        for v in range(V):
            column, row, here = _projected(viewmats[v], Ks[v], x, y, z)
            least = min(least, _bilinear(alpha[v], column, row, S))
            if least < 0.1:  # nowhere near a surface any more
                break
            if len(depth):
                # The nearest of four pixels: a mean across an edge would carve the nearer side away.
                first = np.float32(np.inf)
                for c in range(4):
                    i = min(max(int(np.floor(column)) + (c & 1), 0), S - 1)
                    j = min(max(int(np.floor(row)) + (c >> 1), 0), S - 1)
                    first = min(first, depth[v, j, i])
                least = min(least, max(np.float32(0.5 + (here - first) / softness), np.float32(0.0)))
        found[p] = least


@njit(cache=True, nogil=True)
def _projected(m, K, x, y, z):  # type: ignore[no-untyped-def]
    """Column and row, 0 at the centre of the first pixel, and camera z of a world point."""
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    a = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth
    b = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth
    return K[0, 0] * a + K[0, 2] - 0.5, K[1, 1] * b + K[1, 2] - 0.5, depth


@njit(cache=True, nogil=True)
def _bilinear(image, x, y, size):  # type: ignore[no-untyped-def]
    """Value at pixel coordinates, 0 beyond the picture."""
    if x < -1 or y < -1 or x > size or y > size:
        return np.float32(0.0)
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    total = np.float32(0.0)
    for c in range(4):
        u, v = x0 + (c & 1), y0 + (c >> 1)
        if 0 <= u < size and 0 <= v < size:
            total += image[v, u] * (1 - abs(x - u)) * (1 - abs(y - v))
    return total


@njit(cache=True, nogil=True)
def _trilinear(field, x, y, z):  # type: ignore[no-untyped-def]
    """Value at voxel coordinates, clamped to the cube."""
    n = field.shape[0]
    x, y, z = min(max(x, 0.0), n - 1.001), min(max(y, 0.0), n - 1.001), min(max(z, 0.0), n - 1.001)
    i, j, k = int(x), int(y), int(z)
    fx, fy, fz = x - i, y - j, z - k
    total = 0.0
    for c in range(8):
        a, b, d = c & 1, (c >> 1) & 1, c >> 2
        weight = (fx if a else 1 - fx) * (fy if b else 1 - fy) * (fz if d else 1 - fz)
        total += weight * field[i + a, j + b, k + d]
    return total


@njit(cache=True, nogil=True)
def lower_pieces(field, level, least):  # type: ignore[no-untyped-def]
    """Set to the level what lies above it in pieces of fewer than `least` voxels, but for the largest."""
    n = field.shape[0]
    values = field.reshape(-1)
    met = values <= level
    waiting = np.empty(len(values), np.int32)  # voxels of the piece; those from `done` on await their turn
    largest = np.empty(0, np.int32)
    for start in range(len(values)):
        if met[start]:
            continue
        met[start] = True
        waiting[0] = start
        done, count = 0, 1
        while done < count:
            here = waiting[done]
            done += 1
            places = here // (n * n), here // n % n, here % n
            for axis, step in enumerate((n * n, n, 1)):
                for way in (-1, 1):
                    if 0 <= places[axis] + way < n and not met[here + way * step]:
                        met[here + way * step] = True
                        waiting[count] = here + way * step
                        count += 1
        fewer = largest if count > len(largest) else waiting[:count]
        if len(fewer) < least:
            values[fewer] = level
        if count > len(largest):
            largest = waiting[:count].copy()


@njit(cache=True, nogil=True)
def net_points(field, level, places):  # type: ignore[no-untyped-def]
    """Count the crossed cells and write as many of their points, in voxel coordinates, as there is room for.

    The ring of cells around the cube counts as outside, so that the surface is closed.
    """
    n = field.shape[0]
    count = 0
    value = np.empty(8)
    for i in range(-1, n):
        for j in range(-1, n):
            for k in range(-1, n):
                inside = 0
                for c in range(8):
                    x, y, z = i + (c & 1), j + ((c >> 1) & 1), k + (c >> 2)
                    within = 0 <= x < n and 0 <= y < n and 0 <= z < n
                    value[c] = field[x, y, z] - level if within else -1.0
                    inside += value[c] > 0
                if inside == 0 or inside == 8:
                    continue
                if count < len(places):
                    x = y = z = 0.0
                    edges = 0
                    for c in range(8):
                        for axis in range(3):
                            d = c | 1 << axis
                            if d == c or (value[c] > 0) == (value[d] > 0):
                                continue
                            t = value[c] / (value[c] - value[d])
                            x += (c & 1) + (t if axis == 0 else 0.0)
                            y += ((c >> 1) & 1) + (t if axis == 1 else 0.0)
                            z += (c >> 2) + (t if axis == 2 else 0.0)
                            edges += 1
                    places[count, 0] = i + x / edges
                    places[count, 1] = j + y / edges
                    places[count, 2] = k + z / edges
                count += 1
    return count


@njit(cache=True, nogil=True)
def gradients(field, places, slopes):  # type: ignore[no-untyped-def]
    """Slopes (N, 3) of a field (n, n, n) at places (N, 3).

    Central differences, three quarters of a voxel to either side.
    """
    h = 0.75
    for p in range(len(places)):
        x, y, z = places[p, 0], places[p, 1], places[p, 2]
        slopes[p, 0] = _trilinear(field, x + h, y, z) - _trilinear(field, x - h, y, z)
        slopes[p, 1] = _trilinear(field, x, y + h, z) - _trilinear(field, x, y - h, z)
        slopes[p, 2] = _trilinear(field, x, y, z + h) - _trilinear(field, x, y, z - h)


@njit(cache=True, nogil=True, parallel=True)
def march(field, level, origin, directions, mask, half, near, far, depth):  # type: ignore[no-untyped-def]
    """Camera depth (S, S), near to far, at which rays first rise through the level, 0 where they do not.

    Steps of half a voxel, then the crossing between the last two.
    """
    n = field.shape[0]
    voxel = 2 * half / n
    step = 0.5 * voxel
    for r in prange(mask.shape[0]):
        for c in range(mask.shape[1]):
            if not mask[r, c]:
                continue
            d = directions[r, c]
            before = -1.0
            z = near
            while z < far:
                x = (origin[0] + z * d[0] + half) / voxel - 0.5
                y = (origin[1] + z * d[1] + half) / voxel - 0.5
                w = (origin[2] + z * d[2] + half) / voxel - 0.5
                if 0 <= x <= n - 1 and 0 <= y <= n - 1 and 0 <= w <= n - 1:
                    here = _trilinear(field, x, y, w) - level
                    if here > 0:
                        depth[r, c] = z - step * here / (here - before)
                        break
                    before = here
                z += step


@njit(cache=True, nogil=True)
def flood(values):  # type: ignore[no-untyped-def]
    """Give each zero of (H, W), in place, the value fewest steps away, to four sides."""
    height, width = values.shape
    places = np.empty(height * width, np.int64)
    count = 0
    for p in range(height * width):
        if values[p // width, p % width] != 0:
            places[count] = p
            count += 1
    done = 0
    while done < count:
        y, x = divmod(places[done], width)
        done += 1
        for j, i in ((y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)):
            if 0 <= j < height and 0 <= i < width and values[j, i] == 0:
                values[j, i] = values[y, x]
                places[count] = j * width + i
                count += 1
