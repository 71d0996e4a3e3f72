"""The matter of a mesh: space carved away by depth views from all around."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, maximum_filter

from dd3g.cameras import Cameras
from dd3g.meshes.mesh import Mesh
from dd3g.meshes.rendering import nearest_surface
from dd3g.numba_setup import njit
from dd3g.rig import BAND

RESOLUTION = 128  # voxels a side
VIEWS = 48  # depth views; 21 at 80 voxels lost thin parts
PIXELS = 2  # of a view's side for each voxel of the cube's
DISTANCE = 3.0  # of their cameras, in half sides of the cube
FOVY = 41.0  # shows the ball in the cube whole: its rim is seen at 19.5 degrees
SLACK = 0.6  # voxels by which matter may lie before what a pixel sees, whose depth is that of its centre
RARE = 4  # of `VIEWS` from these must look into a cavity, or it is matter


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
        raise ValueError(f"the mesh reaches {reach:.4g} from the origin, but the cube only {half:.4g}")
    matter = np.ones((resolution,) * 3, np.bool_)
    cameras = Cameras.all_around(views, PIXELS * resolution, DISTANCE * half, FOVY)
    slack = SLACK * 2 * half / resolution
    for v in range(views):
        # Of each pixel and its neighbours: a slope next to a pixel's centre must not be carved.
        nearest = maximum_filter(nearest_surface(mesh, cameras[v]), 3)
        viewmat, K = cameras.viewmats[v].double().numpy(), cameras.Ks[v].double().numpy()
        _carve(matter, nearest, viewmat, K, half, slack)
    _keep_surface(matter, mesh.vertices, mesh.faces, half)
    return matter


def filled(matter: NDArray[np.bool_], half: float) -> NDArray[np.bool_]:
    """Matter, and the cavities that hardly any view of `BAND` looks into.

    Many meshes have no bottom, and carved from below, a sofa or a shade is a skin of one voxel: far thinner
    than what one picture tells about its place, so that a network which learns it leaves it torn.

    Args:
        matter: (n, n, n) over [-half, half]^3, indexed x, y, z; n even.
        half: half the side of the cube.

    Returns:
        (n, n, n), `matter` in it.
    """
    n = len(matter)
    cameras = Cameras.all_around(VIEWS, PIXELS * n, DISTANCE * half, FOVY, *BAND)
    surface = (np.argwhere(matter & ~binary_erosion(matter)) + 0.5) * (2 * half / n) - half
    looks = np.zeros((n // 2,) * 3, np.int64)  # pairs of voxels will do
    for viewmat, K in zip(cameras.viewmats.double().numpy(), cameras.Ks.double().numpy(), strict=True):
        _look(looks, _nearest(surface, viewmat, K, PIXELS * n), viewmat, K, half)
    pairs = matter.reshape(n // 2, 2, n // 2, 2, n // 2, 2).any((1, 3, 5))
    # Not what lies before a surface by less than a pair, which looks hidden as well.
    hidden = binary_erosion((looks < RARE) | pairs)
    return matter | np.kron(hidden, np.ones((2, 2, 2), np.bool_))


def packed(matter: NDArray[np.bool_]) -> bytes:
    """Bits of (n, n, n), x slowest, eight a byte from the highest on, compressed by zlib."""
    return zlib.compress(np.packbits(matter).tobytes(), 9)


@njit(cache=True, nogil=True)
def _project(x, y, w, viewmat, K):  # type: ignore[no-untyped-def]
    """Row, column and camera z of a place."""
    z = viewmat[2, 0] * x + viewmat[2, 1] * y + viewmat[2, 2] * w + viewmat[2, 3]
    u = viewmat[0, 0] * x + viewmat[0, 1] * y + viewmat[0, 2] * w + viewmat[0, 3]
    v = viewmat[1, 0] * x + viewmat[1, 1] * y + viewmat[1, 2] * w + viewmat[1, 3]
    return int(np.floor(K[1, 1] * v / z + K[1, 2])), int(np.floor(K[0, 0] * u / z + K[0, 2])), z


@njit(cache=True, nogil=True)
def _seen_empty(x, y, w, nearest, viewmat, K, slack):  # type: ignore[no-untyped-def]
    """Whether a view looks through a place; `nearest` (S, S) is 1 / camera z, 0 where it sees nothing."""
    row, column, z = _project(x, y, w, viewmat, K)
    if not (0 <= row < len(nearest) and 0 <= column < len(nearest)):
        return True  # the whole object is in the picture
    return nearest[row, column] == 0 or z < 1 / nearest[row, column] - slack


@njit(cache=True, nogil=True)
def _carve(matter, nearest, viewmat, K, half, slack):  # type: ignore[no-untyped-def]
    """One view, in place."""
    n = len(matter)
    step = 2 * half / n
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if matter[i, j, k]:
                    x, y, w = (i + 0.5) * step - half, (j + 0.5) * step - half, (k + 0.5) * step - half
                    matter[i, j, k] = not _seen_empty(x, y, w, nearest, viewmat, K, slack)


@njit(cache=True, nogil=True)
def _look(looks, nearest, viewmat, K, half):  # type: ignore[no-untyped-def]
    """One more for each place that a view looks through, in place."""
    n = len(looks)
    step = 2 * half / n
    for i in range(n):
        for j in range(n):
            for k in range(n):
                x, y, w = (i + 0.5) * step - half, (j + 0.5) * step - half, (k + 0.5) * step - half
                looks[i, j, k] += _seen_empty(x, y, w, nearest, viewmat, K, 0.0)


@njit(cache=True, nogil=True)
def _nearest(places, viewmat, K, size):  # type: ignore[no-untyped-def]
    """(size, size) 1 / camera z of voxels at places (N, 3), 3 x 3 pixels each; 0 where there is none."""
    nearest = np.zeros((size, size))
    for p in range(len(places)):
        row, column, z = _project(places[p, 0], places[p, 1], places[p, 2], viewmat, K)
        for i in range(max(row - 1, 0), min(row + 2, size)):
            for j in range(max(column - 1, 0), min(column + 2, size)):
                nearest[i, j] = max(nearest[i, j], 1 / z)
    return nearest


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
