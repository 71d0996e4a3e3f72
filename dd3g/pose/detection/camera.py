"""A camera's intrinsics from a given focal length, EXIF, or a default."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from PIL import Image
from torch import Tensor

from dd3g.errors import UserError
from dd3g.quiet import quiet

FILM_DIAGONAL = 43.27  # mm of 35 mm film, which EXIF's equivalent focal length refers to
STEPS = 30  # of the fixed point that undoes a lens
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
        UserError: a focal length that is not positive, or that no lens has.
    """
    width, height = size
    source = "flag"
    if focal is None:
        focal, source = None if picture is None else _exif_focal(picture, size), "exif"
        if focal is None or not _fits(focal, size):
            focal, source = math.hypot(width, height), "default"
    elif not (math.isfinite(focal) and focal > 0):
        raise UserError(f"the focal length must be positive, got {focal:g}: give it in pixels")
    elif not _fits(focal, size):
        raise UserError(
            f"a focal length of {focal:g} does not fit a picture of {width} x {height} pixels: give it in "
            "pixels of that picture, not in millimetres"
        )
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), source


def check_camera(K: Tensor, size: tuple[int, int]) -> None:
    """Refuse a camera matrix in other units than pixels of a picture of this size.

    Raises:
        UserError: a focal length that no lens has, or a principal point far outside.
    """
    focal, centre = K[0, 0].item(), (K[0, 2].item(), K[1, 2].item())
    inside = all(-side / 2 <= c <= 1.5 * side for c, side in zip(centre, size, strict=True))
    if not _fits(focal, size) or not inside:
        raise UserError(
            f"K with focal length {focal:g} and centre ({centre[0]:g}, {centre[1]:g}) does not fit a picture "
            f"of {size[0]} x {size[1]} pixels: give it in pixels of that picture"
        )


def _fits(focal: float, size: tuple[int, int]) -> bool:
    return LENSES[0] <= focal / math.hypot(*size) <= LENSES[1]


def _exif_focal(picture: Image.Image, size: tuple[int, int]) -> float | None:
    """Focal length in px, or None where EXIF does not tell."""
    # Cameras and editors write all kinds of things; the default serves then.
    with suppress(Exception), quiet():
        tags = picture.getexif().get_ifd(0x8769)
        film = float(tags.get(0xA405, 0))  # FocalLengthIn35mmFilm
        if film > 0:
            return film / FILM_DIAGONAL * math.hypot(*size)
        length, density = float(tags.get(0x920A, 0)), float(tags.get(0xA20E, 0))  # mm; cells a unit
        unit = {2: 25.4, 3: 10.0, 4: 1.0}.get(tags.get(0xA210, 2), 25.4)  # mm
        original = float(max(tags.get(0xA002, 0), tags.get(0xA003, 0)))  # px before resizing
        if length > 0 and density > 0 and original > 0:
            return length * density / unit * max(size) / original
    return None


def undistorted(pixels: Tensor, K: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    """Where a pinhole camera would see what a lens shows at some pixels, by fixed-point steps (Brown 1966).

    Args:
        pixels: (..., 2).
        K: (3, 3) pixels.
        distortion: (4 to 8,) k1, k2, p1, p2, then k3, then k4, k5, k6, as OpenCV orders them.

    Returns:
        pixels (..., 2), and how far (...) in px the lens would show these from where it did: much where the
        steps found nothing, since a lens of such coefficients shows nothing there.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = torch.nn.functional.pad(distortion, (0, 8 - len(distortion))).to(pixels)
    focal, centre = torch.stack([K[0, 0], K[1, 1]]), K[:2, 2]
    seen = (pixels - centre) / focal
    seen = seen - torch.stack([K[0, 1] / K[0, 0] * seen[..., 1], torch.zeros_like(seen[..., 1])], -1)
    p = torch.stack([p2, p1])

    def bent(x: Tensor) -> tuple[Tensor, Tensor]:
        """The lens as x * factor + shift."""
        r2 = x.square().sum(-1, keepdim=True)
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        # 2 p1 x y + p2 (r^2 + 2 x^2) is r^2 p2 + 2 x (p1 y + p2 x), and likewise for y.
        return radial + 2 * (x * p).sum(-1, keepdim=True), r2 * p

    x = seen
    for _ in range(STEPS):
        factor, shift = bent(x)
        x = (seen - shift) / factor
    factor, shift = bent(x)
    away = ((x * factor + shift - seen) * focal).norm(dim=-1)
    x = x + torch.stack([K[0, 1] / K[0, 0] * x[..., 1], torch.zeros_like(x[..., 1])], -1)
    return x * focal + centre, away
