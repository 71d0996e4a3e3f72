"""Whatever holds a picture -> an upright 8-bit RGBA picture in sRGB, at its full size."""

from __future__ import annotations

import io
import math
import os
import re
import time
import zlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union
from urllib.parse import urlsplit

import numpy as np
from PIL import BmpImagePlugin, Image, ImageChops, ImageOps, JpegImagePlugin, PngImagePlugin

from dd3g.errors import UserError, first_line, needed
from dd3g.picture.framing import SOLID
from dd3g.picture.strange_files import avif_pixels, damaged, is_strange_jpeg, too_large, what_it_is
from dd3g.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = Union[str, "os.PathLike[str]", bytes, BinaryIO, Image.Image, np.ndarray, "Tensor"]

NAMELESS = "the picture"
MIN_SIDE = 8
MAX_PIXELS = 80_000_000
MAX_JPEG_PIXELS = 500_000_000  # more than MAX_PIXELS are reduced while they are decoded
MAX_WHOLE_PIXELS = 1 << 28  # of other formats, which are reduced afterwards: a gigabyte at four bytes each
MAX_BYTES = 1 << 30  # of a file, a stream or an answer
PATIENCE = 300  # seconds for an answer
SUFFIXES = tuple(".png .jpg .jpeg .jfif .mpo .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .ico".split())
# A fixed list, since Pillow also opens formats that start other programs (EPS starts Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "ICO")
HEIC = re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)(?!.{4,40}avi[fs])", re.DOTALL)
COLOURED = {"colour code", "icc_profile", "gamma", "chromaticity"}  # what a picture's info may say of colours
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
# 1 MB of text in a PNG is legitimate; all texts of a file together stay below 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Alpha of 32-bit BMPs is read; where it is 0 throughout there is none.
BmpImagePlugin.USE_RAW_ALPHA = True


def read_rgba(source: Source, name: str = NAMELESS) -> Image.Image:
    """Decode a picture to upright 8-bit RGBA at its full size.

    EXIF rotation is applied; colours for which the file has a profile or numbers are converted to sRGB;
    16-bit pictures keep their upper eight bits; animations and files of several pages give their first
    picture; one of more than 80 million pixels is reduced, a JPEG while it is decoded.

    Args:
        source: a file, an http(s) address, the bytes of a file, an open binary file, a PIL picture, an array
            (H, W) or (H, W, 1..4), or a tensor (H, W) or (1|3|4, H, W). Floats lie in 0..1, 8-bit and other
            whole numbers in 0..255; uint16 is scaled from its full range.
        name: how messages call it.

    Raises:
        UserError: when it cannot be read as a picture, is too small or too large, or is fully transparent.
    """
    try:
        with quiet():  # Pillow's word on what it reads past: EXIF, text, padding
            if isinstance(source, Image.Image):
                opened: Any = nullcontext(source)
            elif isinstance(source, np.ndarray) or hasattr(source, "is_floating_point"):
                from dd3g.picture.eight_bits import from_numbers

                opened = nullcontext(from_numbers(source, name))
            else:
                data = read_bytes(source, name)
                opened = _decoder(data, name)
                if b"cICP" in data or b"colrnclx" in data:
                    from dd3g.picture.colours import colour_code

                    opened.info["colour code"] = colour_code(data)
            with opened as image:
                return _to_rgba(image, name)
    except UserError:
        raise
    except Exception as e:  # Pillow's decoders raise nearly every type there is on damaged files
        raise UserError(_what_is_wrong(e, name)) from e


def name_of(source: Any) -> str:
    """How messages call a picture."""
    if not isinstance(source, str | os.PathLike):
        return NAMELESS
    name = os.fsdecode(source)
    return name if len(name) < 1000 else f"{name[:100]}..."  # as of a picture taken for a path


def no_path(word: str) -> str:
    """Why a word names no picture; empty where it may name one."""
    if not word.strip():
        return "an empty argument names no picture: a shell variable may be unset"
    if "\0" in word:
        return f"{word[:100]!r} names no picture: a path cannot contain a zero byte"
    if ADDRESS.match(word):
        try:
            parts = urlsplit(word)
            if parts.username is not None:
                return (
                    f"{parts.hostname}: addresses with a name and a password are not read: save the picture, "
                    "and give that file"
                )
            return "" if parts.hostname else f"{word}: the address names no host"
        except ValueError as e:
            return f"{word}: the address is not one ({e})"
    scheme = re.match(r"(\w[\w+.-]+)://|(data):", word)
    if scheme and not os.path.exists(word):
        kind = scheme[1] or scheme[2]
        return (
            f"{word[:100]}: addresses of the kind {kind} are not read: give one of http or https, or a path"
        )
    return ""


def read_bytes(source: Any, name: str) -> bytes:
    """The bytes of a file, an address, an open file, or the bytes themselves; pipes are read to their end.

    Raises:
        UserError: when there are none, or more than `MAX_BYTES`, or the source is none of these.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        if wrong := no_path(os.fsdecode(source)):
            raise UserError(wrong)
        if isinstance(source, str) and ADDRESS.match(source):
            data = _fetched(source)
        else:
            with open(source, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)
    elif hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        if getattr(source, "closed", False):
            raise ValueError("closed")
        try:
            if getattr(source, "seekable", bool)() and source.tell():  # it was read before
                source.seek(0)
            # What is unbuffered gives what has come so far.
            whole = io.BufferedReader(source) if isinstance(source, io.RawIOBase) else source
            data = whole.read(MAX_BYTES + 1)
            if whole is not source:
                whole.detach()
        except io.UnsupportedOperation as e:
            raise UserError(f"{name} is not open for reading: open it with 'rb'") from e
        except (OSError, ValueError, MemoryError):
            raise
        except Exception as e:  # of a file object of the caller's own
            raise UserError(f"{name} cannot be read ({first_line(e)}): give its path, or its bytes") from e
    else:
        data = None
    if not isinstance(data, bytes):
        raise UserError(
            f"{name} is of type {type(source).__name__}: give a path, bytes, a file opened with 'rb', a PIL "
            "picture, an array (H, W, 3) or a tensor (3, H, W)"
        )
    if not data:
        raise UserError(f"{name} is empty (0 bytes): copy or download the picture again")
    if len(data) > MAX_BYTES:
        raise UserError(f"{name} has more than {MAX_BYTES >> 30} GB: scale it down first")
    return data


def _fetched(address: str) -> bytes:
    import urllib.parse
    import urllib.request

    until, data = time.monotonic() + PATIENCE, bytearray()
    try:
        # As browsers show them: with spaces and letters of any script.
        host = urlsplit(address).netloc
        plain = address if host.isascii() else address.replace(host, host.encode("idna").decode(), 1)
        quoted = urllib.parse.quote(plain, "%/:?#[]@!$&'()*+,;=~")
        request = urllib.request.Request(quoted, headers={"User-Agent": "dd3g"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            while len(data) <= MAX_BYTES and (part := answer.read1(1 << 20)):
                data += part
                if time.monotonic() > until:
                    raise TimeoutError(f"it took more than {PATIENCE} seconds")
            packing = answer.headers.get("Content-Encoding", "identity").lower()
            if packing in ("gzip", "x-gzip", "deflate"):  # which was not asked for
                return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, MAX_BYTES + 1)
            if packing != "identity":
                raise ValueError(f"the answer is packed as {packing}")
        return bytes(data)
    except Exception as e:  # of urllib, http, ssl, socket and zlib
        code, reason = getattr(e, "code", 0), getattr(e, "reason", e)
        step = "check the address"
        if code in (401, 403, 407):
            step = "it is not public; save the picture with a browser, and give that file"
        elif code == 429 or code >= 500 or isinstance(reason, TimeoutError):
            step = "try again later"
        elif not code and isinstance(e, OSError):
            step = "check the address, and whether this machine is connected"
        why = first_line(e if code or not isinstance(reason, Exception) else reason)
        raise UserError(f"{address} could not be fetched ({why}): {step}") from e


def _decoder(data: bytes, name: str) -> Image.Image:
    """The picture in the bytes of a file, its header read."""
    if HEIC.match(data):
        with needed(
            f"{name} is a HEIC picture, which needs the extra 'heif': pip install 'dd3g[heif]', or save "
            "it as JPEG"
        ):
            from pillow_heif import HeifImageFile
        try:
            return HeifImageFile(io.BytesIO(data))
        except SyntaxError as e:
            raise UserError(f"{name} is {damaged('its header is broken, or its end is missing')}") from e
    if data[8:16] == b"WEBPVP8X" and data[20:21] and data[20] & 2:
        # An animation: what its first picture leaves out is clear, even where it is said to have no alpha.
        data = data[:20] + bytes([data[20] | 16]) + data[21:]
    if data[:2] == b"\xff\xd8" and is_strange_jpeg(data):
        raise UserError(
            f"{name} is a kind of JPEG that is not read, such as a lossless one or one of 12 bits: save it "
            "as PNG"
        )
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        # Pillow's limit, which lies below ours; its plugins themselves have none.
        plugins = map(Image.OPEN.__getitem__, FORMATS)
        return next(make for make, knows in plugins if knows and knows(data[:16]))(io.BytesIO(data), "")
    except Image.UnidentifiedImageError as e:
        if avif_pixels(data) > MAX_WHOLE_PIXELS:  # which its decoder does not read
            raise UserError(f"{name} {too_large(MAX_WHOLE_PIXELS)}") from e
        if what := what_it_is(data):
            raise UserError(f"{name} is {what}") from e
        raise


def _what_is_wrong(error: Exception, name: str) -> str:
    known: dict[type, str] = {
        FileNotFoundError: f"{name} does not exist: check the path",
        IsADirectoryError: f"{name} is a folder: give a picture",
        PermissionError: f"cannot read {name}: check its permissions",
        MemoryError: f"not enough memory to read {name}: close other programs, or scale the picture down",
        Image.DecompressionBombError: f"{name} {too_large(2 * (Image.MAX_IMAGE_PIXELS or 0))}",  # a TIFF's
        Image.UnidentifiedImageError: f"{name} is not a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC or ICO "
        "picture: save it as PNG and try again",
    }
    if kind := next((kind for kind in known if isinstance(error, kind)), None):
        return known[kind]
    if isinstance(error, OSError) and error.errno is not None:  # of the system
        return f"{name} cannot be read ({error.strerror}): check the path"
    if "closed" in first_line(error) or isinstance(error, AssertionError):  # of one that was verified
        return f"{name} was closed before it was read: give it while it is open, or its path"
    if re.match("unsupported|unknown raw mode", first_line(error), re.IGNORECASE):
        return f"{name} is of a kind that is not read ({first_line(error)}): save it as PNG"
    return f"{name} is {damaged(first_line(error))}"


def _to_rgba(image: Image.Image, name: str) -> Image.Image:
    most = MAX_JPEG_PIXELS if isinstance(image, JpegImagePlugin.JpegImageFile) else MAX_WHOLE_PIXELS
    if image.width * image.height > most:
        raise UserError(f"{name} {too_large(most)}")
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{name} is {image.width}x{image.height} pixels, too small: give at least {MIN_SIDE} a side"
        )
    bitmap = image.format in ("BMP", "DIB")
    image = _loaded(image)
    if image.mode.startswith(("I", "F")):
        from dd3g.picture.eight_bits import eight_bits

        image = eight_bits(image, name)
    image = _upright(_reduced(image))
    straight = {"La": "LA", "LAB": "RGB"}.get(image.mode, image.mode)  # Pillow makes Lab transparent
    rgba = image.convert(straight).convert("RGBA")
    if COLOURED & image.info.keys():
        from dd3g.picture.colours import in_srgb

        rgba = in_srgb(image, rgba)
    top = np.asarray(rgba.getchannel("A")).max()
    if top == 0 and bitmap:
        rgba.putalpha(255)
    elif top < SOLID:
        raise UserError(f"{name} is fully transparent (largest alpha {top} of 255): it shows no object")
    return rgba


def _divisor(image: Image.Image) -> int:
    """By which both sides are divided where a picture is too large."""
    return math.ceil(math.sqrt(image.width * image.height / MAX_PIXELS))


def _reduced(image: Image.Image) -> Image.Image:
    """A picture that is small enough, made a few rows at a time, since conversions make copies."""
    by = _divisor(image)
    if by == 1:
        return image
    colours = "RGBA" if image.mode in ("P", "PA", "1") or "transparency" in image.info else image.mode
    rows = [
        image.crop((0, top, image.width, min(top + 64 * by, image.height))).convert(colours).reduce(by)
        for top in range(0, image.height, 64 * by)
    ]
    small = Image.new(colours, (rows[0].width, sum(row.height for row in rows)))
    for n, row in enumerate(rows):
        small.paste(row, (0, 64 * n))
    small.info = image.info
    return small


def _loaded(image: Image.Image) -> Image.Image:
    """The picture with its pixels; damaged ones are an error, a JPEG without its end marker is not."""
    try:
        _drafted(image).load()
        return image
    except OSError:
        stream = getattr(image, "fp", None)
        if image.format not in ("JPEG", "MPO") or not isinstance(stream, io.BytesIO):
            raise
        # Where blocks are missing too, the decoder takes what stands before the marker for them.
        ends = (b"\xff\xd9", 64 * b"\x55" + b"\xff\xd9")
        short, long = (
            _drafted(JpegImagePlugin.JpegImageFile(io.BytesIO(stream.getvalue() + end))) for end in ends
        )
        if ImageChops.difference(short.convert("RGB"), long.convert("RGB")).getbbox():
            raise
        return short


def _drafted(image: Image.Image) -> Image.Image:
    """A JPEG that is too large, set to be reduced while it is decoded."""
    if isinstance(image, JpegImagePlugin.JpegImageFile) and (by := _divisor(image)) > 1:
        by = next((power for power in (2, 4) if power >= by), 8)
        image.draft(image.mode, (image.width // by, image.height // by))
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF is not an error: Pillow raises as many types on it as its decoders do.
        return image
