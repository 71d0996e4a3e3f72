"""Embeddings of time, cameras and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dd3g.cameras import RADIUS, Cameras


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of schedule indices, cosines first.

    Args:
        t: (...) schedule index.
        dim: even number of channels.

    Returns:
        (..., dim).
    """
    half = dim // 2
    freqs = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angle = t[..., None].float() * freqs
    return torch.cat([angle.cos(), angle.sin()], -1)


def fourier(x: Tensor, bands: int) -> Tensor:
    """Coordinates (..., C) of order 1 -> (..., C * (1 + 2 * bands)): themselves, sines, cosines by octave."""
    angle = x[..., None] * (math.pi * 2.0 ** torch.arange(bands, device=x.device, dtype=x.dtype))
    return torch.cat([x, angle.sin().flatten(-2), angle.cos().flatten(-2)], -1)


def camera_code(cameras: Cameras) -> Tensor:
    """(..., 16) camera-to-world matrix, row-major, in units of the radius of the canonical rig."""
    pose = cameras.camera_to_world.clone()
    pose[..., :3, 3] /= RADIUS
    return pose.flatten(-2)


def orbit_code(cameras: Cameras) -> Tensor:
    """(..., 16) camera codes of MVDream and ImageDream, for cameras around the origin.

    Their world has z up and the camera looks along its -z; the distance is left out. What this project calls
    azimuth 0 is 90 there, where their condition pictures stand.
    """
    pose = cameras.camera_to_world.clone()
    pose[..., :3, 1:3] *= -1
    pose[..., :3, 3] /= pose[..., :3, 3].norm(dim=-1, keepdim=True)
    return pose[..., [2, 0, 1, 3], :].flatten(-2)
