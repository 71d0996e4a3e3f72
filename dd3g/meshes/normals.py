"""Normals of a mesh's corners, smooth except across sharp edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dd3g.numba_setup import njit

CREASE = 45.0  # degrees: a sharper edge keeps its faces' own normals


def corner_normals(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """Normals that are smooth except across edges sharper than `CREASE`.

    Returns:
        (F, 3, 3): at each corner the area-weighted mean of the normals of those faces around the position
        that lie within `CREASE` of the corner's own face. Vertices at one position count as one, so that
        texture seams don't show.
    """
    corners = vertices[faces].astype(np.float64)
    area = np.cross(
        corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    )  # (F, 3) twice area x normal
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-20)
    _, place = np.unique(np.round(vertices.astype(np.float64), 5), axis=0, return_inverse=True)
    places = place.reshape(-1)[faces]  # (F, 3)
    order = np.argsort(places.reshape(-1), kind="stable")
    start = np.searchsorted(places.reshape(-1)[order], np.arange(places.max() + 2))
    return _crease_normals(
        area, unit, places, (order // 3).astype(np.int64), start, np.cos(np.radians(CREASE))
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _crease_normals(area, unit, places, around, start, cos_crease):  # type: ignore[no-untyped-def]
    """Corner normals (F, 3, 3); `around[start[p]:start[p + 1]]` are the faces at place p."""
    F = len(places)
    out = np.empty((F, 3, 3), np.float32)
    for f in range(F):
        for c in range(3):
            x = y = z = 0.0
            p = places[f, c]
            for k in range(start[p], start[p + 1]):
                g = around[k]
                if unit[f, 0] * unit[g, 0] + unit[f, 1] * unit[g, 1] + unit[f, 2] * unit[g, 2] >= cos_crease:
                    x += area[g, 0]
                    y += area[g, 1]
                    z += area[g, 2]
            n = (x * x + y * y + z * z) ** 0.5
            if n < 1e-20:
                x, y, z, n = unit[f, 0], unit[f, 1], unit[f, 2], 1.0
            out[f, c, 0], out[f, c, 1], out[f, c, 2] = x / n, y / n, z / n
    return out
