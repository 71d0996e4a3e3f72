"""The transfer function of sRGB (IEC 61966-2-1), both ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_srgb(linear: NDArray) -> NDArray:
    """Linear light to sRGB."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(0.0031308) ** (1 / 2.4) - 0.055)


def to_linear(srgb: NDArray) -> NDArray:
    """The inverse of `to_srgb`."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
