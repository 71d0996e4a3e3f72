"""Arrays, tensors and grey pictures of more than eight bits -> pictures of eight."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from dd3g.errors import UserError, first_line


def from_numbers(source: Any, name: str) -> Image.Image:
    """A picture from an array (H, W[, C]) or a tensor ([C, ]H, W)."""
    array = source
    if not isinstance(source, np.ndarray):
        try:
            tensor = source.detach().cpu()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (RuntimeError, TypeError) as e:
            raise UserError(
                f"{name} is a tensor that cannot be read ({first_line(e)}): give a dense one"
            ) from e
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 2, 3, 4))):
        raise UserError(
            f"{name} must be an array (H, W) or (H, W, 1..4), or a tensor (H, W) or (1|3|4, H, W), got "
            f"{type(source).__name__} {tuple(source.shape)}"
        )
    if not array.size:
        raise UserError(f"{name} has no pixels: got shape {tuple(source.shape)}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(_bytes_of(array, name)))


def _bytes_of(array: np.ndarray, name: str) -> np.ndarray:
    """Values of any type as uint8."""
    if array.dtype == np.uint8:
        return array
    if (array.dtype.kind, array.dtype.itemsize) == ("u", 2):  # in either order of bytes
        if 0 < array.max() < 256:
            raise UserError(f"{name} holds uint16 up to {array.max()}, of 65535: give uint8 in 0..255")
        return (array >> 8).astype(np.uint8)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} holds values of type {array.dtype}: give uint8 in 0..255 or floats in 0..1")
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds values that are not numbers (NaN or infinite): give floats in 0..1")
    low, high = array.min(), array.max()
    whole = array.dtype.kind != "f"
    # A resampling filter may reach beyond the range a little.
    if low < (0 if whole else -0.1) or high > (255 if whole else 1.1):
        right = "floats lie in 0..1; divide by 255, or give uint8" if low >= -0.1 else "floats lie in 0..1"
        right = "give whole numbers in 0..255" if whole else right
        raise UserError(f"{name} holds values from {low:g} to {high:g}: {right}")
    return (array if whole else np.rint(255 * np.clip(array, 0, 1))).astype(np.uint8)


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey of more than eight bits with eight; Pillow would clip it."""
    deep = np.asarray(image)  # (H, W)
    if image.mode == "F":
        # Floats have no range here: 0..1 where they can be, else 0..255 where that is not black throughout.
        large = np.isfinite(deep).all() and deep.max() > 1.1
        if large and not (deep.min() > -1 and 16 <= deep.max() < 256):
            raise UserError(_too_deep(deep, name))
        grey = _bytes_of(np.rint(deep).astype(int) if large else deep, name)
    elif image.mode == "I" and 0 <= deep.min() <= deep.max() < 256:
        # Made by convert("I"): as 16 bits it would be black.
        grey = _bytes_of(deep, name)
    elif image.mode != "I" and 0 < deep.max() < 256:
        raise UserError(f"{name} holds 16-bit values up to {deep.max()}, all black: save it with 8 bits")
    elif deep.min() < 0 or deep.max() > 65535:
        raise UserError(_too_deep(deep, name))
    else:
        grey = (deep >> 8).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(262) == 0:  # a TIFF in which white is 0; Pillow turns those of 8 bits
        grey = 255 - grey
    clear = image.info.get("transparency")  # a grey level
    result = Image.fromarray(grey)
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    if clear is not None:
        result.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return result


def _too_deep(values: np.ndarray, name: str) -> str:
    return f"{name} holds values from {values.min():.6g} to {values.max():.6g}: save it with 8 or 16 bits"
