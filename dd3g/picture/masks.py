"""Mattes that a user gives beside a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dd3g.errors import UserError
from dd3g.picture.decoding import NAMELESS, Source, name_of, read_rgba
from dd3g.picture.framing import CORE, SOLID, is_cut_out


def read_mask(source: Source, size: tuple[int, int]) -> Image.Image:
    """A matte that comes as a picture of its own: its alpha where it has some, else its brightness.

    Alpha that is nearly the same throughout is none where the colours are black and white.

    Args:
        source: as in `read_rgba`.
        size: width and height of the picture that it belongs to, upright.

    Returns:
        Mode L, of that size.

    Raises:
        UserError: when it cannot be read, is black throughout, or has other proportions.
    """
    name = name_of(source) if name_of(source) != NAMELESS else "the mask"
    rgba = read_rgba(source, name)
    alpha, grey = rgba.getchannel("A"), rgba.convert("L")
    mask = grey if alpha.getextrema()[0] == 255 or (_is_painted(rgba) and not is_cut_out(rgba)) else alpha
    high = np.asarray(mask).max()
    if high == 1:  # a map of labels, 1 the object
        mask, high = mask.point(lambda value: 255 * value), 255
    if high < SOLID:
        how = f"nearly black (at most {high} of 255)" if high else "black throughout"
        raise UserError(f"{name} is {how}: paint the object white")
    if abs(mask.width * size[1] - mask.height * size[0]) > 0.02 * mask.width * size[1] + max(size):
        how = "give a mask of the whole picture, turned the same way"
        if name.endswith(".matte.png"):
            how = "a saved cut-out is framed; edit it, and give it in place of the picture"
        raise UserError(
            f"{name} is {mask.width}x{mask.height} pixels and its picture {size[0]}x{size[1]}: {how}"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _is_painted(image: Image.Image) -> bool:
    """Whether the colours of a picture (RGBA) are white on black."""
    pixels = np.asarray(image)  # (H, W, 4)
    grey = pixels[..., 0]
    return bool(grey.min() < SOLID and grey.max() >= CORE and (pixels[..., :3] == grey[..., None]).all())
