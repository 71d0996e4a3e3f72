"""Gaussians around the middle, and cameras that see them."""

from dataclasses import fields, replace

import torch

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import Render

FIELDS = [f.name for f in fields(Gaussians)]


def ball(n: int, batch=(), size=0.05, spread=0.55, opacity=(0.02, 0.98), channels=3, seed=0) -> Gaussians:
    """Random Gaussians in a ball, float64, every field asking for its gradient."""
    draw = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.rand(*batch, n, *s, generator=draw, dtype=torch.float64)  # noqa: E731
    randn = lambda *s: torch.randn(*batch, n, *s, generator=draw, dtype=torch.float64)  # noqa: E731
    means = torch.nn.functional.normalize(randn(3), dim=-1) * rand(1) ** (1 / 3) * spread
    scales = size * torch.exp(0.6 * randn(3))
    opacities = opacity[0] + (opacity[1] - opacity[0]) * rand()
    return leaves(Gaussians(means, 2 * randn(4), scales, opacities, rand(channels)))


def leaves(g: Gaussians) -> Gaussians:
    return Gaussians(*(getattr(g, k).detach().clone().requires_grad_() for k in FIELDS))


def rig(width=48, height=48, azimuths=(0.0, 40.0, 170.0), dtype=torch.float64, **planes) -> Cameras:
    """Orbit cameras with an off-centre principal point."""
    cameras = Cameras.orbit(azimuths, 10, 48).to(dtype)
    cameras.Ks[..., 0, 2], cameras.Ks[..., 1, 2] = 0.55 * width, 0.4 * height
    return replace(cameras, width=width, height=height, **planes)


def gradients(render: Render, inputs: list[torch.Tensor], seed=1) -> tuple[torch.Tensor, ...]:
    """Of a random linear function of the whole render."""
    draw = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)).sum() for x in render)
    return torch.autograd.grad(loss, inputs)


def parts(g: Gaussians) -> list[torch.Tensor]:
    return [getattr(g, k) for k in FIELDS]


def assert_close(got, expected, tolerance: float, names) -> None:
    for a, b, name in zip(got, expected, names, strict=True):
        assert a.shape == b.shape and a.isfinite().all(), name
        scale = max(b.abs().max().item(), 1e-30) if b.numel() else 1.0
        worst = (a - b).abs().max().item() / scale if b.numel() else 0.0
        assert worst <= tolerance, f"{name}: {worst:.1e}"


SCENES = {
    "plain": (ball(200), rig()),
    "odd size": (ball(150, seed=1), rig(61, 33)),
    "smaller than a tile": (ball(60, seed=2), rig(7, 5)),
    "one pixel": (ball(60, seed=3), rig(1, 1)),
    "one channel": (ball(120, channels=1, seed=4), rig()),
    "nine channels": (ball(120, channels=9, seed=5), rig()),
    "no colour channel": (ball(50, channels=0, seed=6), rig()),
    # Cameras stand among the Gaussians: some lie behind, beside or across the image plane.
    "around the camera": (ball(300, size=0.2, spread=2.5, seed=7), rig(near=0.02, far=3.0)),
    "large": (ball(80, size=0.6, opacity=(0.1, 1.0), seed=8), rig(40, 40)),
    # Opaque stacks reach both the 0.999 clamp and the end of the pixel.
    "opaque": (ball(300, size=0.12, opacity=(1.0, 1.0), seed=9), rig()),
    "nearly transparent": (ball(200, size=0.1, opacity=(0.0, 0.012), seed=10), rig()),
    "needles": (ball(200, size=0.03, seed=11), rig()),
    "one": (ball(1, size=0.2, seed=12), rig()),
    "outside the frame": (ball(100, spread=4.0, seed=13), rig(near=0.02, far=9.0)),
}
SCENES["needles"][0].scales.data[:, 0] *= 8
SCENES["needles"][0].scales.data[:, 1:] *= 0.1
