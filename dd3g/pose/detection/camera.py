"""A camera's intrinsics from a given focal length, EXIF, or a default."""

from __future__ import annotations

import math
import warnings

import torch
from PIL import Image
from torch import Tensor

from dd3g.errors import UserError

FILM_DIAGONAL = 43.27  # mm of 35 mm film, which EXIF's equivalent focal length refers to
LENSES = 0.1, 50.0  # picture diagonals: focal lengths in EXIF beyond those of cameras are ignored


def intrinsics(
    size: tuple[int, int], focal: float | None = None, picture: Image.Image | None = None
) -> tuple[Tensor, str]:
    """The camera matrix and where it comes from: the given focal length, EXIF, or the picture's diagonal.

    The default, a focal length of the diagonal in pixels, is a field of view of 53 degrees along it, that of
    a 43 mm lens on 35 mm film.

    Args:
        size: (width, height) in px.
        focal: px.
        picture: looked at for EXIF.

    Returns:
        K (3, 3) in px with the principal point at the centre; "flag", "exif" or "default".

    Raises:
        UserError: when the focal length is not positive and finite.
    """
    width, height = size
    source = "flag"
    if focal is None:
        focal = _exif_focal(picture, size) if picture is not None else None
        if focal is not None and not LENSES[0] <= focal / math.hypot(width, height) <= LENSES[1]:
            focal = None
        source = "exif"
    if focal is None:
        focal, source = math.hypot(width, height), "default"
    if not (math.isfinite(focal) and focal > 0):
        raise UserError(f"the focal length must be positive, got {focal:g}: give it in pixels")
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), source


def _exif_focal(picture: Image.Image, size: tuple[int, int]) -> float | None:
    """Focal length in px, or None where EXIF does not tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = picture.getexif().get_ifd(0x8769)
        film = float(tags.get(0xA405, 0))  # FocalLengthIn35mmFilm
        if film > 0:
            return film / FILM_DIAGONAL * math.hypot(*size)
        length, density = float(tags.get(0x920A, 0)), float(tags.get(0xA20E, 0))  # mm; cells a unit
        unit = {2: 25.4, 3: 10.0, 4: 1.0}.get(tags.get(0xA210, 2), 25.4)  # mm
        original = float(max(tags.get(0xA002, 0), tags.get(0xA003, 0)))  # px before resizing
        if length > 0 and density > 0 and original > 0:
            return length * density / unit * max(size) / original
    except Exception:
        # Cameras and editors write all kinds of things; the default serves then.
        return None
    return None
