"""What an occupancy network is trained on: matter along the input's rays, and what other views show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.pepd.frustum import FAR, NEAR, OUTSIDE, frustum_places, slices
from dd3g.pepd.occupancy import color_at
from distill.config import ShapeObjectiveConfig
from distill.shape.samples import VISIBLE, ShapeSample

COVERED = 0.9  # alpha from which the colour of a pixel is the surface's alone
SMOOTHING = 50.0  # of overlaps, voxels or pixels: objects smaller than that count less
LEVELS = (0.3, 0.4, 0.5)  # of occupancy, at which held-out objects are scored


@dataclass
class ShapeObjective:
    """Occupancy directly in 3D, and what other views see of it."""

    config: ShapeObjectiveConfig  # weights

    def __call__(self, model: nn.Module, batch: ShapeSample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(model, batch, step) -> (loss, weighted and detached terms that add up to it)."""
        c = self.config
        logits, volume = model(batch.image, batch.elevation)
        bce, dice = occupancy_terms(logits, batch)
        seen = ray_logits(logits, batch, batch.jitter, c.steps)
        mask = batch.rgba[..., 3]
        silhouette = F.binary_cross_entropy_with_logits(seen, mask)
        values = {
            "bce": bce,
            "dice": dice,
            "silhouette": silhouette,
            "silhouette_dice": (1 - overlap(seen.sigmoid(), mask)).mean(),
            "color": color_error(volume, batch).mean(),
        }
        terms = {name: getattr(c, name) * value for name, value in values.items()}
        return torch.stack(list(terms.values())).sum(), {k: v.detach() for k, v in terms.items()}


def occupancy_terms(logits: Tensor, batch: ShapeSample) -> tuple[Tensor, Tensor]:
    """Cross-entropy and 1 - dice of logits (B, D, S, S) where the picture shows the object."""
    mask = (batch.image[:, 3:] > VISIBLE).float()
    target = batch.occupancy.float()
    voxels = mask.sum((1, 2, 3)).clamp(min=1) * logits.shape[1]
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * mask
    dice = 1 - overlap(logits.sigmoid() * mask, target * mask)
    return (bce.sum((1, 2, 3)) / voxels).mean(), dice.mean()


def overlap(found: Tensor, true: Tensor) -> Tensor:
    """Dice coefficient (B,) of shares (B, ...)."""
    found, true = found.flatten(1), true.flatten(1)
    return (2 * (found * true).sum(1) + SMOOTHING) / (found.sum(1) + true.sum(1) + SMOOTHING)


def ray_logits(logits: Tensor, batch: ShapeSample, jitter: Tensor, steps: int) -> Tensor:
    """Largest logit (B, P) along the rays of other views; where it is above 0, they see matter.

    Args:
        logits: (B, D, S, S) along the input's rays.
        batch: gives all cameras.
        jitter: (B, P) 0..1 of a step.
        steps: points along a ray.
    """
    depths = slices(steps, logits.device) + (jitter[..., None] - 0.5) * (FAR - NEAR) / steps  # (B, P, M)
    points = batch.origins[:, :, None] + depths[..., None] * batch.directions[:, :, None]
    places = frustum_places(points, batch.elevation)  # (B, P, M, 3)
    cut = torch.where(batch.image[:, 3:] > VISIBLE, logits, OUTSIDE)
    found = F.grid_sample(cut[:, None], places[:, None], align_corners=False, padding_mode="border")[:, 0, 0]
    return torch.where((places.abs() < 1).all(-1), found, OUTSIDE).amax(-1)


def color_error(volume: Tensor, batch: ShapeSample) -> Tensor:
    """Mean absolute error (B,) of the colour volume where other views see nothing but the object."""
    depth = batch.depth.clamp(min=NEAR)
    points = batch.origins + depth[..., None] * batch.directions
    colors = color_at(volume, batch.image, frustum_places(points, batch.elevation))
    weight = ((batch.depth > 0) & (batch.rgba[..., 3] > COVERED)).float()
    error = (colors - batch.rgba[..., :3]).abs().mean(-1)
    return (error * weight).sum(1) / weight.sum(1).clamp(min=1)


def shape_scores(model: nn.Module, batches: Iterable[ShapeSample], steps: int = 64) -> dict[str, float]:
    """Means over samples: IoU of volume and of other views' masks at several levels, and error of colour."""
    rows: dict[str, list[Tensor]] = {}
    for batch in batches:
        logits, volume = model(batch.image, batch.elevation)
        mask = batch.image[:, 3:] > VISIBLE
        target = (batch.occupancy > 0.5) & mask
        seen = ray_logits(logits, batch, torch.full_like(batch.depth, 0.5), steps)
        for level in LEVELS:
            logit = math.log(level / (1 - level))
            volumes = iou((logits > logit) & mask, target)
            masks = iou(seen > logit, batch.rgba[..., 3] > 0.5)
            rows.setdefault(f"volume_iou_{100 * level:.0f}", []).append(volumes)
            rows.setdefault(f"mask_iou_{100 * level:.0f}", []).append(masks)
        rows.setdefault("color_error", []).append(color_error(volume, batch))
    return {name: float(torch.cat(values).mean()) for name, values in rows.items()}


def iou(found: Tensor, true: Tensor) -> Tensor:
    """Intersection over union (B,) of bool (B, ...)."""
    both, either = (found & true).flatten(1).sum(1), (found | true).flatten(1).sum(1)
    return both / either.clamp(min=1)
