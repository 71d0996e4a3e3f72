"""The CPU rasteriser, forward and backward, against a per-tile rasteriser on torch's autograd."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dd3g.benchmark.torch_tiles import tile_render
from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import rasterize

# Gaussians, pixels per side, and how many times faster than torch tiles the CPU engine must be.
SCENES = ((16_384, 128, 8.0), (65_536, 256, 9.0))


def race(count: int, size: int, floor: float, repeats: int) -> dict[str, Any]:
    """Median milliseconds of both engines on one scene, and the speed-up."""
    gaussians, camera = blob(count, size)
    leaves = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors]
    weights = torch.randn(5, size, size, generator=torch.Generator().manual_seed(1))

    def timed(draw: Callable[[Gaussians, Cameras], Tensor]) -> Callable[[], list[float]]:
        def run() -> list[float]:
            start = time.perf_counter()
            image = draw(gaussians, camera)
            drawn = time.perf_counter()
            torch.autograd.grad((image * weights).sum(), leaves)
            return [drawn - start, time.perf_counter() - start]

        return run

    with torch.no_grad():
        difference = (_dd3g(gaussians, camera) - _tiles(gaussians, camera)).abs().mean().item()
    ms = interleaved({"dd3g": timed(_dd3g), "tiles": timed(_tiles)}, repeats)
    return {
        "gaussians": count,
        "size": size,
        **{name: {"forward": parts[0], "both": parts[1]} for name, parts in ms.items()},
        "speedup": ms["tiles"][1] / ms["dd3g"][1],
        "floor": floor,
        "mean_difference": difference,
    }


def blob(count: int, size: int) -> tuple[Gaussians, Cameras]:
    """A ball of Gaussians of about a pixel, radii of 3 to 7 px, filling the frame of one camera."""
    draw = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1)
    means = 0.55 * direction * torch.rand(count, 1, generator=draw) ** (1 / 3)
    pixel = RADIUS * 2 * torch.tan(torch.deg2rad(torch.tensor(FOVY / 2))) / size
    gaussians = Gaussians(
        means.requires_grad_(),
        torch.randn(count, 4, generator=draw).requires_grad_(),
        (1.2 * pixel * torch.exp(0.4 * torch.randn(count, 3, generator=draw))).requires_grad_(),
        torch.rand(count, generator=draw).requires_grad_(),
        torch.rand(count, 3, generator=draw).requires_grad_(),
    )
    return gaussians, Cameras.orbit([30.0], size=size)


def _dd3g(gaussians: Gaussians, camera: Cameras) -> Tensor:
    render = rasterize(gaussians, camera, background=0.0)
    return torch.cat([render.rgb, render.depth, render.alpha], 1)[0]


def _tiles(gaussians: Gaussians, camera: Cameras) -> Tensor:
    return tile_render(gaussians, camera)[0]


def interleaved(runs: dict[str, Callable[[], list[float]]], repeats: int) -> dict[str, list[float]]:
    """Median of each timing, taken in turns so that a disturbance of the machine meets every contestant.

    Args:
        runs: each does its work once and returns durations in seconds, always the same parts.
        repeats: timed turns, after one that is not.

    Returns:
        For each run the median of each part in milliseconds.
    """
    taken: dict[str, list[list[float]]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            durations = run()
            if turn:
                taken[name].append(durations)
    return {
        name: [1e3 * statistics.median(part) for part in zip(*turns, strict=True)]
        for name, turns in taken.items()
    }
