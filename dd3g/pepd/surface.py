"""From soft masks to a surface: visual hull, surface nets, first hits; the loops are in `surface_kernels`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.numba_setup import turn
from dd3g.pepd.frustum import sampled
from dd3g.pepd.surface_kernels import flood, gradients, least_along, lower_pieces, march, net_points

HALF = 0.6  # half the side of the cube that is searched, world units; objects reach 0.55
LEVEL = 0.5  # of a field that makes the surface
SOFTNESS = 0.05  # world units in depth over which an inflated field falls from `LEVEL` to nothing


def visual_hull(alpha: Tensor, cameras: Cameras, resolution: int) -> Tensor:
    """`least_alpha` of the n^3 voxels of the cube [-HALF, HALF]^3: (n, n, n) in 0..1, indexed x, y, z."""
    return least_alpha(alpha, cameras, voxel_centres(resolution)).view((resolution,) * 3)


def carved(alpha: Tensor, depth: Tensor, cameras: Cameras, resolution: int, softness: float) -> Tensor:
    """`visual_hull` without what lies before the first surface that a camera sees.

    Camera depth (V, S, S) is 0 where it is not known. The field rises from 0 to 1 over `softness` world units
    of it, and is `LEVEL` at the depth.
    """
    a = (torch.arange(resolution, dtype=torch.float64) + 0.5) * (2 * HALF / resolution) - HALF
    points = torch.cartesian_prod(a, a, a)
    return least_alpha(alpha, cameras, points, depth, softness).view((resolution,) * 3)


def least_alpha(
    alpha: Tensor, cameras: Cameras, points: Tensor, depth: Tensor | None = None, softness: float = 1.0
) -> Tensor:
    """Smallest alpha (P,) that any camera sees a point through (Laurentini 1994, with soft masks).

    Args:
        alpha: (V, S, S) in 0..1.
        cameras: (V,) of these masks; a point outside a picture counts as transparent there.
        points: (P, 3) in the world.
        depth: as in `carved`.
        softness: of the depth.
    """
    found = np.empty(len(points), np.float32)
    before = _array(alpha[:0] if depth is None else depth)
    with turn:
        viewmats, Ks = _array(cameras.viewmats), _array(cameras.Ks)
        least_along(_array(alpha), before, softness, viewmats, Ks, points.contiguous().numpy(), found)
    return torch.from_numpy(found)


def inflated_field(half: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """Field (n, n, n), `LEVEL` on an inflated silhouette around the upright plane that faces the camera (1,).

    The half thickness (S, S) is along the camera's rays, in world units.
    """
    points = voxel_centres(resolution)
    uv, z = camera.project(points)  # (1, P, 2), (1, P)
    thickness = sampled(half[None, None], uv)[0, 0]
    eye = camera.positions[0]
    towards = F.normalize(eye * torch.tensor([1.0, 0.0, 1.0]), dim=0)
    # Along its ray, of camera depth z, a point p lies z (p . n) / ((p - eye) . n) from the plane p . n = 0.
    offset = z[0] * (points @ towards) / ((points - eye) @ towards)
    return (LEVEL + (thickness - offset.abs()) / (2 * SOFTNESS)).clamp(0, 1).view((resolution,) * 3)


def voxel_centres(resolution: int) -> Tensor:
    """(n^3, 3) world places of the voxels of [-HALF, HALF]^3, the last axis fastest."""
    a = (torch.arange(resolution) + 0.5) / resolution * 2 * HALF - HALF
    return torch.cartesian_prod(a, a, a)


def smoothed(field: Tensor, deviation: float) -> Tensor:
    """Gaussian filter of (n, n, n) with this standard deviation in voxels."""
    radius = max(1, round(2.5 * deviation))
    x = torch.arange(-radius, radius + 1, dtype=field.dtype)
    weights = (-0.5 * (x / deviation).square()).exp()
    weights = weights / weights.sum()
    for _ in range(3):  # filters the last axis and brings the next one there
        padded = F.pad(field, (radius, radius), mode="replicate")
        field = sum(w * padded[..., k : k + field.shape[-1]] for k, w in enumerate(weights)).permute(2, 0, 1)
    return field.contiguous()


def without_crumbs(field: Tensor, level: float, least: int) -> Tensor:
    """The field without pieces above the level of fewer than `least` voxels, which hang in the air.

    The largest piece stays, however small. Voxels (n, n, n) belong to one piece where they share a face.
    """
    values = field.numpy().copy()
    lower_pieces(values, level, least)
    return torch.from_numpy(values)


def without_cavities(field: Tensor, level: float) -> Tensor:
    """The field (n, n, n) with the hollows filled that nothing outside reaches, and nobody sees.

    Of its parts below the level, the largest is the outside.
    """
    hollow = without_crumbs(-field, -level, field.numel()) < -field
    return torch.where(hollow, level + 1e-3, field)


def surface_nets(field: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Closed surface field = level (naive surface nets, Gibson 1998): a point in each cell that it crosses.

    The field (n, n, n), float32 over [-HALF, HALF]^3, is above the level inside. Returns points (P, 3) in the
    world and outward unit normals (P, 3).
    """
    values = field.numpy()
    n = len(values)
    places = np.empty((net_points(values, level, np.empty((0, 3), np.float32)), 3), np.float32)
    net_points(values, level, places)
    slopes = np.empty_like(places)
    gradients(values, places, slopes)
    points = (torch.from_numpy(places) + 0.5) * (2 * HALF / n) - HALF
    return points, -F.normalize(torch.from_numpy(slopes), dim=-1)


def surface_quads(field: Tensor, level: float) -> Tensor:
    """Quads (Q, 4) between the points of `surface_nets`, counterclockwise as seen from outside.

    Each edge of the grid that crosses the surface gives the quad of the four cells around it. After
    `unambiguous` every side of a quad is one of exactly one other.
    """
    inside = np.pad(field.numpy() > level, 1)
    corners = sliding_window_view(inside, (2, 2, 2))
    crossed = corners.any((3, 4, 5)) & ~corners.all((3, 4, 5))
    names = np.cumsum(crossed).reshape(crossed.shape) - 1  # cells in the order of `surface_nets`
    quads = []
    for axis in range(3):
        b, c = (axis + 1) % 3, (axis + 2) % 3
        low, high = (np.take(inside, range(i, len(inside) - 1 + i), axis) for i in (0, 1))
        for leaving, order in ((low & ~high, (0, 1, 2, 3)), (high & ~low, (3, 2, 1, 0))):
            edges = np.argwhere(leaving)
            around = []
            for step_b, step_c in ((-1, -1), (0, -1), (0, 0), (-1, 0)):
                cells = edges.copy()
                cells[:, b] += step_b
                cells[:, c] += step_c
                around.append(names[tuple(cells.T)])
            quads.append(np.stack([around[i] for i in order], -1))
    return torch.from_numpy(np.concatenate(quads))


def unambiguous(field: Tensor, level: float) -> Tensor:
    """The field (n, n, n), high inside, with a little matter where two voxels meet at no more than an edge.

    There four quads would share a side, and the surface would not be that of a solid.
    """
    values = field.numpy().copy()
    while True:
        inside = values > level
        touched = np.zeros_like(inside)
        for axis in range(3):
            around, mark = (np.moveaxis(x, axis, 0) for x in (inside, touched))
            places = [np.s_[:, i : i - 1 or None, j : j - 1 or None] for i, j in np.ndindex(2, 2)]
            a, b, c, d = (around[place] for place in places)
            for place in places:
                mark[place] |= (a == d) & (b == c) & (a != b)
        touched &= ~inside
        if not touched.any():
            return torch.from_numpy(values)
        values[touched] = level + 1e-3


def first_hits(field: Tensor, level: float, camera: Cameras, mask: Tensor) -> Tensor:
    """Camera depth (S, S) at which the rays of a mask and a camera (1,) enter field > level, else 0.

    The field (n, n, n) lies over [-HALF, HALF]^3, and the mask (S, S) has the camera's size.
    """
    origins, directions = camera.rays()
    depth = np.zeros(mask.shape, np.float32)
    with turn:
        eye, reach = _array(origins[0, 0, 0]), (camera.near, camera.far)
        march(field.numpy(), level, eye, _array(directions[0]), mask.numpy(), HALF, *reach, depth)
    return torch.from_numpy(depth)


def filled_depth(depth: Tensor) -> Tensor:
    """Depth (S, S) with that fewest pixels away, to four sides, in place of zeros."""
    found = _array(depth).copy()
    flood(found)
    return torch.from_numpy(found)


def _array(x: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.detach().numpy(), np.float32)
