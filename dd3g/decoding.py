"""Whatever holds a picture -> an upright 8-bit RGBA picture in sRGB, at its full size."""

from __future__ import annotations

import io
import os
import re
import time
import warnings
import zlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union
from urllib.parse import urlsplit

import numpy as np
from PIL import BmpImagePlugin, Image, ImageChops, ImageOps, JpegImagePlugin, PngImagePlugin

from dd3g.errors import UserError, first_line
from dd3g.framing import SOLID

if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = Union[str, "os.PathLike[str]", bytes, BinaryIO, Image.Image, np.ndarray, "Tensor"]

MIN_SIDE = 8
MAX_PIXELS = 80_000_000
MAX_JPEG_PIXELS = 500_000_000  # these are reduced while they are decoded
MAX_BYTES = 1 << 30  # of a file, a stream or an answer
PATIENCE = 300  # seconds for an answer
SUFFIXES = tuple(".png .jpg .jpeg .jfif .mpo .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .ico".split())
# A fixed list, since Pillow also opens formats that start other programs (EPS starts Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "ICO")
HEIC = re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)(?!.{4,40}avi[fs])", re.DOTALL)
COLOURED = {"colour code", "icc_profile", "gamma", "chromaticity"}  # what a picture's info may say of colours
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
# How pictures begin whose decoders do not know them again once they are cut short.
CUT = re.compile(rb"....ftypavi[fs]|II\*\0|MM\0\*|II\+\0|MM\0\+", re.DOTALL)
# How pictures begin that are read, if they are whole.
BEGINS = re.compile(rb"\x89PNG|\xff\xd8|GIF8|RIFF....WEBP|BM....\0{4}", re.DOTALL)
# How files that are not pictures begin, for messages that help.
FOREIGN = {
    rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head)": "a web page: give the address of the picture itself",
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype )?svg": "an SVG drawing: export it "
    "as PNG",
    rb"%PDF": "a PDF: export the page as PNG",
    rb"version https://git-lfs": "a pointer of Git LFS: run `git lfs pull`",
    rb"8BPS": "a Photoshop file: export it as PNG",
    rb"\x1f\x8b|PK\x03\x04": "an archive: unpack it",
    rb"\0\0\0\x0c(jP  |JXL )|\xff(\x0a|\x4f\xff\x51)": "a JPEG 2000 or JPEG XL picture: save it as PNG",
    rb"ply\r?\n|glTF": "a 3D file: `dd3g convert` and `dd3g view` take some of these",
    rb"....ftypcrx": "a camera's raw file: save it as PNG or JPEG",
    rb"....ftyp": "a video, or a kind of HEIF that is not read: save a frame as PNG",
}

# 1 MB of text in a PNG is legitimate; all texts of a file together stay below 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Alpha of 32-bit BMPs is read; where it is 0 throughout there is none.
BmpImagePlugin.USE_RAW_ALPHA = True


def read_rgba(source: Source, name: str = "the picture") -> Image.Image:
    """Decode a picture to upright 8-bit RGBA at its full size.

    EXIF rotation is applied; colours for which the file has a profile or numbers are converted to sRGB;
    16-bit pictures keep their upper eight bits; animations and files of several pages give their first
    picture; a JPEG of more than 80 million pixels is reduced while it is decoded.

    Args:
        source: a file, an http(s) address, the bytes of a file, an open binary file, a PIL picture, an array
            (H, W) or (H, W, 1..4), or a tensor (H, W) or (1|3|4, H, W). Floats lie in 0..1, 8-bit and other
            whole numbers in 0..255; uint16 is scaled from its full range.
        name: how messages call it.

    Raises:
        UserError: when it cannot be read as a picture, is too small or too large, or is fully transparent.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's word on what it reads past: EXIF, text, padding
            if isinstance(source, Image.Image):
                opened: Any = nullcontext(source)
            elif isinstance(source, np.ndarray) or hasattr(source, "is_floating_point"):
                from dd3g.eight_bits import from_numbers

                opened = nullcontext(from_numbers(source, name))
            else:
                data = read_bytes(source, name)
                opened = _decoder(data, name)
                if b"cICP" in data or b"colrnclx" in data:
                    from dd3g.colours import colour_code

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
        return "the picture"
    name = os.fsdecode(source)
    return name if len(name) < 1000 else f"{name[:100]}..."  # as of a picture taken for a path


def no_path(word: str) -> str:
    """Why a word names no picture; empty where it may name one."""
    if not word.strip():
        return "an empty word names no picture: a variable of the shell may be unset"
    if "\0" in word:
        return f"{word[:100]!r} names no picture: no path holds a zero byte"
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
    elif hasattr(source, "read"):
        if getattr(source, "closed", False):
            raise ValueError("closed")
        try:
            if getattr(source, "seekable", bool)() and source.tell():  # it was read before
                source.seek(0)
            data = source.read(MAX_BYTES + 1)
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
        quoted = urllib.parse.quote(address, "%/:?#[]@!$&'()*+,;=~")
        request = urllib.request.Request(quoted, headers={"User-Agent": "dd3g"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            while len(data) <= MAX_BYTES and (part := answer.read1(1 << 20)):
                data += part
                if time.monotonic() > until:
                    raise TimeoutError(f"it took more than {PATIENCE} seconds")
            if answer.headers.get("Content-Encoding") == "gzip":  # which was not asked for
                return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, MAX_BYTES + 1)
        return bytes(data)
    except Exception as e:  # of urllib, http, ssl, socket and zlib
        code, reason = getattr(e, "code", 0), getattr(e, "reason", e)
        step = "check the address"
        if code in (401, 403, 407):
            step = "it is not for everybody; save the picture with a browser, and give that file"
        elif code == 429 or code >= 500 or isinstance(reason, TimeoutError):
            step = "try again later"
        elif not code and isinstance(e, OSError):
            step = "check the address, and whether this machine is connected"
        why = first_line(e if code or not isinstance(reason, Exception) else reason)
        raise UserError(f"{address} could not be fetched ({why}): {step}") from e


def _decoder(data: bytes, name: str) -> Image.Image:
    """The picture in the bytes of a file, its header read."""
    if HEIC.match(data):
        try:
            from pillow_heif import register_heif_opener
        except ImportError as e:
            raise UserError(
                f"{name} is a HEIC picture, which needs the extra 'heif': pip install 'dd3g[heif]', or save "
                "it as JPEG"
            ) from e
        register_heif_opener()
        try:
            return Image.open(io.BytesIO(data), formats=("HEIF",))
        except Image.UnidentifiedImageError as e:
            raise UserError(_damaged(name, "its head is broken, or its end is missing")) from e
    if _is_strange_jpeg(data):
        raise UserError(
            f"{name} is a kind of JPEG that is not read, such as a lossless one or one of 12 bits: save it "
            "as PNG"
        )
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        if data[:2] != b"\xff\xd8":
            raise
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))  # which asks nothing about the size
    except Image.UnidentifiedImageError as e:
        if CUT.match(data):
            if _has_tags(data):
                raise UserError(
                    f"{name} is a kind of TIFF that is not read, such as a camera's raw file: save it as PNG "
                    "or JPEG"
                ) from e
            raise UserError(_damaged(name, "its end is missing")) from e
        for start, kind in FOREIGN.items():
            if re.match(start, data[:2000], re.IGNORECASE | re.DOTALL):
                raise UserError(f"{name} is {kind}") from e
        if BEGINS.match(data):
            raise UserError(_damaged(name, "its head is broken")) from e
        raise


def _is_strange_jpeg(data: bytes) -> bool:
    """Whether the frame of a JPEG is neither baseline nor extended nor progressive, or not of 8 bits."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1] if at + 4 < len(data) else 0xDA
        if marker == 0xDA:  # the pixels
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # of tables
            return marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or data[at + 4] != 8
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _has_tags(data: bytes) -> bool:
    """Whether a TIFF's first directory and the pixels that it places lie within the file."""
    order = {b"II": "little", b"MM": "big"}.get(data[:2])
    if order is None or data[2:4] not in (b"*\0", b"\0*"):
        return False

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    end = start + 2 + 12 * number(start, 2)
    if not 8 <= start < end <= len(data):
        return False
    tags = {number(at, 2): (number(at + 4, 4), number(at + 8, 4)) for at in range(start + 2, end, 12)}
    (strips, place), (_, size) = tags.get(273, (0, 0)), tags.get(279, (0, 0))
    return strips != 1 or place + size <= len(data)


def _what_is_wrong(error: Exception, name: str) -> str:
    known: dict[type, str] = {
        FileNotFoundError: f"{name} does not exist: check the path",
        IsADirectoryError: f"{name} is a folder: give a picture",
        PermissionError: f"cannot read {name}: check its permissions",
        MemoryError: f"not enough memory to read {name}: close other programs, or scale the picture down",
        Image.DecompressionBombError: _too_large(name),
        Image.UnidentifiedImageError: f"{name} is not a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC or ICO "
        "picture: save it as PNG and try again",
    }
    if type(error) in known:
        return known[type(error)]
    if isinstance(error, OSError) and error.errno is not None:  # of the system
        return f"{name} cannot be read ({error.strerror}): check the path"
    if "closed" in first_line(error):
        return f"{name} was closed before it was read: give it while it is open, or its path"
    return _damaged(name, first_line(error))


def _damaged(name: str, why: str) -> str:
    return f"{name} is damaged or cut short ({why}): copy or download the picture again"


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first"


def _to_rgba(image: Image.Image, name: str) -> Image.Image:
    pixels = image.width * image.height
    if isinstance(image, JpegImagePlugin.JpegImageFile) and MAX_PIXELS < pixels <= MAX_JPEG_PIXELS:
        factor = next(f for f in (2, 4, 8) if pixels <= f * f * MAX_PIXELS)
        image.draft(image.mode, (image.width // factor, image.height // factor))
    elif pixels > MAX_PIXELS:
        raise UserError(_too_large(name))
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{name} is {image.width}x{image.height} pixels, too small: give at least {MIN_SIDE} a side"
        )
    bitmap = image.format in ("BMP", "DIB")
    image = _upright(_loaded(image))
    if image.mode.startswith(("I", "F")):
        from dd3g.eight_bits import eight_bits

        image = eight_bits(image, name)
    straight = {"La": "LA", "LAB": "RGB"}.get(image.mode, image.mode)  # Pillow makes Lab transparent
    rgba = image.convert(straight).convert("RGBA")
    if COLOURED & image.info.keys():
        from dd3g.colours import in_srgb

        rgba = in_srgb(image, rgba)
    top = np.asarray(rgba.getchannel("A")).max()
    if top == 0 and bitmap:
        rgba.putalpha(255)
    elif top < SOLID:
        raise UserError(f"{name} is fully transparent (largest alpha {top} of 255): it shows no object")
    return rgba


def _loaded(image: Image.Image) -> Image.Image:
    """The picture with its pixels; damaged ones are an error, a JPEG without its end marker is not."""
    try:
        image.load()
        return image
    except OSError:
        stream = getattr(image, "fp", None)
        if image.format not in ("JPEG", "MPO") or not isinstance(stream, io.BytesIO):
            raise
        # Where blocks are missing too, the decoder takes what stands before the marker for them.
        ends = (b"\xff\xd9", 64 * b"\x55" + b"\xff\xd9")
        short, long = (Image.open(io.BytesIO(stream.getvalue() + end), formats=FORMATS) for end in ends)
        if max(short.width * short.height, long.width * long.height) > MAX_PIXELS:
            raise
        if ImageChops.difference(short.convert("RGB"), long.convert("RGB")).getbbox():
            raise
        return short


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF is not an error: Pillow raises as many types on it as its decoders do.
        return image
