"""Any picture of an object -> a square RGBA tensor framed like the pictures the generator was trained on."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from dd3g.errors import UserError
from dd3g.io.atomic import replacing
from dd3g.matting import predict_matte

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 256
# Training renders put a unit sphere scaled by 0.55 at distance 1.5 under a 49.1 degree field of view: at the
# depth of its centre it spans 0.8 of the frame.
FILL = 0.8
MIN_SIDE = 8
MAX_PIXELS = 80_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
# A fixed list, since Pillow also opens formats that start other programs (EPS starts Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SOLID = 26  # least alpha, of 255, of a pixel inside the object's bounding box
NEARLY_EMPTY = 0.05


@dataclass(frozen=True)
class Picture:
    """A picture ready for the generator.

    Args:
        rgba: (4, S, S) float32 in 0..1, sRGB, straight alpha; colour is 0 where alpha is 0.
        warnings: messages for the user about a matte that looks wrong.
    """

    rgba: Tensor  # (4, S, S)
    warnings: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write the framed cut-out as an RGBA PNG, which shows what was taken as the object."""
        pixels = (self.rgba.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        with replacing(path) as part:
            Image.fromarray(pixels).save(part, format="PNG")
        return Path(path)


def load_image(
    source: str | Path | Image.Image | np.ndarray | Tensor,
    size: int = SIZE,
    matte: str = "auto",
    recentre: bool = True,
) -> Picture:
    """Read a picture, find the object, and frame it.

    The longest side of the object's bounding box becomes 80 % of the frame, its centre the frame's centre.
    EXIF rotation is applied; ICC profiles are ignored (numbers are taken as sRGB); 16-bit pictures keep their
    upper eight bits; animations give their first frame.

    Args:
        source: a file, a PIL picture, a uint8 array (H, W) or (H, W, 1..4), or a float tensor (3, H, W) or
            (4, H, W) in 0..1 with straight alpha.
        size: side S of the result in pixels.
        matte: for pictures without alpha (no pixel below 255): "auto" asks the u2netp model, "none" takes the
            whole picture as the object, any other value names a rembg model. Alpha, where given, wins.
        recentre: False keeps the object where it is and only resizes the frame (padded to a square); a tensor
            (4, size, size) with alpha then passes through unchanged.

    Returns:
        Picture with rgba (4, size, size).

    Raises:
        UserError: when the file cannot be read as a picture, is too small or too large, or shows nothing.
    """
    name = f"{source}" if isinstance(source, str | Path) else "the picture"
    if not isinstance(source, str | Path | Image.Image | np.ndarray):
        rgba = source.detach().cpu().float()
        if not recentre and rgba.dim() == 3 and len(rgba) == 4 and bool((rgba[3] < 1).any()):
            return Picture(resize_rgba(_padded(rgba), size))
        source = (rgba.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    image = read_rgba(source, name)
    cutout, notes = cut_out(image, matte, name, size)
    framed = _frame(cutout, size, name) if recentre else _letterbox(cutout, size)
    import torch  # after the picture has proved good: bad input is answered without waiting for torch

    pixels = torch.from_numpy(np.array(framed)).permute(2, 0, 1).float() / 255  # (4, S, S)
    return Picture(pixels * (pixels[3:] > 0), tuple(notes))


def read_rgba(
    source: str | Path | bytes | Image.Image | np.ndarray, name: str = "the picture"
) -> Image.Image:
    """Decode a picture to upright 8-bit RGBA at its full size.

    Args:
        source: a file, the bytes of one, a PIL picture or a uint8 array (H, W), (H, W, 1..4).
        name: how messages call it.

    Raises:
        UserError: as `load_image`.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source, name)
    if isinstance(source, Image.Image):
        return _to_rgba(source, name)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        if not (file.getbuffer().nbytes if isinstance(file, io.BytesIO) else file.stat().st_size):
            raise UserError(f"{name} is empty (0 bytes): copy or download the picture again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's word on what it reads past: EXIF, text, padding
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                return _to_rgba(image, name)
    except UserError:
        raise
    except Exception as e:  # Pillow's decoders raise nearly every type there is on damaged files
        raise UserError(_what_is_wrong(e, name)) from e


def _what_is_wrong(error: Exception, name: str) -> str:
    known: dict[type, str] = {
        FileNotFoundError: f"{name} does not exist: check the path",
        IsADirectoryError: f"{name} is a folder: give a picture",
        PermissionError: f"cannot read {name}: check its permissions",
        Image.DecompressionBombWarning: _too_large(name),
        Image.DecompressionBombError: _too_large(name),
        Image.UnidentifiedImageError: f"{name} is not a PNG, JPEG, WebP, GIF or BMP picture: save it as PNG "
        "and try again",
    }
    if type(error) in known:
        return known[type(error)]
    if isinstance(error, OSError) and error.errno is not None:  # of the system
        return f"{name} cannot be read ({error.strerror}): check the path"
    return f"{name} is damaged or cut short ({error}): copy or download the picture again"


def cut_out(image: Image.Image, matte: str, name: str, size: int = SIZE) -> tuple[Image.Image, list[str]]:
    """Decide what the object is.

    Args:
        image: RGBA.
        matte: as in `load_image`.
        name: how messages call the picture.
        size: side of the frame that will be made from it; far larger pictures are reduced first.

    Returns:
        RGBA whose alpha is the matte, zero where the model found no object, and warnings.
    """
    has_alpha = np.asarray(image.getchannel("A")).min() < 255
    # Eight times the frame keeps full detail for any object above a tenth of the picture, at a bounded cost.
    image = image.reduce(max(1, max(image.size) // (8 * size)))
    if matte == "none":
        return image, []
    if not has_alpha:
        image.putalpha(predict_matte(image.convert("RGB"), matte))
    alpha = np.asarray(image.getchannel("A"))  # (H, W)
    solid = alpha >= 128
    if not has_alpha and not solid.any():
        image.putalpha(0)  # the model found no object
        return image, []
    notes = []
    if solid.mean() < NEARLY_EMPTY:
        notes.append(
            f"the object covers only {100 * solid.mean():.1f} % of {name}: look at the saved matte; "
            "crop closer, or give a picture with a transparent background"
        )
    if solid[[0, -1]].any() or solid[:, [0, -1]].any():
        notes.append(f"the object touches the border of {name}: parts outside the picture are missing")
    return image, notes


def resize_rgba(rgba: Tensor, size: int) -> Tensor:
    """Resize straight-alpha pictures without dark or bright fringes, by way of premultiplied colour.

    Args:
        rgba: (..., 4, H, W) in 0..1.
        size: side of the square result.

    Returns:
        (..., 4, size, size); the input itself when it has that size already.
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
    straight = torch.cat(
        [torch.where(alpha > 0, small[:, :3] / alpha.clamp_min(1e-8), 0.0).clamp(0, 1), alpha], 1
    )
    return straight.reshape(*rgba.shape[:-2], size, size)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (2, 3, 4))):
        raise UserError(f"{name} must be uint8 (H, W) or (H, W, 1..4), got {array.dtype} {array.shape}")
    if not array.size:
        raise UserError(f"{name} has no pixels: got shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first"


def _to_rgba(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(_too_large(name))
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{name} is {image.width}x{image.height} pixels, too small: give at least {MIN_SIDE} a side"
        )
    image = _upright(image)
    if image.mode.startswith("I"):
        # Pillow clips instead of scaling when it turns 16-bit grey into 8-bit.
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)  # (H, W)
        clear = image.info.get("transparency")  # a grey level
        image = Image.fromarray((deep >> 8).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    rgba = image.convert("RGBA")
    top = np.asarray(rgba.getchannel("A")).max()
    if top < SOLID:
        raise UserError(f"{name} is fully transparent (largest alpha {top} of 255): it shows no object")
    return rgba


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # damaged pixels are an error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF is not: Pillow raises as many types on it as its decoders do.
        return image


def _padded(rgba: Tensor) -> Tensor:
    """(4, H, W) -> (4, L, L), transparent margins on the shorter side."""
    from torch.nn.functional import pad

    height, width = rgba.shape[-2:]
    longest = max(height, width)
    x, y = (longest - width) // 2, (longest - height) // 2
    return pad(rgba, (x, longest - width - x, y, longest - height - y))


def _letterbox(image: Image.Image, size: int) -> Image.Image:
    longest = max(image.size)
    left, top = (image.width - longest) // 2, (image.height - longest) // 2
    return image.crop((left, top, left + longest, top + longest)).resize(
        (size, size), Image.Resampling.BICUBIC
    )


def object_frame(alpha: Image.Image) -> tuple[float, float, float] | None:
    """The square around an object that the generator wants to see.

    Args:
        alpha: matte, mode L.

    Returns:
        (left, top, side) in pixels, where the longest side of the object's bounding box is 80 % of the square
        and both share their centre; the square may reach outside the picture. None for an empty matte.
    """
    box = alpha.point(lambda a: 255 * (a >= SOLID)).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    side = max(right - left, bottom - top) / FILL
    return (left + right - side) / 2, (top + bottom - side) / 2, side


def cut_frame(image: Image.Image, frame: tuple[float, float, float], size: int) -> Image.Image:
    """Resample the square `frame` (left, top, side) of a picture to size x size; outside it is zero."""
    x, y, side = frame
    # Whole pixels around the frame first (transparent outside the picture), then the exact frame inside.
    ox, oy = int(np.floor(x)), int(np.floor(y))
    canvas = image.crop((ox, oy, int(np.ceil(x + side)), int(np.ceil(y + side))))
    exact = (x - ox, y - oy, x - ox + side, y - oy + side)
    return canvas.resize((size, size), Image.Resampling.BICUBIC, box=exact)


def _frame(image: Image.Image, size: int, name: str) -> Image.Image:
    frame = object_frame(image.getchannel("A"))
    if frame is None:
        raise UserError(
            f"no object was found in {name}: give a picture in which it stands out, or one with alpha, or "
            "--no-matte"
        )
    return cut_frame(image, frame, size)
