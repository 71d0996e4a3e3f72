"""What an evaluation compares: baselines without learning, generators, and a teacher's own views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from distill.evaluation.metrics import on_white
from distill.renders import RenderedObject


@dataclass(frozen=True)
class Target:
    """One object to be predicted from one of its views.

    Args:
        id: name of the object.
        style: group for the report.
        rgba: (V, 4, S, S) true views, straight alpha in 0..1; view `rig[0]` is the input.
        cameras: (V,) turned so that the input's azimuth is 0.
        azimuth: (V,) degrees from the input.
        rig: four view indices at azimuth 0, 90, 180, 270 of the input's elevation.
        novel: indices of the views that count as novel; the input is not among them.
    """

    id: str
    style: str
    rgba: Tensor
    cameras: Cameras
    azimuth: Tensor
    rig: list[int]
    novel: list[int]

    @property
    def image(self) -> Tensor:
        """(4, S, S) the input picture."""
        return self.rgba[self.rig[0]]

    @staticmethod
    def of(item: RenderedObject) -> Target:
        """The first view of the first quad becomes the input."""
        if not item.quads or not item.novel:
            raise UserError(
                f"{item.meta.get('id')} has no quad or no novel views: render with --eval, or at "
                "least --quads 1 and --novel 1"
            )
        azimuth = torch.tensor(item.meta["azimuth"], dtype=torch.float64)
        first = item.quads[0][0]
        return Target(
            item.meta["id"],
            item.meta.get("style", "unknown"),
            item.rgba.float() / 255,
            item.cameras.turned(-torch.deg2rad(azimuth[first]).float()),
            (azimuth - azimuth[first]).float(),
            item.quads[0],
            item.novel,
        )


@dataclass(frozen=True)
class Prediction:
    """Predicted views of a target.

    Args:
        views: indices of the target's views that are predicted.
        rgb: (len(views), 3, S, S) over white.
        alpha: (len(views), 1, S, S), or None where the predictor knows none.
    """

    views: list[int]
    rgb: Tensor
    alpha: Tensor | None


Predictor = Callable[[Target], Prediction]


def all_white(target: Target) -> Prediction:
    """Nothing at all."""
    V, _, H, W = target.rgba.shape
    return Prediction(list(range(V)), torch.ones(V, 3, H, W), torch.zeros(V, 1, H, W))


def flat_card(target: Target, supersample: int = 4) -> Prediction:
    """The input picture on a card through the origin that faces the input camera, seen from both sides."""
    source = target.cameras[target.rig[0]]
    fine = target.cameras.resized(target.cameras.width * supersample)
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
    return Prediction(list(range(len(place))), warped[:, :3] + 1 - warped[:, 3:], warped[:, 3:])


def mean_color_blob(target: Target) -> Prediction:
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
    return render(blob, target)


def render(gaussians: Gaussians, target: Target) -> Prediction:
    """All views of a target from Gaussians in the input's frame."""
    from dd3g.rasterizer import rasterize

    cameras = target.cameras.to(gaussians.means.device)
    drawn = rasterize(gaussians, cameras, background=1.0, antialiased=True)
    return Prediction(list(range(len(cameras))), drawn.rgb.clamp(0, 1).cpu(), drawn.alpha.clamp(0, 1).cpu())


def generator_predictor(generator: Any, seed: int) -> Predictor:
    """A generator's renders; it sees the input picture only."""
    return lambda target: render(generator.generate(target.image, seed=seed), target)


def teacher_predictor(
    teacher: Any, seed: int, steps: int | None, guidance_scale: float | None, device: str = "cpu"
) -> Predictor:
    """A teacher's views at its rig, from one noise for all objects; None takes the teacher's settings."""
    from dd3g.pepd.generator import resize
    from distill.ode import simulate
    from distill.quadruples import noise_of

    noise = noise_of(teacher.latent_shape, seed)[None].to(device)

    def predict(target: Target) -> Prediction:
        rig = target.cameras[target.rig]
        asked = teacher.rig.to("cpu")
        if asked.viewmats.shape != rig.viewmats.shape or (asked.viewmats - rig.viewmats).abs().max() > 0.02:
            raise UserError(
                f"the teacher's rig is not the one of {target.id} (4 views at elevation 10): its views have "
                "no ground truth here; leave --teacher out"
            )
        picture = resize(target.image[None], asked.height).to(device)
        views = simulate(teacher, picture, noise, steps, guidance_scale).outputs[0].float().cpu().clamp(0, 1)
        size = target.image.shape[-1]
        if views.shape[1] == 3:
            return Prediction(target.rig, F.interpolate(views, size, mode="bilinear", antialias=True), None)
        views = resize(views, size)
        return Prediction(target.rig, on_white(views), views[:, 3:])

    return predict
