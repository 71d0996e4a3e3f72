"""Shadows, glows and films around a cut-out: faint alpha that is no matter of the object's."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dd3g.framing import CORE, SOLID, bounding_box, connected

CELLS = 256  # of the grid on which it is judged, along the longer side
EDGE = 0.02  # of the object's longest side: faint alpha so close to what is solid is its edge
BLACK = 8  # most of a channel where a shadow was painted
SMOOTH = 3  # levels of alpha, of 255, by which what is smooth may differ from the mean around it
FADES = 0.2  # of its mean alpha that a part loses from cell to cell, at most, where it fades out
STEP = 25  # levels of alpha from cell to cell, on average, by which an object ends that is not blurred
CAST = 2  # times the solid area that a shadow with an outline covers, at most
SHADE = 204  # least alpha, of 255, of a black pixel that is solid


def without_haze(image: Image.Image) -> tuple[Image.Image, float]:
    """Take away faint alpha that surrounds an object but does not belong to it.

    That is, further from what is solid than an edge is wide, not enclosed by it, and where what is solid is
    not blurred itself, each connected part that

    - reaches all four corners of the picture;
    - is more than lines, and hardly there, with alpha under a tenth on average;
    - is more than lines and smooth, and either black, less than half there and no larger than a shadow, or
      fades out where it ends, as shadows, glows and reflections do.

    Glass within a rim or with an outline of its own, lenses, hair, fur and wings remain. The edge beside a
    part that goes loses what it had of it.

    Args:
        image: RGBA, straight alpha.

    Returns:
        The picture with the alpha that is left, and the area that went by the area that is solid; alpha under
        a tenth does not count.
    """
    rgba = np.asarray(image)  # (H, W, 4)
    height, width = rgba.shape[:2]
    cell = -(-max(height, width) // CELLS)
    cells = np.pad(rgba, ((0, -height % cell), (0, -width % cell), (0, 0)), "edge")
    cells = cells.reshape(cells.shape[0] // cell, cell, -1, cell, 4)
    black = cells[..., :3].max(-1) <= BLACK
    solid: np.ndarray = np.any(cells[..., 3] >= np.where(black, SHADE, CORE), (1, 3))  # (h, w)
    black = np.all(black | (cells[..., 3] == 0), (1, 3))
    alpha = cells[..., 3].max((1, 3)).astype(float)
    faint = np.where(solid, 0.0, alpha)
    box = bounding_box(solid)
    if box is None or not faint.any():
        return image, 0.0
    edge = 2 + round(EDGE * max(box[2] - box[0], box[3] - box[1]))
    far = (faint > 0) & ~grown(solid, edge) & _open(solid)
    haze = _haze(far, alpha, black, solid, edge)
    if not haze.any():
        return image, 0.0
    # Beside it the object's edge was seen through it, where it was at least as dense.
    weight = box_sum(haze, 2 * edge)
    beside = (1.5 * box_sum(faint * haze, 2 * edge) / np.maximum(weight, 1) + 8).clip(0, 254)
    level = np.where(haze | ~grown(solid, 1), 255.0, beside) * (haze | (weight > 0))
    level = np.kron(level, np.ones((cell, cell)))[:height, :width]
    left = 255 * (rgba[..., 3] - level).clip(0) / np.maximum(255 - level, 1)
    cleaned = image.copy()
    cleaned.putalpha(Image.fromarray(np.rint(left).astype(np.uint8)))
    return cleaned, float((haze & (faint >= SOLID)).sum() / solid.sum())


def _haze(far: np.ndarray, alpha: np.ndarray, black: np.ndarray, solid: np.ndarray, edge: int) -> np.ndarray:
    """Which of the cells `far` (h, w) are haze; see `without_haze`."""
    label = connected(far)
    there, faint = alpha > 0, np.where(solid, 0.0, alpha)
    inner = far & (box_sum(far, 1) == 9)
    rough = np.abs(faint - box_sum(faint, 1) / 9)

    def mean(values: np.ndarray, where: np.ndarray = far) -> np.ndarray:
        """Of each part, infinite where a part has none of these cells."""
        count, total = (np.bincount(label[where], v, far.size + 1) for v in (where[where], values[where]))
        return np.where(count > 0, total / np.maximum(count, 1), np.inf)

    border = grown(solid, 1) & grown(~solid, 1)
    near = box_sum(border, 2 * edge)
    steps = box_sum(np.hypot(*np.gradient(alpha)) * border, 2 * edge) / np.maximum(near, 1)
    sharp = mean(steps, far & (near > 0)) > STEP  # as is what lies apart
    level = mean(faint)
    rim = far & (np.abs(faint / np.maximum(level, 1)[label] - 0.5) < 0.2)
    slope = mean(np.hypot(*np.gradient(faint)), rim)
    wide = mean(~grown(~there, edge // 2)) > 0.2
    smooth = mean(rough, inner) < SMOOTH
    cast = np.bincount(label[far], minlength=far.size + 1) < CAST * solid.sum()
    shade = smooth & (cast & (mean(black) > 0.95) & (level < CORE) | (slope < FADES * level))
    haze = sharp & wide & ((level < SOLID) | shade)
    corners = label[[0, 0, -1, -1], [0, -1, 0, -1]]
    film = far[0, 0] and (corners == corners[0]).all()
    return far & (haze[label] | (film & (label == corners[0])))


def _open(solid: np.ndarray) -> np.ndarray:
    """What of a grid (h, w) can be reached from outside without crossing what is solid."""
    around = np.pad(~solid, 1, constant_values=True)
    label = connected(around, corners=False)
    return (label == label[0, 0])[1:-1, 1:-1]


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A mask (h, w) and all within `by` cells of it, along both axes."""
    return box_sum(mask, by) > 0


def box_sum(values: np.ndarray, by: int) -> np.ndarray:
    """Sums (h, w) over squares of 2 by + 1 cells a side; nothing lies outside."""
    for _ in range(2):
        sums = np.cumsum(np.pad(values.astype(np.float64), ((by + 1, by), (0, 0))), 0)
        values = (sums[2 * by + 1 :] - sums[: -2 * by - 1]).T
    return values
