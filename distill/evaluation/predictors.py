"""What an evaluation compares: an object to be predicted, its drawings, and baselines without learning.

A predictor sees a target once and returns a drawing, which draws any of its views at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.pepd.solid import SolidOptions, discs_on, inflated_silhouette, projected_colors, within
from dd3g.pepd.surface import smoothed, visual_hull
from distill.pictures import on_white


@dataclass(frozen=True)
class Target:
    """One object to be predicted from one of its views."""

    id: str  # name of the object
    style: str  # group for the report
    rgba: Tensor  # (V, 4, S, S) true views, straight alpha in 0..1; view `rig[0]` is the input
    cameras: Cameras  # (V,) in the world that the input defines: its camera stands at azimuth 0, elevation 10
    azimuth: Tensor  # (V,) degrees from the input
    # Four view indices at azimuth 0, 90, 180, 270 of the input's elevation, or the input's alone
    rig: list[int]
    novel: list[int]  # indices of the views that count as novel; the input is not among them
    finer: tuple[Target, ...] = ()  # the same views with more pixels, the finest last
    hash: str = ""  # of the object
    surface: Tensor | None = None  # (P, 6) points of the true surface and their normals, where it is known
    side: float = 0.0  # longest side of the true surface's bounding box before it was turned
    elevation: float = 10.0  # of the input camera in the world where the object stands upright, degrees

    @property
    def size(self) -> int:
        """Pixels per side."""
        return self.rgba.shape[-1]

    @property
    def image(self) -> Tensor:
        """(4, S, S) the input picture."""
        return self.rgba[self.rig[0]]

    @property
    def finest(self) -> Target:
        """These views with as many pixels as there are."""
        return self.finer[-1] if self.finer else self

    def at(self, size: int) -> Target | None:
        """These views with so many pixels per side, where they are finer than this."""
        return next((finer for finer in self.finer if finer.size == size), None)


@dataclass(frozen=True)
class Prediction:
    """Predicted views of a target."""

    views: list[int]  # indices of the target's views that are predicted
    rgb: Tensor  # (len(views), 3, S, S) over white
    alpha: Tensor | None  # (len(views), 1, S, S), or None where the predictor knows none
    depth: Tensor | None = None  # (len(views), 1, S, S) mean camera z where alpha is above 0, or None


# These views of a target: the one that was predicted, one with more pixels, or one with other cameras in the
# same world.
Drawing = Callable[[Target, list[int]], Prediction]
Predictor = Callable[[Target], Drawing]


@dataclass(frozen=True)
class Pictures:
    """A drawing that has pictures of some views and nothing solid: no other camera sees it."""

    draw: Drawing

    def __call__(self, at: Target, views: list[int]) -> Prediction:
        """Those of the views that there are."""
        return self.draw(at, views)


def all_white(target: Target) -> Drawing:
    """Nothing at all."""

    def draw(at: Target, views: list[int]) -> Prediction:
        shape = (len(views), 1, at.size, at.size)
        return Prediction(views, torch.ones(shape).expand(-1, 3, -1, -1), torch.zeros(shape))

    return draw


def flat_card(target: Target) -> Drawing:
    """The input picture on a card through the origin that faces the input camera, seen from both sides."""

    def draw(at: Target, views: list[int]) -> Prediction:
        source = next((t for t in (target, *target.finer) if t.size == at.size), target)
        return card(source, at.cameras[views], views)

    return draw


def card(target: Target, cameras: Cameras, views: list[int], supersample: int = 4) -> Prediction:
    """The input picture on its card, seen by cameras (V,)."""
    source = target.cameras[target.rig[0]]
    fine = cameras.resized(cameras.width * supersample)
    origins, directions = fine.rays()  # (V, 1, 1, 3), (V, H, W, 3)
    normal = source.positions / source.positions.norm()
    reach = -(origins @ normal) / (directions @ normal)  # (V, H, W) depth at which the ray meets the card
    points = origins + reach[..., None] * directions
    seen = points @ source.viewmats[:3, :3].T + source.viewmats[:3, 3]
    pixels = seen @ source.Ks.T
    place = 2 * pixels[..., :2] / pixels[..., 2:] / source.width - 1  # grid_sample's -1..1
    place = torch.where((reach[..., None] > 0) & place.isfinite(), place, torch.full_like(place, 9.0))
    alpha = target.image[3:]
    premultiplied = torch.cat([target.image[:3] * alpha, alpha])  # (4, S, S)
    warped = F.grid_sample(premultiplied.expand(len(place), -1, -1, -1), place, align_corners=False)
    warped = F.avg_pool2d(warped, supersample)
    depth = F.avg_pool2d(reach[:, None], supersample)
    return Prediction(views, warped[:, :3] + 1 - warped[:, 3:], warped[:, 3:], depth)


def mean_color_blob(target: Target) -> Drawing:
    """One Gaussian of the foreground's mean colour, as wide and high as its mask and as deep as wide."""
    image, camera = target.image, target.cameras[target.rig[0]]
    alpha = image[3]
    weight = alpha / alpha.sum().clamp(min=1e-6)
    color = (image[:3] * weight).sum((1, 2))
    y, x = torch.meshgrid(
        torch.arange(alpha.shape[0]) + 0.5, torch.arange(alpha.shape[1]) + 0.5, indexing="ij"
    )
    middle = torch.stack([(x * weight).sum(), (y * weight).sum()])
    spread = torch.stack([(x - middle[0]).square(), (y - middle[1]).square()]).mul(weight).sum((1, 2)).sqrt()
    distance = camera.positions.norm()
    pixel = distance / camera.Ks[0, 0]
    offset = (middle - camera.Ks[:2, 2]) * pixel  # right and down, world units
    mean = offset[0] * camera.viewmats[0, :3] + offset[1] * camera.viewmats[1, :3]
    # A disc of radius r has a spread of r / 2; a Gaussian of opacity 0.99 falls to alpha 0.5 at 1.17 sigma.
    sigma = 1.7 * spread * pixel
    blob = Gaussians(
        mean[None],
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.stack([sigma[0], sigma[1], sigma[0]])[None].clamp(min=1e-3),
        torch.tensor([0.99]),
        color[None],
    )
    return drawing_of(blob)


def inflated_silhouette_row(target: Target) -> Drawing:
    """The silhouette inflated, the picture in front and mirrored behind: what a network has to beat."""
    finest = target.finest
    return drawing_of(inflated_silhouette(finest.image, finest.cameras[finest.rig[:1]]))


def true_shape(target: Target, options: SolidOptions | None = None) -> Drawing:
    """The hull of all true masks, coloured like the inflated silhouette: our discs on the right shape."""
    o, finest = options or SolidOptions(), target.finest
    picture, camera = within(finest.image, finest.cameras[finest.rig[:1]], o)

    def field(resolution: int) -> Tensor:
        return smoothed(visual_hull(finest.rgba[:, 3], finest.cameras, resolution), o.blur)

    return drawing_of(discs_on(field, picture, camera, projected_colors(picture, camera), o))


def drawing_of(gaussians: Gaussians) -> Drawing:
    """Views of Gaussians in the input's frame."""
    from dd3g.rasterizer import rasterize

    @torch.inference_mode()
    def draw(at: Target, views: list[int]) -> Prediction:
        cameras = at.cameras[views].to(gaussians.means.device)
        drawn = rasterize(gaussians, cameras, background=1.0, antialiased=True)
        depth = drawn.depth / drawn.alpha.clamp(min=1e-6)
        return Prediction(views, drawn.rgb.clamp(0, 1).cpu(), drawn.alpha.clamp(0, 1).cpu(), depth.cpu())

    return draw


def mesh_drawing(mesh: Any) -> Drawing:
    """Views of a `dd3g.meshes.mesh.Mesh` in the input's frame, by its colours alone: those hold the light."""
    import numpy as np

    from dd3g.meshes.rendering import Light, render_mesh

    even = Light(1.0, np.zeros((0, 3)), np.zeros((0, 3)))

    def draw(at: Target, views: list[int]) -> Prediction:
        rgba, depth = render_mesh(mesh, at.cameras[views], even)
        pictures = torch.from_numpy(rgba).movedim(-1, 1).float() / 255
        return Prediction(views, on_white(pictures), pictures[:, 3:], torch.from_numpy(depth)[:, None])

    return draw
