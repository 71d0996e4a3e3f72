"""Colours by the profile, code or chunks of a file -> sRGB; loaded for pictures that have one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from dd3g.srgb import to_linear, to_srgb

# Chromaticities x, y of white, red, green and blue.
SRGB = (0.3127, 0.3290, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
PRIMARIES = {  # by the numbers of ITU-T H.273; others hardly differ from sRGB
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # Rec. 2020
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
PAPER = 203  # candelas a square metre of white, in pictures of high range (ITU-R BT.2408)
FINE = 1 << 14  # steps of light, each less than a level of sRGB


def colour_code(data: bytes) -> tuple[int, int] | None:
    """Primaries and transfer of ITU-T H.273 that the bytes of a PNG, AVIF or HEIC name.

    None where there are none, or where the ICC profile of an AVIF or HEIC comes first.
    """
    if data.startswith(b"\x89PNG"):
        found = re.search(rb"\0\0\0\x04cICP(.)(.)", data[: data.find(b"IDAT")], re.DOTALL)
    else:
        boxes = data[: 1 << 20] if data[4:8] == b"ftyp" else b""
        if re.search(rb"colr(prof|rICC)", boxes):
            return None
        found = re.search(rb"colrnclx\0(.)\0(.)", boxes, re.DOTALL)
    return (found[1][0], found[2][0]) if found else None


def in_srgb(image: Image.Image, rgba: Image.Image) -> Image.Image:
    """RGBA, by way of what a picture says about its colours, if that fits.

    That is a code of ITU-T H.273, the "colour code" of its info, else an ICC profile, else the gAMA and cHRM
    chunks of a PNG. The image has any mode, as it was opened; `rgba` is the same, its colours as they are.
    """
    info, code = image.info, image.info.get("colour code")
    data = info.get("icc_profile")
    if code:
        return _turned(rgba, PRIMARIES.get(code[0], SRGB), TRANSFERS.get(code[1], to_linear))
    if not data:
        return rgba if "srgb" in info else _by_chunks(rgba, info)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB" and image.mode != "CMYK":
            if _is_srgb(profile):
                return rgba
            given = rgba.convert("RGB")
        elif (space, image.mode) in (("CMYK", "CMYK"), ("GRAY", "L")):
            given = image
        elif (space, image.mode) == ("GRAY", "LA"):
            given = image.getchannel("L")
        else:
            return rgba
        srgb = ImageCms.createProfile("sRGB")
        colour: Any = ImageCms.profileToProfile(given, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return rgba  # a damaged profile; its numbers are taken as sRGB
    colour.putalpha(rgba.getchannel("A"))
    colour.info = rgba.info
    result: Image.Image = colour
    return result


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile changes no colour by more than rounding does; names prove nothing: "linear sRGB"."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    turned: Any = ImageCms.profileToProfile(Image.fromarray(cube), profile, ImageCms.createProfile("sRGB"))
    return bool(np.abs(np.asarray(turned).astype(int) - cube).max() <= 3)


def _by_chunks(rgba: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """RGBA by the gAMA and cHRM chunks that Pillow read from a PNG."""
    gamma, places = info.get("gamma") or 1 / 2.2, info.get("chromaticity") or SRGB
    # 1 / 2.2 stands for the curve of sRGB, which it is near to.
    curve = to_linear if abs(2.2 * gamma - 1) < 0.05 or not 0.1 < gamma < 10 else _power(1 / gamma)
    return _turned(rgba, places, curve)


def _turned(
    rgba: Image.Image, places: tuple[float, ...], light: Callable[[np.ndarray], np.ndarray]
) -> Image.Image:
    """RGBA in sRGB, by its chromaticities, ordered like `SRGB`, and the curve from its values to light.

    What is out of the range of sRGB is cut off.
    """
    matrix = np.eye(3)
    try:
        matrix = np.linalg.inv(_to_xyz(SRGB)) @ _to_xyz(places)
        matrix /= matrix.sum(1, keepdims=True)  # white becomes white
    except (np.linalg.LinAlgError, ZeroDivisionError):
        pass  # no colours at all: they are taken as those of sRGB
    if light is to_linear and np.abs(matrix - np.eye(3)).max() < 0.02:
        return rgba
    lights = light(np.arange(256) / 255).clip(0, 1).astype(np.float32)
    codes = np.rint(255 * to_srgb(np.linspace(0, 1, FINE))).astype(np.uint8)
    pixels = np.array(rgba)  # (H, W, 4)
    for rows in np.split(pixels, range(256, len(pixels), 256)):  # a few at a time, as floats take much memory
        turned = (lights[rows[..., :3]] @ matrix.T.astype(np.float32)).clip(0, 1)
        rows[..., :3] = codes[np.rint(turned * (FINE - 1)).astype(int)]
    result = Image.fromarray(pixels)
    result.info = rgba.info
    return result


def _to_xyz(places: tuple[float, ...]) -> np.ndarray:
    """(3, 3) of light in primaries to XYZ, white to a Y of 1."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in zip(places[::2], places[1::2], strict=True)]).T
    matrix: np.ndarray = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    return matrix


def _power(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: np.power(value, exponent)


def _pq(value: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, 1 at the white of paper."""
    root = value ** (1 / 78.84375)
    light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return 10_000 / PAPER * light ** (1 / 0.1593017578125)


def _hlg(value: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 on a screen of 1000 candelas, 1 at the white of paper."""
    upper = (np.exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return 1000 / PAPER * np.where(value <= 0.5, value**2 / 3, upper) ** 1.2


TRANSFERS = {4: _power(2.2), 5: _power(2.8), 8: _power(1.0), 16: _pq, 18: _hlg}
