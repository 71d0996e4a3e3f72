"""Pictures of ellipsoids, and the words that make quadruples of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dd3g.cameras import Cameras
from distill.teachers.analytic import draw_ellipsoids


def ellipsoid_views(n, size=32, views=(0,), elevation=10.0):
    """(n, V, H, W, 4) uint8 of random ellipsoids."""
    generator = torch.Generator().manual_seed(1)
    axes = torch.rand(n, 1, 3, generator=generator) * 0.3 + 0.2
    drawn = draw_ellipsoids(
        axes, torch.rand(n, 1, 3, generator=generator), Cameras.orbit(list(views), elevation, size)
    )
    return (drawn[:, 0] * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()


def command(inputs, teacher, output, *more):
    return [str(inputs), "--teacher", str(teacher), "--output", str(output), "--device", "cpu", *more]


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).iterdir())}
