"""Any picture of an object -> a square RGBA tensor framed like the pictures the generator was trained on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dd3g.errors import UserError
from dd3g.io.atomic import replacing
from dd3g.picture.decoding import NAMELESS, Source, name_of, read_rgba
from dd3g.picture.framing import (
    CORE,
    FILL,
    SOLID,
    bounding_box,
    check_number,
    cut_frame,
    is_cut_out,
    object_box,
    object_frame,
    without_haze,
)
from dd3g.picture.matting import predict_matte, read_mask, shows_object, unmixed

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 256
TRANSLUCENT = 200  # largest alpha of an object that is taken for a faded one
LARGE = 8  # times the side of the frame, from which on a picture is reduced before it is cut out
SMALL = 32  # pixels of an object's longest side, from which it is shown too blurred
NARROW = 0.15  # of the picture, from which a matting model sees little of the object


@dataclass(frozen=True)
class Picture:
    """A picture ready for the generator."""

    rgba: Tensor  # (4, S, S) float32 in 0..1, sRGB, straight alpha; colour is 0 where alpha is 0
    warnings: tuple[str, ...] = ()  # for the user, about a matte that looks wrong

    def save(self, path: str | Path) -> Path:
        """Write the framed cut-out as an RGBA PNG, which shows what was taken as the object."""
        pixels = (self.rgba.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        with replacing(path) as part:
            Image.fromarray(pixels).save(part, format="PNG")
        return Path(path)


def load_image(
    source: Source,
    size: int = SIZE,
    matte: str = "auto",
    recentre: bool = True,
    mask: Source | None = None,
    fill: float = FILL,
) -> Picture:
    """Read a picture, find the object, and frame it.

    The longest side of the object's bounding box becomes 80 % of the frame, its centre the frame's centre;
    stray pixels and soft shadows do not count. What is read, and how, stands at `read_rgba`.

    Args:
        source: as in `dd3g.picture.read_rgba`: a path, an address, bytes, an open file, a PIL picture, an
            array (H, W[, C]) or a tensor (C, H, W), floats in 0..1, with straight alpha.
        size: side S of the result in pixels.
        matte: what cuts the object out: "auto" takes the alpha that the picture has, and asks the u2netp
            model where that is none (see `is_cut_out`); "none" takes the whole picture, with the alpha it
            has; any other value names u2netp or a rembg model, which is asked even where there is alpha.
        recentre: False keeps the object where it is and only resizes the frame (padded to a square); a tensor
            (4, size, size) with alpha then passes through unchanged.
        mask: the object's own matte instead, white on black or in its alpha; any of the sources, with the
            proportions of the picture.
        fill: part of the frame that the object's longest side spans.

    Returns:
        Picture with rgba (4, size, size).

    Raises:
        UserError: when the source cannot be read as a picture, is too small or too large, or shows nothing.
    """
    name = name_of(source)
    if not isinstance(size, int | np.integer) or not 1 <= size <= 8192:
        raise UserError(f"the size {size!r} is out of range: give 1 to 8192 pixels")
    if not isinstance(matte, str) or not matte.strip():
        raise UserError(f"matte={matte!r} is not a name: give 'auto', 'none', 'u2netp' or a model of rembg")
    check_number("the foreground ratio", fill)
    if not 0.1 <= fill <= 1:
        raise UserError(f"the foreground ratio {fill:g} is out of range: give 0.1 to 1, of the frame's side")
    if not recentre and mask is None and _is_framed(source):
        return Picture(resize_rgba(_padded(_zero_to_one(source, name)), size))
    image = read_rgba(source, name)
    given = None if mask is None else read_mask(mask, image.size)
    itself = mask is not None and name_of(mask) == name != NAMELESS
    if itself and image.getchannel("A").getextrema()[0] == 255:
        raise UserError(f"{name} has no alpha that could serve as its mask: give a separate mask, or none")
    if recentre:
        image, given = _closer(image, given, matte, size)
    cutout, notes = cut_out(image, matte, name, size, given)
    frame = object_frame(cutout.getchannel("A"), fill) if recentre else _letterbox(cutout)
    if frame is None:
        raise UserError(
            f"no object was found in {name}: give a picture in which it stands out, or one with alpha, or "
            "take it whole with --no-matte, in Python matte='none'"
        )
    framed = cut_frame(cutout, frame, size)
    if given is None and matte != "none" and not is_cut_out(image):  # a photo, cut out by a model
        cutout.putalpha(255)
        framed = unmixed(cut_frame(cutout, frame, size), framed.getchannel("A"))
    import torch  # after the picture has proved good: bad input is answered without waiting for torch

    pixels = torch.from_numpy(np.array(framed)).permute(2, 0, 1).float() / 255  # (4, S, S)
    return Picture(pixels * (pixels[3:] > 0), tuple(notes))


def as_picture(source: Source | Picture, matte: str = "auto", mask: Source | None = None) -> Picture:
    """What `Generator.generate` is given -> a picture for it; what is doubtful becomes a Python warning.

    Args:
        source: a `Picture`; a square tensor (4, S, S), which is taken as framed; else as in `load_image`.
        matte: as in `load_image`.
        mask: as in `load_image`.

    Raises:
        UserError: as `load_image`.
    """
    if isinstance(source, Picture):
        shape, rgba = tuple(source.rgba.shape), source.rgba
        if len(shape) != 3 or shape[0] != 4 or shape[1] != shape[2] or not rgba.is_floating_point():
            raise UserError(f"a Picture holds floats (4, S, S), got {rgba.dtype} {shape}: see load_image")
        if not ((rgba > -0.01) & (rgba < 1.01)).all():
            raise UserError("a Picture holds straight RGBA in 0..1, this one other numbers: see load_image")
        if not (rgba[3] > 0).any():
            raise UserError("the picture is fully transparent: give one that shows an object")
        return source
    if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
        raise UserError("several pictures were given: `Generator.generate_each` takes them")
    if matte == "auto" and mask is None and _is_framed(source):
        framed = _zero_to_one(source, "the picture")
        if framed.shape[1] == framed.shape[2]:
            return Picture(framed)
    picture = load_image(source, matte=matte, mask=mask)
    for warning in picture.warnings:
        warnings.warn(warning, stacklevel=4)  # torch stands between generate and its caller
    return picture


def _closer(
    image: Image.Image, mask: Image.Image | None, matte: str, size: int
) -> tuple[Image.Image, Image.Image | None]:
    """The part around the object of a picture, and of its mask, that `cut_out` would reduce with the object.

    Three times its bounding box, where that is known beforehand and the picture is not cut out by a model.
    """
    if max(image.size) < 2 * LARGE * size:
        return image, mask
    alpha = mask
    if mask is None and (matte == "none" or (matte == "auto" and is_cut_out(image))):
        alpha = image.getchannel("A")
    box = None if alpha is None else bounding_box(np.asarray(alpha) >= SOLID)
    if box is None:
        return image, mask
    (left, top, right, bottom), by = box, _longest(box)
    around = max(0, left - by), max(0, top - by), min(image.width, right + by), min(image.height, bottom + by)
    return image.crop(around), None if mask is None else mask.crop(around)


def cut_out(
    image: Image.Image, matte: str, name: str, size: int = SIZE, mask: Image.Image | None = None
) -> tuple[Image.Image, list[str]]:
    """Decide what the object is.

    Args:
        image: RGBA.
        matte: as in `load_image`.
        name: how messages call the picture.
        size: side of the frame that will be made from it; far larger pictures are reduced first.
        mask: the object's matte where the user gave one, mode L, of the picture's size.

    Returns:
        RGBA whose alpha is the matte, zero where the model found no object, and warnings.
    """
    # Full detail for any object above a tenth of the picture, at a bounded cost.
    factor = max(1, max(image.size) // (LARGE * size))
    whole = not is_cut_out(image)
    image = image.reduce(factor)
    notes: list[str] = []
    predicted = False
    if mask is not None:
        image = _on_white(image)
        image.putalpha(mask.reduce(factor))
    elif matte == "none":
        return image, notes
    elif matte != "auto" or whole:
        predicted = True
        if matte == "auto" and np.asarray(image.getchannel("A")).min() < SOLID:
            notes.append(
                f"{name} is transparent only at its edge, and was cut out like a photo; --mask {name} takes "
                "its alpha as it is"
            )
        image = _on_white(image)
        image.putalpha(predict_matte(image.convert("RGB"), matte))
    alpha = image.getchannel("A")
    top = int(np.asarray(alpha).max())
    if predicted and not shows_object(image):
        image.putalpha(0)
        return image, []
    if top < TRANSLUCENT and not predicted:
        notes.append(f"the object in {name} is translucent (largest alpha {top} of 255), and was made solid")
        alpha = alpha.point(lambda value: min(255, round(255 * value / top)))
        image.putalpha(alpha)
    box, taken = bounding_box(np.asarray(alpha) >= SOLID), 0.0
    if not predicted and mask is None:
        image, taken = without_haze(image)
    alpha = image.getchannel("A")
    if taken > 0.01 or box != object_box(alpha):
        advice = "" if predicted or mask is not None else f"; --mask {name} takes its alpha as it is"
        notes.append(
            f"faint or small parts around the object in {name}, such as a shadow or stray pixels, were left "
            f"out when it was framed: look at the saved matte{advice}"
        )
    return image, notes + _doubts(alpha, name, factor, predicted)


def _on_white(image: Image.Image) -> Image.Image:
    """The colours alone, opaque; white where they hide, as what lies under alpha 0 is arbitrary."""
    shown = image.getchannel("A").point(lambda alpha: 255 * (alpha >= SOLID))
    return Image.composite(image, Image.new("RGBA", image.size, "white"), shown)


def _longest(box: tuple[int, int, int, int]) -> int:
    """Longest side of (left, top, right, bottom)."""
    return max(box[2] - box[0], box[3] - box[1])


def _doubts(alpha: Image.Image, name: str, factor: int, predicted: bool) -> list[str]:
    """Warnings about a matte (mode L), which was reduced by a factor, and perhaps `predicted` by a model."""
    box = object_box(alpha)
    if box is None:
        return []
    longest = _longest(box)
    notes = []
    if longest * factor < SMALL:
        notes.append(
            f"the object in {name} is only {longest * factor} pixels long: the result will be blurred; give "
            "a larger picture of it"
        )
    if predicted and longest < NARROW * max(alpha.size):
        notes.append(
            f"the object spans only {100 * longest / max(alpha.size):.0f} % of {name}: look at the saved "
            "matte; crop the picture closer for a finer one"
        )
    solid = np.asarray(alpha) >= CORE  # (H, W)
    sides = (solid[0], solid[-1], solid[:, 0], solid[:, -1])
    touched = [bool(side.any()) for side in sides]
    if not predicted and min(side.mean() for side in sides) > 0.9 and solid.mean() < 0.95:
        notes.append(
            f"the matte of {name} covers its border and leaves out what is within: invert it if it marks "
            "the background"
        )
    # A cut-out that touches all four was trimmed to its object.
    if any(touched) and (predicted or not all(touched)):
        notes.append(f"the object touches the border of {name}: parts outside the picture are missing")
    return notes


def resize_rgba(rgba: Tensor, size: int) -> Tensor:
    """Resize straight-alpha pictures without dark or bright fringes, by way of premultiplied colour.

    (..., 4, H, W) in 0..1 becomes (..., 4, size, size); the input itself when it has that size already.
    """
    import torch
    from torch.nn.functional import interpolate

    if rgba.shape[-2:] == (size, size):
        return rgba
    flat = rgba.reshape(-1, *rgba.shape[-3:])
    premultiplied = torch.cat([flat[:, :3] * flat[:, 3:], flat[:, 3:]], 1)
    # Area averaging on the way down is what supersampled renders do.
    mode = "area" if size < min(rgba.shape[-2:]) else "bilinear"
    small = interpolate(premultiplied, (size, size), mode=mode)
    alpha = small[:, 3:]
    colour = torch.where(alpha > 0, small[:, :3] / alpha.clamp_min(1e-8), 0.0).clamp(0, 1)
    return torch.cat([colour, alpha], 1).reshape(*rgba.shape[:-2], size, size)


def _is_framed(source: Any) -> bool:
    """Whether it is a tensor (4, H, W) of floats or bytes with alpha."""
    if not hasattr(source, "is_floating_point") or source.dim() != 3 or len(source) != 4:
        return False
    opaque = {"torch.uint8": 255}.get(str(source.dtype), 1.0 if source.is_floating_point() else 0)
    return bool((source[3] < opaque).any())


def _zero_to_one(tensor: Any, name: str) -> Tensor:
    """A tensor of any type as float32 in 0..1, after the checks of `read_rgba`."""
    read_rgba(tensor, name)
    floats: Tensor = tensor.detach().cpu().float() / (1 if tensor.is_floating_point() else 255)
    return floats.clamp(0, 1)


def _padded(rgba: Tensor) -> Tensor:
    """(4, H, W) -> (4, L, L), transparent margins on the shorter side."""
    from torch.nn.functional import pad

    height, width = rgba.shape[-2:]
    longest = max(height, width)
    x, y = (longest - width) // 2, (longest - height) // 2
    return pad(rgba, (x, longest - width - x, y, longest - height - y))


def _letterbox(image: Image.Image) -> tuple[float, float, float]:
    longest = max(image.size)
    return (image.width - longest) // 2, (image.height - longest) // 2, longest
