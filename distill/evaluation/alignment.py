"""Scale and shift of a prediction to the input view's mask, the same for every row of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from distill.evaluation.predictors import Drawing, Prediction, Target


@dataclass(frozen=True)
class Move:
    """x -> scale * x + shift of a prediction's world."""

    scale: float  # factor
    shift: Tensor  # (3,) across the input view
    residual: float  # 1 - IoU of the masks in the input view after it


def find_move(drawing: Drawing, target: Target) -> Move:
    """The scale and shift that give a prediction the area and the middle of the true mask in the input view.

    Args:
        drawing: of something solid.
        target: the object; it is aligned with as many pixels as the first size has.
    """
    view = target.rig[:1]
    camera = target.cameras[view[0]]
    right, down = camera.viewmats[0, :3], camera.viewmats[1, :3]
    pixel = float(camera.positions.norm() / camera.Ks[0, 0])  # width of a pixel at the origin
    true, mask = target.image[3:], target.image[3:] > 0.5
    scale, shift, found = 1.0, torch.zeros(3), []
    for _ in range(9):  # since perspective couples both
        shown = moved(drawing, scale, shift)(target, view)
        alpha = torch.zeros_like(true) if shown.alpha is None else shown.alpha[0]
        seen = alpha > 0.5
        overlap = (seen & mask).sum() / (seen | mask).sum().clamp(min=1)
        found.append(Move(scale, shift, 1 - float(overlap)))
        if alpha.sum() < 1e-3 or true.sum() < 1e-3:
            break
        factor = float((true.sum() / alpha.sum()).sqrt())
        off = (_middle(true) - factor * _middle(alpha)) * pixel
        scale, shift = factor * scale, factor * shift + off[0] * right + off[1] * down
    return min(found, key=lambda move: move.residual)


def moved(drawing: Drawing, scale: float, shift: Tensor) -> Drawing:
    """A drawing of the moved prediction: the cameras move the other way, and depth grows by the scale."""

    def draw(at: Target, views: list[int]) -> Prediction:
        shown = drawing(replace(at, cameras=towards(at.cameras, scale, shift)), views)
        return replace(shown, depth=None if shown.depth is None else shown.depth * scale)

    return draw


def towards(cameras: Cameras, scale: float, shift: Tensor) -> Cameras:
    """Cameras (V,) that see x as these see scale * x + shift."""
    viewmats = cameras.viewmats.clone()
    viewmats[..., :3, 3] = (viewmats[..., :3, :3] @ shift + viewmats[..., :3, 3]) / scale
    return replace(cameras, viewmats=viewmats, near=cameras.near / scale, far=cameras.far / scale)


def _middle(alpha: Tensor) -> Tensor:
    """(2,) alpha's middle in pixels right and down of the picture's."""
    size = alpha.shape[-1]
    place = torch.arange(size) + 0.5 - size / 2
    weight = alpha[0] / alpha.sum()
    return torch.stack([(weight.sum(0) * place).sum(), (weight.sum(1) * place).sum()])
