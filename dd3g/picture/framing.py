"""What of a matte is the object rather than haze around it, and the square that the generator sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from dd3g.errors import UserError

# Training renders put a unit sphere scaled by 0.55 at distance 1.5 under a 49.1 degree field of view: at the
# depth of its centre it spans 0.8 of the frame.
FILL = 0.8
AUTO = "auto"  # elevation: to be estimated
SOLID = 26  # least alpha, of 255, of a pixel that belongs to an object
CORE = 128  # least alpha of what is object rather than shadow, glow or blur
RIM = 0.02  # of a side of the picture, up to which it may be framed and still no cut-out
STRIP = 32  # pixels, below which one more or less is no frame

# Of shadows, glows and films around a cut-out: faint alpha that does not belong to the object.
CELLS = 256  # of the grid on which it is judged, along the longer side
EDGE = 0.02  # of the object's longest side: faint alpha so close to what is solid is its edge
BLACK = 8  # most of a channel where a shadow was painted
SMOOTH = 3  # levels of alpha, of 255, by which what is smooth may differ from the mean around it
FADES = 0.2  # of its mean alpha that a part loses from cell to cell, at most, where it fades out
STEP = 25  # levels of alpha from cell to cell, on average, by which an object ends that is not blurred
CAST = 2  # times the solid area that a shadow with an outline covers, at most
COAT = 0.8  # of an outline that fur covers, at least
FUR = (1.2, 0.42)  # levels of its detail, and of that by that of forms four times as large, at least
SHADE = 204  # least alpha, of 255, of a black pixel that is solid


def check_how(elevation: float | str, fov: float, raw: bool, refine: float, dashes: str = "") -> None:
    """Refuse options of `Generator.generate` that are out of range, or that exclude each other.

    Args:
        elevation: degrees from which the picture looks down, within -80..80, or "auto".
        fov: degrees that the framed picture spans, within 1..100.
        raw: whether to leave out the solid body.
        refine: seconds for which its discs are fitted to the picture, 0 or more.
        dashes: what a command line writes before their names.

    Raises:
        UserError: names the value and what would be right.
    """
    for name, value in (("fov", fov), ("refine", refine)):
        check_number(f"{dashes}{name}", value)
    if not (isinstance(elevation, str) and elevation == AUTO):
        check_number(f"{dashes}elevation", elevation, f", or {AUTO}")
        if not -80 <= float(elevation) <= 80:
            raise UserError(
                f"{dashes}elevation {elevation:g} is out of range: give -80 to 80 degrees, 0 for a picture "
                f"taken from the side and 40 for one from well above, or {AUTO}"
            )
    if not 1 <= fov <= 100:
        what = "--fov" if dashes else "the field of view"
        raise UserError(f"{what} {fov:g} is out of range: give 1 to 100 degrees")
    if not 0 <= refine < float("inf"):
        what = "--refine " if dashes else "refine="
        raise UserError(f"{what}{refine:g} must be a number of seconds, 0 or more")
    if raw and refine:
        raise UserError(
            f"{dashes}refine fits the discs of a solid body, which {dashes}raw leaves out: give one"
        )


def check_number(name: str, value: Any, otherwise: str = "") -> None:
    """Refuse anything but a single number, of Python's types, numpy's or torch's.

    Args:
        name: of the option.
        value: that was given.
        otherwise: what else could be given, for the message.

    Raises:
        UserError: names the value.
    """
    try:
        if isinstance(value, str):
            raise TypeError
        float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} {value!r} is not a number: give one{otherwise}") from None


def is_cut_out(image: Image.Image) -> bool:
    """Whether the alpha of a picture (RGBA) tells an object from its surroundings.

    It does not where it is nearly the same throughout, nor where it only rounds a photo's corners or frames
    it: the picture is then solid over 95 % of its area and half of each side, within a `RIM`.
    """
    alpha = np.asarray(image.getchannel("A"))  # (H, W)
    solid = alpha >= (int(alpha.max()) + 1) // 2
    left, top, right, bottom = bounding_box(solid) or (0, 0, image.width, image.height)
    rims = [max(1, RIM * side) if side >= STRIP else 0 for side in image.size]
    if max(left, image.width - right) <= rims[0]:
        solid = solid[:, left:right]
    if max(top, image.height - bottom) <= rims[1]:
        solid = solid[top:bottom]
    sides = (solid[0], solid[-1], solid[:, 0], solid[:, -1])
    return bool(solid.mean() < 0.95 or min(side.mean() for side in sides) < 0.5)


def object_frame(alpha: Image.Image, fill: float = FILL) -> tuple[float, float, float] | None:
    """The square (left, top, side), in pixels, around the object of a matte (mode L); None where it is empty.

    The longest side of the object's bounding box spans the part `fill` of it; they share their centre. The
    square may reach outside the picture.
    """
    box = object_box(alpha)
    if box is None:
        return None
    left, top, right, bottom = box
    side = max(right - left, bottom - top) / fill
    return (left + right - side) / 2, (top + bottom - side) / 2, side


def object_box(alpha: Image.Image) -> tuple[int, int, int, int] | None:
    """Bounding box (left, top, right, bottom) of the object in a matte (mode L); None when it is empty.

    All that is at least faintly solid counts, unless that is clearly wider than the connected parts of at
    least half alpha and a hundredth of the largest part's area: what is beyond these is a shadow, a glow or
    stray pixels.
    """
    matte = np.asarray(alpha)  # (H, W)
    whole, core = bounding_box(matte >= SOLID), bounding_box(_main_parts(matte >= CORE))
    if whole is None or core is None:
        return whole
    soft_edge = 0.06 * max(core[2] - core[0], core[3] - core[1]) + 0.01 * max(matte.shape) + 1
    return whole if max(abs(w - c) for w, c in zip(whole, core, strict=True)) <= soft_edge else core


def bounding_box(inside: np.ndarray) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of what is true in a mask (H, W); None where nothing is."""
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _main_parts(solid: np.ndarray) -> np.ndarray:
    """The connected parts of a mask (H, W), but those under a hundredth of the largest one's area."""
    if not solid.any():
        return solid
    # Connected on a grid of at most 256 cells a side, which bounds the time.
    height, width = solid.shape
    cell = -(-max(height, width) // 256)
    padded = np.pad(solid, ((0, -height % cell), (0, -width % cell)))
    counts = padded.reshape(padded.shape[0] // cell, cell, -1, cell).sum((1, 3))  # (h, w)
    part = connected(counts > 0)
    area = np.bincount(part.ravel(), counts.ravel())
    kept = np.kron(area[part] >= 0.01 * area.max(), np.ones((cell, cell), bool))
    return solid & kept[:height, :width]


def connected(mask: np.ndarray, corners: bool = True) -> np.ndarray:
    """A number for each cell of a grid (h, w), the same in cells that touch, with `corners` at these too."""
    outside = mask.size
    parent = np.arange(mask.size + 1)
    steps = [(i, j) for i in range(3) for j in range(3) if corners or 1 in (i, j)]
    label = np.where(mask, parent[:-1].reshape(mask.shape), outside)
    while True:
        near = np.pad(label, 1, constant_values=outside)
        h, w = mask.shape
        lowest = np.minimum.reduce([near[i : i + h, j : j + w] for i, j in steps])
        if (lowest[mask] == label[mask]).all():
            return label
        np.minimum.at(parent, label[mask], lowest[mask])
        while (parent[parent] != parent).any():
            parent = parent[parent]
        label = np.where(mask, parent[label], outside)


def cut_frame(image: Image.Image, frame: tuple[float, float, float], size: int) -> Image.Image:
    """Resample the square `frame` (left, top, side) of a picture to size x size; outside it is zero."""
    x, y, side = frame
    # Whole pixels around the frame first (transparent outside the picture), then the exact frame inside.
    ox, oy = int(np.floor(x)), int(np.floor(y))
    canvas = image.crop((ox, oy, int(np.ceil(x + side)), int(np.ceil(y + side))))
    exact = (x - ox, y - oy, x - ox + side, y - oy + side)
    return canvas.resize((size, size), Image.Resampling.BICUBIC, box=exact)


def without_haze(image: Image.Image) -> tuple[Image.Image, float]:
    """Take away faint alpha that surrounds an object but does not belong to it.

    That is, further from what is solid than an edge is wide, not enclosed by it, and where what is solid is
    not blurred itself, each connected part that

    - reaches all four corners of the picture;
    - is more than lines, and hardly there, with alpha under a tenth on average;
    - is more than lines and smooth, and either black, less than half there and no larger than a shadow, or
      fades out where it ends, as shadows, glows and reflections do.

    Glass within a rim or with an outline of its own, lenses, hair, fur and wings remain. Black hair blurred
    by more than some 3 pixels of 512 remains where it is a coat all around; on one side alone nothing tells
    it from the shadow of a shape with as much detail. The edge beside a part that goes loses what it had of
    it.

    Returns:
        The picture, RGBA, with the straight alpha that is left, and the area that went by the area that is
        solid; alpha under a tenth does not count.
    """
    rgba = np.asarray(image)  # (H, W, 4)
    height, width = rgba.shape[:2]
    cell = -(-max(height, width) // CELLS)
    # Slopes need two cells each way, where a long strip has one.
    down, right = (max(-side % cell, 2 * cell - side) for side in (height, width))
    cells = np.pad(rgba, ((0, down), (0, right), (0, 0)), "edge")
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
    haze = _haze(far, alpha, black, solid, edge) if far.any() else far
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
    # A coat of blurred fur lies all around, and has more detail for its coarser forms than one blur leaves.
    outline = grown(solid, 1) & ~solid & _open(solid)
    if grown(far, edge + 2)[outline].mean() > COAT:
        means = [box_sum(faint, by) / (2 * by + 1) ** 2 for by in (1, 3, 2, 6)]
        within = far & (box_sum(far, 6) == 13**2)
        fine, coarse = (mean(np.abs(a - b), within) for a, b in (means[:2], means[2:]))
        smooth &= ~((fine > FUR[0]) & (fine > FUR[1] * coarse) & (fine < np.inf))
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
