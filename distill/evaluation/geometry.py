"""Where a prediction lies: moved to the mask of the input view, and its surface against the true one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dd3g.cameras import Cameras
from distill.evaluation.predictors import Drawing, Prediction, Target

HEADINGS = 24  # yaw angles from which a surface is aligned
CELLS = 128  # cells along the longest side, each of which keeps one point


def visible_points(depth: Tensor, mask: Tensor, cameras: Cameras) -> Tensor:
    """Points of a surface from its depth.

    Args:
        depth: (V, 1, H, W) camera z.
        mask: (V, 1, H, W) bool, where there is a surface.
        cameras: (V,).

    Returns:
        (P, 6) points and unit normals towards the camera in the world, one a cell of 1/128 of the longest
        side, so that often seen places count once. A normal is NaN where a neighbouring pixel sees nothing.
    """
    origins, directions = cameras.rays()
    points = origins + depth[:, 0, ..., None] * directions  # (V, H, W, 3)
    seen = mask[:, 0]
    points = torch.where(seen[..., None], points, torch.nan)
    across, down = torch.full_like(points, torch.nan), torch.full_like(points, torch.nan)
    across[:, :, 1:-1] = points[:, :, 2:] - points[:, :, :-2]
    down[:, 1:-1] = points[:, 2:] - points[:, :-2]
    normal = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
    normal = torch.where((normal * directions).sum(-1, keepdim=True) > 0, -normal, normal)
    found = torch.cat([points, normal], -1)[seen]
    if not len(found):
        return found
    low, high = found[:, :3].amin(0), found[:, :3].amax(0)
    cells = ((found[:, :3] - low) / ((high - low).max() / CELLS).clamp(min=1e-9)).long().clamp(max=CELLS - 1)
    key = (cells[:, 0] * CELLS + cells[:, 1]) * CELLS + cells[:, 2]
    _, first = np.unique(key.numpy(), return_index=True)
    return found[torch.from_numpy(first)]


def surface_scores(
    predicted: Tensor, true: Tensor, unit: float, thresholds: Sequence[float], alignment: str = "none"
) -> dict[str, float]:
    """How far a predicted surface is from the true one.

    Args:
        predicted: (P, 6) points and normals.
        true: (Q, 6).
        unit: factor from the points' world to the unit of distances.
        thresholds: of the F-score.
        alignment: "none", or "icp": see `aligned`.

    Returns:
        chamfer, the mean of both mean distances to the nearest point; f_T, harmonic mean of the shares of
        points nearer than T (Knapitsch et al. 2017); normals, mean angle in degrees between a true normal and
        that of the nearest predicted point. NaN where nothing is predicted.
    """
    from scipy.spatial import cKDTree

    if not len(predicted):
        return {"chamfer": math.nan, **{f"f_{t:g}": 0.0 for t in thresholds}, "normals": math.nan}
    a, b = predicted.double().numpy(), true.double().numpy()
    if alignment == "icp":
        a = aligned(a, b)
    to_true = cKDTree(b[:, :3]).query(a[:, :3])[0] * unit
    to_predicted = cKDTree(a[:, :3]).query(b[:, :3])[0] * unit
    result = {"chamfer": float(to_true.mean() + to_predicted.mean()) / 2}
    for t in thresholds:
        precision, recall = (to_true < t).mean(), (to_predicted < t).mean()
        result[f"f_{t:g}"] = float(2 * precision * recall / max(precision + recall, 1e-12))
    a, b = a[np.isfinite(a).all(1)], b[np.isfinite(b).all(1)]
    result["normals"] = math.nan
    if len(a) and len(b):
        nearest = a[cKDTree(a[:, :3]).query(b[:, :3])[1]]
        cosine = (nearest[:, 3:] * b[:, 3:]).sum(1).clip(-1, 1)
        result["normals"] = float(np.degrees(np.arccos(cosine)).mean())
    return result


def aligned(a: NDArray, b: NDArray, points: int = 2000, steps: int = 30) -> NDArray:
    """Points and normals (P, 6) moved onto (Q, 6) by the best rotation, shift and scale that is found.

    24 headings around the vertical axis, each with both middles and spreads laid onto each other; the four
    nearest are refined by ICP (Besl and McKay 1992) with scale (Umeyama 1991), and the nearest one wins.
    """
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    small_a, small_b = (x[rng.permutation(len(x))[:points], :3] for x in (a, b))
    tree = cKDTree(small_b)

    def distance(moved: NDArray) -> float:
        return float(tree.query(moved)[0].mean() + cKDTree(moved).query(small_b)[0].mean())

    middle_a, middle_b = small_a.mean(0), small_b.mean(0)
    scale = np.sqrt(
        ((small_b - middle_b) ** 2).sum(1).mean() / max(((small_a - middle_a) ** 2).sum(1).mean(), 1e-12)
    )
    starts = []
    for angle in 2 * np.pi * np.arange(HEADINGS) / HEADINGS:
        c, s = np.cos(angle), np.sin(angle)
        R = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        move = (scale, R, middle_b - scale * R @ middle_a)
        starts.append((distance(_moved(small_a, *move)), move))
    best = min(starts, key=lambda start: start[0])
    for _, move in sorted(starts, key=lambda start: start[0])[:4]:
        for _ in range(steps):
            now = _moved(small_a, *move)
            # Both ways, or a small part would shrink into the other surface.
            forth, back = tree.query(now)[1], cKDTree(now).query(small_b)[1]
            move = umeyama(
                np.concatenate([small_a, small_a[back]]), np.concatenate([small_b[forth], small_b])
            )
        found = (distance(_moved(small_a, *move)), move)
        best = min(best, found, key=lambda start: start[0])
    scale, R, shift = best[1]
    return np.concatenate([_moved(a[:, :3], scale, R, shift), a[:, 3:] @ R.T], 1)


def umeyama(a: NDArray, b: NDArray) -> tuple[float, NDArray, NDArray]:
    """Scale, rotation (3, 3) and shift (3,) that bring points (P, 3) nearest to their partners (P, 3)."""
    middle_a, middle_b = a.mean(0), b.mean(0)
    x, y = a - middle_a, b - middle_b
    U, S, Vt = np.linalg.svd(y.T @ x)
    sign = np.array([1, 1, np.sign(np.linalg.det(U @ Vt))])
    R = (U * sign) @ Vt
    scale = float((S * sign).sum() / max((x**2).sum(), 1e-12))
    return scale, R, middle_b - scale * R @ middle_a


def _moved(points: NDArray, scale: float, R: NDArray, shift: NDArray) -> NDArray:
    return scale * points @ R.T + shift


@dataclass(frozen=True)
class Move:
    """x -> scale * x + shift of a prediction's world."""

    scale: float  # factor
    shift: Tensor  # (3,) across the input view
    residual: float  # 1 - IoU of the masks in the input view after it


def find_move(drawing: Drawing, target: Target) -> Move:
    """Scale and shift that give something solid the area and the middle of the input view's true mask."""
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
