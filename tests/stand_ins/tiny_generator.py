"""A small, untrained generator and what goes into it."""

from __future__ import annotations

from dataclasses import replace

import torch

from dd3g.cameras import Cameras
from dd3g.pepd import Generator, GeneratorConfig

TINY = GeneratorConfig(
    size=32,
    latent_shape=(4, 8, 8, 8),
    width=32,
    depth=1,
    heads=2,
    residual_hidden=8,
    fine=8,
    mid=16,
    head_hidden=8,
)
FIELDS = ("means", "quats", "scales", "opacities", "colors")


def generator(seed=0, **changes):
    """A generator whose zero-initialised layers are drawn as well, so that every path carries something."""
    torch.manual_seed(seed)
    model = Generator(replace(TINY, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv2" in name or ".out." in name:
                parameter.normal_(std=0.2)
    return model


def inputs(config=TINY, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, *config.latent_shape, generator=g)
    image = torch.rand(batch, 4, 32, 32, generator=g)
    image[:, 3] = (image[:, 3] > 0.3).float()
    return noise, Cameras.default_rig(32), image


def same(a, b, atol=0.0):
    return all(torch.allclose(getattr(a, f), getattr(b, f), rtol=0, atol=atol) for f in FIELDS)
