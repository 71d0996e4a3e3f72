"""A closed body of opaque discs in place of the generator's soft splats, coloured by the picture.

Soft splats hide a wrong shape from pixel losses and show it to people. `solidify` keeps what the generator
knows, the outline and the colour from every side, and drops the rest: masks from around -> visual hull, with
a share of the inflated silhouette -> closed surface -> a disc at every point of it -> colour from the picture
where it shows, elsewhere from the generator, with what the picture shows in finer detail than it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians, matrix_to_quaternion
from dd3g.pepd.frustum import inflate, resize, sampled, spread
from dd3g.pepd.occupancy import Shape
from dd3g.pepd.surface import (
    HALF,
    LEVEL,
    filled_depth,
    first_hits,
    inflated_field,
    smoothed,
    surface_nets,
    visual_hull,
    voxel_centres,
    without_crumbs,
)
from dd3g.rasterizer import rasterize
from dd3g.rasterizer.projection import EPS2D

Field = Callable[[int], Tensor]  # voxels a side n -> (n, n, n) over the cube, high inside
Colors = Callable[[Tensor, Tensor], Tensor]  # points and normals (P, 3) -> sRGB (P, 3)

VISIBLE = 0.075  # alpha from which a pixel gets a disc: the square of less is not written
FILLED = 0.8  # alpha up to which a pixel at the outline is not filled
NEAR = (0.4, 0.3)  # fields below `LEVEL` at whose depth a ray lies that just misses the body
# Where masks are taken from: rings at three elevations, for outlines of legs as well as of tops.
RING = ((10.0, 12, 0.0), (40.0, 6, 0.0), (-10.0, 4, 45.0))  # elevation, cameras, first azimuth


@dataclass(frozen=True)
class SolidOptions:
    """How the surface is found and how discs lie on it; lengths in voxels unless they say otherwise."""

    resolution: int = 72  # voxels a side
    mask_size: int = 64  # pixels a side of the masks, those of the generator's training
    edge: float = 0.54  # alpha where their masks end: lower swells haze into matter, higher leaves holes
    swelling: float = 0.2  # share of the inflated silhouette in the body, which smooths what masks tear
    certainty: float = 2.0  # logits above the surface's that each ray of the picture reaches, where likeliest
    matter: float = -0.75  # logit of a shape network from which there is matter: lower leaves fewer holes
    hull: float = 0.05  # share of the generator's hull in a body that a shape network finds
    imagined: float = 0.3  # share of the generator's colours in those of a shape network
    coarse: int = 32  # pixels a side: what the picture shows in finer detail, the hidden side has too; 0: not
    blur: float = 0.65  # standard deviation of the filter on the body
    crumb: int = 30  # voxels: smaller pieces of matter are dropped, those of rays in doubt about their depth
    tangent: float = 0.54  # standard deviation of a disc along the surface: what is behind shows through less
    thickness: float = 0.06  # and across it
    inset: float = 0.6  # discs lie this far inside, so that what they cover ends at the surface
    covered: float = 0.9  # those that the visible side's cover lie so much further from the camera
    opacity: float = 0.97
    front: float = 0.46  # of the visible side's discs, one a picture pixel: standard deviation in pixels
    behind: float = 0.012  # world units by which these lie behind the surface, for the same reason as `inset`
    drawn_in: float = 0.5  # pixels by which those of the outline lie nearer to the object's middle
    stretch: float = 3.0  # longest by shortest axis of a visible disc that is seen at a slant
    reach: float = 1.5  # depth behind the first hit up to which a point counts as visible
    gap: float = 2.0  # depth from the nearest body from which what has none takes that and not a mean
    facing: float = 0.15  # least cosine to the viewing ray of a visible point
    most_visible: int = 24_000  # pixels on the object; a picture with more is reduced
    most_hidden: int = 16_000  # discs all around; a longer surface is taken at fewer voxels


@dataclass(frozen=True)
class SoftViews:
    """Soft Gaussians as they look from all around."""

    rgba: Tensor  # (V, 4, S, S) straight
    cameras: Cameras  # (V,)
    masks: Tensor  # (V, S, S) `LEVEL` on the outline

    @classmethod
    def of(cls, gaussians: Gaussians, options: SolidOptions) -> SoftViews:
        """Render Gaussians (N,), on the CPU."""
        cameras = mask_cameras(options.mask_size)
        render = rasterize(gaussians, cameras, background=0.0, antialiased=True)
        rgba = torch.cat([render.rgb / render.alpha.clamp(min=1e-3), render.alpha], 1).clamp(0, 1)
        return cls(rgba, cameras, (LEVEL + 1.25 * (render.alpha[:, 0] - options.edge)).clamp(0, 1))

    def colors(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colours (P, 3) of a surface, from the views, weighted by how squarely each sees it."""
        uv, _ = self.cameras.project(points)
        rgb, alpha = self.rgba.split([3, 1], 1)
        seen = sampled(torch.cat([spread(rgb, alpha), alpha], 1), uv)  # (V, 4, P)
        to_eye = F.normalize(self.cameras.positions[:, None] - points, dim=-1)
        facing = (to_eye * normals).sum(-1).clamp(min=0) ** 3  # (V, P)
        weight = (facing * (seen[:, 3] + 1e-3) + 1e-6)[:, None]
        return ((seen[:, :3] * weight).sum(0) / weight.sum(0)).T


def solidify(
    gaussians: Gaussians,
    picture: Tensor,
    camera: Cameras,
    options: SolidOptions = SolidOptions(),
    shape: Shape | None = None,
) -> Gaussians:
    """Opaque discs on the closed surface that the Gaussians' outlines suggest, on the CPU.

    Args:
        gaussians: (N,) from the generator, in the world of `camera`.
        picture: (4, S, S) straight RGBA; the visible side gets one disc a pixel of it.
        camera: (1,) that took the picture, of any size, at azimuth 0 of the orbit.
        options: how the surface is found.
        shape: where matter is; without one it is where the hull and the inflated silhouette are.

    Returns:
        (M,) Gaussians; the given ones where the picture shows nothing.
    """
    gaussians = gaussians.to("cpu")
    picture, camera = within(picture, camera, options)
    views = SoftViews.of(gaussians, options)
    if shape is None:
        body, colors = from_hull(views, picture, camera, options)
    else:
        body, colors = from_shape(shape, views, options)
    if options.coarse:
        colors = detailed(colors, picture, camera, options.coarse)

    def field(resolution: int) -> Tensor:
        cut = visual_hull(picture[3:], camera, resolution)
        matter = smoothed(torch.minimum(body(resolution), cut), options.blur)
        return without_crumbs(matter, LEVEL, options.crumb)

    solid = discs_on(field, picture, camera, colors, options)
    return solid if len(solid.means) else gaussians


def from_hull(views: SoftViews, picture: Tensor, camera: Cameras, o: SolidOptions) -> tuple[Field, Colors]:
    """The hull with a share of the inflated silhouette, in the generator's colours."""
    half = inflate(resize(picture[None], o.mask_size)[:, 3:])[0, 0]

    def body(resolution: int) -> Tensor:
        hull = visual_hull(views.masks, views.cameras, resolution)
        return torch.lerp(hull, inflated_field(half, camera, resolution), o.swelling)

    return body, views.colors


def from_shape(shape: Shape, views: SoftViews, o: SolidOptions) -> tuple[Field, Colors]:
    """Where an occupancy network and the generator's outlines find matter, in the colours of both."""
    shape = shape.shown(o.certainty)

    def body(resolution: int) -> Tensor:
        logits = shape.occupancy(voxel_centres(resolution)).view((resolution,) * 3)
        hull = visual_hull(views.masks, views.cameras, resolution)
        return torch.lerp((LEVEL + (logits - o.matter) / 6).clamp(0, 1), hull, o.hull)

    def colors(points: Tensor, normals: Tensor) -> Tensor:
        return torch.lerp(shape.colors(points), views.colors(points, normals), o.imagined)

    return body, colors


def detailed(colors: Colors, picture: Tensor, camera: Cameras, coarse: int) -> Colors:
    """Colours with the fine detail of the picture, carried along its rays through the body.

    A network that sees few pixels leaves the hidden side smooth, which looks wrong on all that has a texture.
    Its colours are right on average, so only what they cannot have is added: grain, rings, seams, which the
    picture (4, S, S) has and does not have at `coarse` pixels a side.
    """
    small = resize(picture[None], coarse)
    mean = F.interpolate(spread(small[:, :3], small[:, 3:]), picture.shape[-2:], mode="bilinear")
    fine = spread(picture[None, :3] - mean, clear(picture))
    return lambda points, normals: colors(points, normals) + sampled(fine, camera.project(points)[0])[0].T


def within(picture: Tensor, camera: Cameras, options: SolidOptions) -> tuple[Tensor, Cameras]:
    """Picture (4, S, S) on the CPU, reduced to some `most_visible` pixels on the object; its camera (1,)."""
    picture, most = picture.cpu(), options.most_visible
    while (count := int((picture[3] > VISIBLE).sum())) > most:
        picture = resize(picture[None], int(picture.shape[-1] * (options.most_visible / count) ** 0.5))[0]
        most = options.most_visible + options.most_hidden // 4  # the outline of a reduced one is softer
    return picture, camera.to("cpu").resized(picture.shape[-1])


def inflated_silhouette(
    picture: Tensor, camera: Cameras, options: SolidOptions = SolidOptions()
) -> Gaussians:
    """Discs (M,) on a body without any network: what a generator must beat, where a shape may start.

    The silhouette of a picture (4, S, S), straight RGBA, inflated, the picture in front and mirrored behind;
    on the CPU. The camera (1,) took it; there are none where the picture is empty.
    """
    picture, camera = within(picture, camera, options)
    half = inflate(resize(picture[None], options.mask_size)[:, 3:])[0, 0]

    def field(resolution: int) -> Tensor:
        front = visual_hull(picture[3:], camera, resolution)
        return smoothed(torch.minimum(front, inflated_field(half, camera, resolution)), options.blur)

    return discs_on(field, picture, camera, projected_colors(picture, camera), options)


def projected_colors(picture: Tensor, camera: Cameras) -> Colors:
    """Colours without a network: the picture (4, S, S) where the points appear in its camera (1,)."""
    filled = spread(picture[None, :3], picture[None, 3:])
    return lambda points, normals: sampled(filled, camera.project(points)[0])[0].T


def discs_on(
    field: Field, picture: Tensor, camera: Cameras, colors: Colors, options: SolidOptions
) -> Gaussians:
    """Opaque discs on the closed surface field = `LEVEL`, the visible side's as fine as the picture.

    Args:
        field: gives it at any resolution; asked again where the surface has more than `most_hidden` points,
            or with the discs of the visible side more than `most_visible` and these.
        picture: (4, S, S) straight RGBA on the CPU, as `within` leaves it.
        camera: (1,) of this size that took it.
        colors: of the points that the picture does not show.
        options: see there.

    Returns:
        (M,) Gaussians; where nothing lies above the level the visible side alone, facing the camera.
    """
    o, resolution, shown = options, options.resolution, picture[3] > VISIBLE
    room = o.most_visible + o.most_hidden - int(shown.sum())
    while True:
        values = field(resolution)
        points, normals = surface_nets(values, LEVEL)
        depth = first_hits(values, LEVEL, camera, shown)
        twice = (outline(picture[3]) | any_around(shown & (depth == 0))) & shown
        for level in NEAR:
            missed = shown & (depth == 0) & (depth > 0).any()
            depth = torch.where(missed, first_hits(values, level, camera, missed), depth)
        twice &= 2 * int(twice.sum()) < room  # a grid of wires is all outline
        most = min(o.most_hidden, room - int(twice.sum()))
        if len(points) <= most:
            break
        resolution = int(resolution * min(0.9, (most / len(points)) ** 0.5))
    voxel = 2 * HALF / resolution
    tints = colors(points, normals) if len(points) else points
    filled, mean = filled_depth(depth), spread(depth[None, None], depth[None, None] > 0)[0, 0]
    # A mean is smooth at an outline, but hangs in the air where a ray passes between two legs.
    filled = torch.where((mean - filled).abs() < o.gap * voxel, mean, filled)
    if not (depth > 0).any():
        # What is thinner than voxels has no body, and nothing behind it that adds to its opacity: it is a
        # card through the middle of the world.
        filled = torch.full_like(depth, float(camera.positions[0].norm()) - o.behind)
        picture, twice = torch.cat([picture[:3], picture[3:].sqrt() * shown]), torch.zeros_like(twice)
    else:
        uv, z = camera.project(points)  # (1, P, 2), (1, P)
        surface = sampled(filled[None, None], uv)[0, 0]
        to_eye = F.normalize(camera.positions - points, dim=-1)
        visible = (z[0] - surface < o.reach * voxel) & ((to_eye * normals).sum(-1) > o.facing)
        pictured = sampled(spread(picture[None, :3], clear(picture)), uv)[0].T
        tints = torch.where(visible[:, None], pictured, tints)
        points = points - o.covered * voxel * visible[:, None] * to_eye[0]
    body = Gaussians(
        points - o.inset * voxel * normals,
        matrix_to_quaternion(tangent_axes(normals)),
        torch.tensor([o.tangent, o.tangent, o.thickness]).mul(voxel).repeat(len(points), 1),
        torch.full((len(points),), o.opacity),
        tints.clamp(0, 1),
    )
    return Gaussians.cat([body, visible_side(picture, camera, filled, twice, o)])


def mask_cameras(size: int) -> Cameras:
    """(V,) cameras all around that masks are taken with, `size` pixels a side."""
    azimuths = [first + 360.0 * k / count for _, count, first in RING for k in range(count)]
    elevations = [elevation for elevation, count, _ in RING for _ in range(count)]
    return Cameras.orbit(azimuths, elevations, size)


def visible_side(
    picture: Tensor, camera: Cameras, depth: Tensor, twice: Tensor, o: SolidOptions
) -> Gaussians:
    """One disc a pixel with alpha, at `depth` (S, S) on its ray, in the plane of the depth's slope.

    Discs that leave no gaps reach into their neighbours: colours are sharpened by what that blurs, and at the
    outline, where discs overlap with the body's, opacities are the square of alpha. A renderer blurs what it
    draws, so that what ends at the outline is half gone there: its discs are drawn in. Those of `twice`
    (S, S), bool, are written twice; they are the outline's, and those with no body behind them.
    """
    # The median of 5 x 5 pixels: a mean would hang a comb of discs between a leg and what is seen behind it.
    around = F.unfold(F.pad(depth[None, None], (2, 2, 2, 2), mode="replicate"), 5)  # (1, 25, S * S)
    depth = around.median(1).values.view_as(depth)
    origins, directions = camera.rays()
    eye = origins[0, 0, 0]
    grid = eye + (depth + o.behind)[..., None] * directions[0]  # (S, S, 3)
    keep = picture[3] > VISIBLE
    points = grid[keep]
    across, down = (torch.gradient(grid, dim=axis)[0][keep] for axis in (1, 0))
    view = F.normalize(eye - points, dim=-1)
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1)
    normals = normals * (normals * view).sum(-1, keepdim=True).sign()
    least = 1 / o.stretch
    slant = (normals * view).sum(-1, keepdim=True)
    normals = F.normalize(normals + view * (1.2 * (least - slant)).clamp(min=0), dim=-1)
    slant = (normals * view).sum(-1).clamp(min=least)
    pixel = depth[keep] / camera.Ks[0, 0, 0]
    # The first axis points down the slope, where a pixel covers 1 / slant as much surface.
    steep = F.normalize(view - slant[:, None] * normals, dim=-1)
    flat = slant > 0.999
    slanted = torch.stack([steep, torch.linalg.cross(normals, steep), normals], -1)
    axes = torch.where(flat[:, None, None], tangent_axes(normals), slanted)
    sharp = sharpened(picture, math.sqrt(o.front**2 + EPS2D))
    scales = torch.stack([o.front * pixel / slant, o.front * pixel, 0.25 * pixel], -1)
    inwards = torch.where(outline(picture[3])[..., None], uphill(picture[3]), 0.0)  # (S, S, 2)
    discs = Gaussians(
        points + o.drawn_in * pixel[:, None] * (inwards[keep] @ camera.viewmats[0, :2, :3]),
        matrix_to_quaternion(axes),
        scales,
        0.98 * picture[3][keep].square(),
        sharp[:, keep].T.contiguous(),
    )
    return Gaussians.cat([discs, discs.select(twice[keep])])


def outline(alpha: Tensor) -> Tensor:
    """(S, S) bool, the pixels of alpha (S, S) that are not filled, or next to one; not the midst of glass."""
    return any_around(alpha <= FILLED) & any_around(any_around(alpha <= VISIBLE))


def clear(picture: Tensor) -> Tensor:
    """(1, 1, S, S) how far colours of a picture (4, S, S) are to be believed: faint ones are of the matte."""
    return picture[None, 3:] ** 4


def any_around(these: Tensor) -> Tensor:
    """(S, S) bool, true where any of 3 x 3 pixels (S, S) is."""
    return F.max_pool2d(these[None].float(), 3, 1, 1)[0] > 0


def uphill(alpha: Tensor) -> Tensor:
    """Right and down (S, S, 2) to where more of alpha (S, S) is: 1 long, less where it hardly changes."""
    smooth = F.avg_pool2d(F.pad(alpha[None, None], (2, 2, 2, 2), mode="replicate"), 5, 1)[0, 0]
    down, right = torch.gradient(smooth)
    return F.normalize(torch.stack([right, down], -1), dim=-1, eps=0.05)


def sharpened(picture: Tensor, deviation: float) -> Tensor:
    """Colours (3, S, S) of a picture (4, S, S) and as much again as a blur of so many pixels would take."""
    radius = 3
    x = torch.arange(-radius, radius + 1.0)
    weights = F.normalize((-0.5 * (x / deviation).square()).exp(), p=1, dim=0)
    rgb = spread(picture[None, :3], picture[None, 3:] > 0.5).transpose(0, 1)  # (3, 1, S, S)
    padded = F.pad(rgb, (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return (2 * rgb - blurred)[:, 0].clamp(0, 1)


def tangent_axes(normals: Tensor) -> Tensor:
    """Rotations (P, 3, 3) whose third column is the normal (P, 3)."""
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(normals)
    side = torch.tensor([1.0, 0.0, 0.0]).expand_as(normals)
    helper = torch.where(normals[:, 1:2].abs() < 0.9, up, side)
    u = F.normalize(torch.linalg.cross(helper, normals), dim=-1)
    return torch.stack([u, torch.linalg.cross(normals, u), normals], -1)
