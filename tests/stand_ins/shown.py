"""A toy in the viewer, and what a page shows of it."""

import numpy as np
import torch

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.io import splats
from dd3g.rasterizer import rasterize

SIZE = 256
BARE = (
    "document.querySelectorAll('header, #hint, nav').forEach((part) => { part.style.visibility = 'hidden'; })"
)


def toy() -> Gaussians:
    """A ball, red on the object's +x side, blue on -x, with a green cap, and a thin yellow bar in front."""
    n = 4000
    i = torch.arange(n, dtype=torch.float64) + 0.5
    y, turn = 1 - 2 * i / n, i * 2.399963229728653
    ring = (1 - y * y).sqrt()
    means = 0.42 * torch.stack([ring * turn.cos(), y, ring * turn.sin()], -1).float()
    colors = torch.stack([(means[:, 0] > 0).float(), torch.zeros(n), (means[:, 0] <= 0).float()], -1)
    colors[means[:, 1] > 0.3] = torch.tensor([0.0, 0.8, 0.2])
    tilt = torch.nn.functional.normalize(torch.tensor([1.0, 0.0, 0.0, 0.4]), dim=0)
    return Gaussians(
        means=torch.cat([means, torch.tensor([[0.0, 0.0, 0.5]])]),
        quats=torch.cat([torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1), tilt[None]]),
        scales=torch.cat([torch.full((n, 3), 0.012), torch.tensor([[0.12, 0.015, 0.015]])]),
        opacities=torch.cat([torch.linspace(0.3, 0.95, n), torch.tensor([0.98])]),
        colors=torch.cat([colors, torch.tensor([[1.0, 0.9, 0.0]])]),
    )


def drawn(azimuth: float, elevation: float, antialiased: bool = True) -> np.ndarray:
    """(SIZE, SIZE, 3) what our rasteriser shows of the Gaussians in the page, 0..255."""
    inside = splats.decode(splats.encode(toy(), "spz"), "spz").gaussians
    rgb = rasterize(inside, Cameras.orbit([azimuth], elevation, SIZE), antialiased=antialiased).rgb[0]
    return rgb.clamp(0, 1).mul(255).movedim(0, -1).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))
