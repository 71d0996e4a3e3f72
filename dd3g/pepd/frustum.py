"""Maps on the picture's pixels, and the frustum of its camera: slices, and bodies made of a silhouette.

The camera stands at azimuth 0 and some elevation of the canonical orbit. Its frustum is cut into slices of
equal camera depth; occupancy is known along the rays of the pixels, at the slices' centres.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import FOVY, RADIUS

NEAR, FAR = 0.95, 2.05  # camera depth that the slices span; objects lie within 0.55 of the origin
TAN = math.tan(math.radians(FOVY) / 2)
SOFTNESS = 0.05  # of the template: world units a logit
LIMIT = 2.5  # of its logits
THICKEST = 0.3  # half thickness of an inflated silhouette at most: what is broad is seldom as deep as a ball
OUTSIDE = -6.0  # logit where the silhouette lets nothing be
REACH = 0.6  # of a body of revolution from its axis, and up and down, world units; objects reach 0.55
ANGLES = 32  # around its axis at which it is held against the silhouette


def slices(bins: int, device: torch.device | None = None) -> Tensor:
    """(D,) camera depth of the centres of `bins` slices."""
    return NEAR + (FAR - NEAR) * (torch.arange(bins, device=device) + 0.5) / bins


def pixel_rays(size: int) -> Tensor:
    """(2, S, S) x / z and y / z of the pixels' rays, in the camera's axes."""
    a = ((torch.arange(size) + 0.5) / size * 2 - 1) * TAN
    y, x = torch.meshgrid(a, a, indexing="ij")
    return torch.stack([x, y])


def plucker(rays: Tensor, elevation: Tensor) -> Tensor:
    """Plücker coordinates (B, 6, S, S) of the unit rays, moment in units of the orbit's radius.

    The rays are `pixel_rays`, of cameras at azimuth 0 and elevations (B,) in radians.
    """
    sin, cos = (x[:, None, None, None] for x in (elevation.sin(), elevation.cos()))
    x, y = rays[None, :1].expand(len(elevation), -1, -1, -1), rays[None, 1:]
    # The camera's axes in the world: right (1, 0, 0), down (0, -cos, sin), forward (0, -sin, -cos).
    d = torch.cat([x, -y * cos - sin, y * sin - cos], 1)
    d = d / d.norm(dim=1, keepdim=True)
    moment = torch.cat([sin * d[:, 2:] - cos * d[:, 1:2], cos * d[:, :1], -sin * d[:, :1]], 1)
    return torch.cat([moment, d], 1)


def upright_depth(rays: Tensor, elevation: Tensor) -> Tensor:
    """(B, 1, S, S) camera depth at which rays cross the upright plane through the origin that faces them."""
    sin, cos = (x[:, None, None, None] for x in (elevation.sin(), elevation.cos()))
    return RADIUS * cos / (cos - rays[None, 1:] * sin).clamp(min=0.1)


def frustum_places(points: Tensor, elevation: Tensor) -> Tensor:
    """World points (B, ..., 3) -> x, y and depth in the frustum, -1..1 from edge to edge, for `grid_sample`.

    The cameras stand at azimuth 0 and elevations (B,) in radians.
    """
    shape = (-1, *(1,) * (points.dim() - 2))
    sin, cos = elevation.sin().view(shape), elevation.cos().view(shape)
    x, y, w = points.unbind(-1)
    z = (RADIUS - sin * y - cos * w).clamp(min=0.01)  # what is behind the camera lies outside either way
    across, down = x / (z * TAN), (sin * w - cos * y) / (z * TAN)
    return torch.stack([across, down, (z - NEAR) / (FAR - NEAR) * 2 - 1], -1)


def inflate(alpha: Tensor, rounds: int = 12) -> Tensor:
    """Half thickness of a body with this silhouette, so that a disc becomes a ball.

    Solves laplace(u) = -4 inside the mask with u = 0 outside, from coarse to fine grids: for a disc of radius
    R that is u = R^2 - r^2, whose root is the height of a ball.

    Args:
        alpha: (B, 1, S, S) in 0..1.
        rounds: Jacobi sweeps on each grid.

    Returns:
        (B, 1, S, S) in world units at the object's distance.
    """
    masks = [(alpha.float() > 0.5).float()]
    while masks[-1].shape[-1] % 2 == 0 and masks[-1].shape[-1] > 8:
        masks.append(F.avg_pool2d(masks[-1], 2))
    u = torch.zeros_like(masks[-1])
    for mask in reversed(masks):
        if u.shape != mask.shape:
            u = 4 * F.interpolate(u, scale_factor=2, mode="bilinear")  # lengths are pixels, and these halve
        _, right, left, below, above = with_neighbours(mask)
        # 4, and one more for each side on the outline, beyond which u changes its sign
        own = 8 - (right + left + below + above)
        # In place: half of a network's operations are these, and a small one waits for each of them.
        u, right, left, below, above = with_neighbours(u)
        for _ in range(rounds):
            around = (right + left).add_(below).add_(above)
            torch.div(around.add_(4).mul_(mask), own, out=u)
    pixel = 2 * RADIUS * TAN / alpha.shape[-1]
    return (u.sqrt() * pixel).clamp(max=THICKEST)


def with_neighbours(x: Tensor) -> tuple[Tensor, ...]:
    """A copy of maps (B, 1, S, S), and of it what is right, left, below and above of each pixel, else 0."""
    p = F.pad(x, (1, 1, 1, 1))
    across, down = p[..., 1:-1, :], p[..., 1:-1]
    return across[..., 1:-1], across[..., 2:], across[..., :-2], down[..., 2:, :], down[..., :-2, :]


def template(half: Tensor, middle: Tensor, depths: Tensor) -> Tensor:
    """Occupancy logits (B, D, S, S) of a body, at the camera depths (D,) of slices.

    Its half thickness and the camera depth of its middle are (B, 1, S, S), in world units.
    """
    return ((half - (depths[:, None, None] - middle).abs()) / SOFTNESS).clamp(-LIMIT, LIMIT)


def revolved(alpha: Tensor, rays: Tensor, elevation: Tensor, depths: Tensor) -> Tensor:
    """Occupancy logits of the largest upright body of revolution whose silhouette lies within this one.

    Cups, bottles, lamps and fruit are such bodies, and only these have a shape that one picture tells: seen
    from above or below, their rims are ellipses. The axis lies in the upright plane through the origin that
    faces the camera.

    Args:
        alpha: (B, 1, S, S) in 0..1.
        rays: (2, S, S) of its pixels, see `pixel_rays`.
        elevation: (B,) of the cameras, radians.
        depths: (D,) camera depth of slices.

    Returns:
        (B, D, S, S) at the slices along the rays.
    """
    size, device = alpha.shape[-1], alpha.device
    axis = mirror_axis(alpha) * TAN * RADIUS  # (B,) its x in the world
    height = (torch.arange(size, device=device) + 0.5) * (2 * REACH / size) - REACH  # (H,)
    radius = (torch.arange(size // 2, device=device) + 0.5) * (2 * REACH / size)  # (R,)
    angle = (torch.arange(ANGLES, device=device) + 0.5) * (2 * math.pi / ANGLES)  # (A,)
    circles = torch.stack(
        torch.broadcast_tensors(
            axis[:, None, None, None] + radius[:, None] * angle.sin(),
            height[:, None, None],
            radius[:, None] * angle.cos(),
        ),
        -1,
    )  # (B, H, R, A, 3)
    places = frustum_places(circles, elevation)[..., :2]
    seen = sampled(alpha.float(), places.flatten(1, 3))[:, 0].view(circles.shape[:-1])
    section = seen.amin(-1).cummin(-1).values  # (B, H, R): a disc is in it with all that is nearer the axis
    sin, cos = (x[:, None, None, None] for x in (elevation.sin(), elevation.cos()))
    z = depths[:, None, None]
    x, y = rays
    up = RADIUS * sin - z * (y * cos + sin)  # (B, D, S, S)
    near = RADIUS * cos + z * (y * sin - cos)
    out = ((z * x - axis[:, None, None, None]).square() + near.square()).sqrt()
    grid = torch.stack([2 * out / REACH - 1, up / REACH], -1).flatten(1, 2)  # (B, D S, S, 2)
    found = F.grid_sample(section[:, None], grid, align_corners=False, padding_mode="border")
    found = found[:, 0].unflatten(1, (len(depths), size))
    return LIMIT * (2 * torch.where((out < REACH) & (up.abs() < REACH), found, 0.0) - 1)


def mirror_axis(alpha: Tensor) -> Tensor:
    """Where masks (B, 1, S, S) have the upright axis about which most of each is mirrored: (B,) in -1..1."""
    size = alpha.shape[-1]
    rows = (alpha[:, 0] > 0.5).float()
    # (B, S, S) in how many rows both columns are covered: up to 256 autocast keeps whole numbers
    pairs = (rows.transpose(1, 2) @ rows).float()
    skewed = F.pad(pairs, (0, size)).flatten(1)[:, :-size].view(-1, size, 2 * size - 1)
    return (skewed.sum(1).argmax(1) + 1) / size - 1  # by the sum of both columns


def spread(values: Tensor, weight: Tensor) -> Tensor:
    """Carry values (V, C, S, S) beyond where their weight (V, 1, S, S) ends, from coarser means."""
    weight = weight.to(values)
    levels = [torch.cat([values * weight, weight], 1)]
    while levels[-1].shape[-1] > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True))
    found = levels.pop()
    for level in reversed(levels):
        found = level + 1e-3 * F.interpolate(found, level.shape[-2:], mode="bilinear")
    return found[:, :-1] / found[:, -1:].clamp(min=1e-30)


def resize(rgba: Tensor, size: int) -> Tensor:
    """Area-resize straight RGBA (B, 4, H, W) to a square; colours are averaged by their alpha."""
    if rgba.shape[-2:] == (size, size):
        return rgba
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    small = F.interpolate(premultiplied, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return torch.cat([(small[:, :3] / small[:, 3:].clamp(min=1e-6)).clamp(0, 1), small[:, 3:]], 1)


def sampled(maps: Tensor, uv: Tensor) -> Tensor:
    """Maps (V, C, S, S) at places (V, P, 2) in -1..1 -> (V, C, P); beyond the edge as at it."""
    return F.grid_sample(maps, uv[:, :, None], align_corners=False, padding_mode="border")[..., 0]
