"""A textured, closed mesh of what Gaussians show from around."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians, framing
from dd3g.io.mesh import Mesh
from dd3g.pepd.solid import mask_cameras, sampled, spread
from dd3g.pepd.surface import (
    HALF,
    LEVEL,
    carved,
    smoothed,
    surface_nets,
    surface_quads,
    unambiguous,
    without_cavities,
)
from dd3g.rasterizer import rasterize

SIZE = 256  # pixels a side of the pictures that shape and texture come from
REACH = 0.58  # of the object from the centre, in the cube that is searched and in every picture
OPAQUE = 0.95  # alpha of a pixel whose depth carves
BLUR = 0.8  # standard deviation of the filter on the field, in voxels
PATCH = 5  # texels a side of a quad; the outer ones lie on its edges, so that neighbours agree there


@torch.no_grad()
def mesh_of(gaussians: Gaussians, resolution: int = 128) -> Mesh:
    """The surface that Gaussians show from around: their masks and depths carve a solid, whose surface it is.

    Args:
        gaussians: one object (no batch dimensions) anywhere in the world, any device.
        resolution: voxels a side that the object is carved with.

    Returns:
        A mesh in the same world, watertight, with normals outwards.

    Raises:
        UserError: when nothing is solid enough to have a surface.
    """
    gaussians = gaussians.detach().to("cpu", torch.float32).pruned(0)
    gaussians = gaussians.select(~strays(gaussians))
    centre, scale = _frame(gaussians)
    framed = gaussians.transformed(translation=-centre).transformed(scale=scale)
    cameras = mask_cameras(SIZE)
    render = rasterize(framed, cameras, background=0.0, antialiased=True)
    alpha = render.alpha
    # Antialiasing makes what is thinner than a pixel faint, and a sheet would be carved away from its side.
    outline = rasterize(framed, cameras, background=0.0, antialiased=False).alpha[:, 0]
    depth = spread(render.depth / alpha.clamp(min=1e-3), alpha > LEVEL)[:, 0]  # (V, S, S)
    colors = spread(render.rgb / alpha.clamp(min=1e-3), (alpha - LEVEL).clamp(min=0))  # (V, 3, S, S)
    voxel = 2 * HALF / resolution
    # Centres of Gaussians lie inside what they cover: the surface is a voxel nearer, within the outline. What
    # shines through has a depth between front and back, which says nothing.
    known = torch.where(alpha[:, 0] > OPAQUE, depth - voxel, 0.0)
    field = smoothed(carved(outline, known, cameras, resolution, 4 * voxel), BLUR)
    field = without_cavities(unambiguous(field, LEVEL), LEVEL)
    points, normals = surface_nets(field, LEVEL)
    quads = surface_quads(field, LEVEL)
    if len(quads) == 0:
        raise UserError(
            "no surface: the Gaussians are too faint, too few or too far apart to look solid from around; "
            "keep the splats"
        )
    u = torch.linspace(0, 1, PATCH)
    across, down = u.expand(PATCH, -1), u[:, None].expand(-1, PATCH)
    corners = torch.stack(
        [(1 - across) * (1 - down), across * (1 - down), across * down, (1 - across) * down]
    )
    where, facing = (
        torch.einsum("kij,qkc->qijc", corners, values[quads]).reshape(-1, 3) for values in (points, normals)
    )
    seen = _seen(where, F.normalize(facing, dim=-1), colors, depth, cameras, 2 * voxel)
    patches = seen.clamp(0, 1).mul(255).round().to(torch.uint8).view(len(quads), PATCH, PATCH, 3)
    texture, places = _atlas(patches)
    return Mesh(
        (points / scale + centre).numpy(), normals.numpy(), quads.numpy(), places.numpy(), texture.numpy()
    )


def strays(gaussians: Gaussians) -> Tensor:
    """(N,) bool, the Gaussians thrice as far from the middle as nearly all others: not of the object."""
    means = gaussians.means
    away = (means - framing(gaussians)[0].to(means)).norm(dim=-1)
    solid = away[(gaussians.opacities > 0.05) & away.isfinite()]
    return away > 3 * solid[:: len(solid) // 100_000 + 1].quantile(0.98) if len(solid) else away < 0


def _frame(gaussians: Gaussians) -> tuple[Tensor, float]:
    """Centre (3,) of the object, and the factor that brings it to `REACH`."""
    solid = gaussians.opacities > 0.05
    if not solid.any():
        raise UserError("no surface: none of the Gaussians has an opacity over 0.05; keep the splats")
    means, reach = gaussians.means[solid], 2 * gaussians.scales[solid].amax(-1, keepdim=True)
    low, high = (means - reach).amin(0), (means + reach).amax(0)
    centre = (low + high) / 2
    radius = ((means - centre).norm(dim=-1) + reach[:, 0]).max()
    return centre, REACH / max(float(radius), 1e-9)


def _seen(
    points: Tensor, normals: Tensor, colors: Tensor, depth: Tensor, cameras: Cameras, slack: float
) -> Tensor:
    """Colours (P, 3) of points from the views that see them, mostly from the straightest one."""
    total, weight = torch.zeros(len(points), 3), torch.full((len(points), 1), 1e-12)
    for v in range(len(cameras)):
        uv, z = cameras[v : v + 1].project(points)  # (1, P, 2), (1, P)
        found = sampled(torch.cat([colors[v : v + 1], depth[v : v + 1, None]], 1), uv)[0].T  # (P, 4)
        to_eye = F.normalize(cameras.positions[v] - points, dim=-1)
        straight = (to_eye * normals).sum(-1).clamp(min=0.02) ** 8
        hidden = z[0] - found[:, 3] > slack
        share = (straight * torch.where(hidden, 1e-4, 1.0))[:, None]
        total, weight = total + share * found[:, :3], weight + share
    return total / weight


def _atlas(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Texture (H, W, 3) of patches (Q, PATCH, PATCH, 3), and where their corners are, (Q, 4, 2) in 0..1."""
    count = len(patches)
    columns = math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    filled = torch.zeros(rows * columns, *patches.shape[1:], dtype=patches.dtype)
    filled[:count] = patches
    grid = filled.view(rows, columns, PATCH, PATCH, 3).transpose(1, 2)
    texture = grid.reshape(rows * PATCH, columns * PATCH, 3)
    index = torch.arange(count)
    upper_left = torch.stack([index % columns, index // columns], -1)[:, None] * PATCH + 0.5  # texel centres
    corners = upper_left + (PATCH - 1) * torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]])
    return texture, corners / torch.tensor([columns * PATCH, rows * PATCH])
