"""The matter of a mesh: space carved away by depth views from all around."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from dd3g.cameras import Cameras
from dd3g.meshes.mesh import Mesh
from dd3g.meshes.rendering import nearest_surface
from dd3g.numba_setup import njit

RESOLUTION = 128  # voxels a side
VIEWS = 48  # depth views; 21 at 80 voxels lost thin parts
PIXELS = 2  # of a view's side for each voxel of the cube's
DISTANCE = 3.0  # of their cameras, in half sides of the cube
FOVY = 41.0  # shows the ball in the cube whole: its rim is seen at 19.5 degrees
SLACK = 0.6  # voxels by which matter may lie before what a pixel sees, whose depth is that of its centre


def carve(mesh: Mesh, half: float, resolution: int = RESOLUTION, views: int = VIEWS) -> NDArray[np.bool_]:
    """Matter is what no depth view sees through, and what holds a piece of the surface.

    Space carving (Kutulakos and Seitz 2000) with depth in place of colour. Closed, open and intersecting
    meshes all give a solid: a cavity that no view looks into is filled, a vessel that is open is hollow, and
    a sheet of no thickness is a voxel or two thick.

    Args:
        mesh: as it is drawn.
        half: half the side of the cube that is carved; the mesh keeps this distance to the origin at most.
        resolution: voxels a side, n.
        views: depth views, spread evenly over the sphere.

    Returns:
        (n, n, n) over [-half, half]^3, indexed x, y, z.

    Raises:
        ValueError: when the mesh reaches beyond the ball in the cube.
    """
    reach = float(np.linalg.norm(mesh.vertices, axis=1).max())
    if reach > half:
        raise ValueError(f"the mesh reaches {reach:.4g} from the origin and the cube only {half:.4g}")
    matter = np.ones((resolution,) * 3, np.bool_)
    cameras = Cameras.all_around(views, PIXELS * resolution, DISTANCE * half, FOVY)
    slack = SLACK * 2 * half / resolution
    for v in range(views):
        nearest = widened(nearest_surface(mesh, cameras[v]))
        viewmat, K = cameras.viewmats[v].double().numpy(), cameras.Ks[v].double().numpy()
        _carve(matter, nearest, viewmat, K, half, slack)
    _keep_surface(matter, mesh.vertices, mesh.faces, half)
    return matter


def widened(nearest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest of each pixel and its neighbours: a slope next to a pixel's centre must not be carved."""
    from scipy.ndimage import maximum_filter

    return maximum_filter(nearest, 3)


def packed(matter: NDArray[np.bool_]) -> bytes:
    """Bits of (n, n, n), x slowest, eight a byte from the highest on, compressed by zlib."""
    return zlib.compress(np.packbits(matter).tobytes(), 9)


@njit(cache=True, nogil=True)
def _carve(matter, nearest, viewmat, K, half, slack):  # type: ignore[no-untyped-def]
    """One view, in place; `nearest` (S, S) is 1 / camera z of what is seen, 0 where that is nothing."""
    n, size = matter.shape[0], nearest.shape[0]
    step = 2 * half / n
    for i in range(n):
        x = (i + 0.5) * step - half
        for j in range(n):
            y = (j + 0.5) * step - half
            for k in range(n):
                if not matter[i, j, k]:
                    continue
                w = (k + 0.5) * step - half
                z = viewmat[2, 0] * x + viewmat[2, 1] * y + viewmat[2, 2] * w + viewmat[2, 3]
                u = viewmat[0, 0] * x + viewmat[0, 1] * y + viewmat[0, 2] * w + viewmat[0, 3]
                v = viewmat[1, 0] * x + viewmat[1, 1] * y + viewmat[1, 2] * w + viewmat[1, 3]
                column = int(np.floor(K[0, 0] * u / z + K[0, 2]))
                row = int(np.floor(K[1, 1] * v / z + K[1, 2]))
                if 0 <= column < size and 0 <= row < size:
                    seen = nearest[row, column]
                    matter[i, j, k] = seen > 0 and z >= 1 / seen - slack
                else:  # the whole object is in the picture
                    matter[i, j, k] = False


@njit(cache=True, nogil=True)
def _keep_surface(matter, vertices, faces, half):  # type: ignore[no-untyped-def]
    """Voxels that triangles pass through, in place, by points at most half a voxel apart."""
    n = matter.shape[0]
    scale = n / (2 * half)
    for f in range(len(faces)):
        a = (vertices[faces[f, 0]] + half) * scale
        ab = (vertices[faces[f, 1]] + half) * scale - a
        ac = (vertices[faces[f, 2]] + half) * scale - a
        longest = max((ab * ab).sum(), (ac * ac).sum(), ((ab - ac) * (ab - ac)).sum()) ** 0.5
        steps = int(2 * longest) + 1
        for s in range(steps + 1):
            for t in range(steps + 1 - s):
                i = int(a[0] + (s * ab[0] + t * ac[0]) / steps)
                j = int(a[1] + (s * ab[1] + t * ac[1]) / steps)
                k = int(a[2] + (s * ab[2] + t * ac[2]) / steps)
                matter[min(i, n - 1), min(j, n - 1), min(k, n - 1)] = True
