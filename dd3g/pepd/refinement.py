"""The visible side of a solid body fitted to its picture, for those who wait."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import rasterize

# By which logits of colours and logarithms of sizes are held, next to the picture's squared error. Steps of
# one size, as Adam takes them, would else paint cracks and patches with the discs that it hardly shows.
HELD = (0.005, 0.2)


def refined(
    gaussians: Gaussians, picture: Tensor, camera: Cameras, seconds: float, steps: int = 100_000
) -> Gaussians:
    """Colours and sizes of discs (N,) of `solidify` fitted by gradient descent to their picture (4, S, S).

    For so many seconds of the wall clock, or steps; the step under way is finished. The camera (1,) took the
    picture.
    """
    with torch.inference_mode(False):  # whose tensors know no gradients: copies do
        copies = Gaussians(*(x.detach().clone() for x in vars(gaussians).values()))
        place = replace(camera, viewmats=camera.viewmats.detach().clone(), Ks=camera.Ks.detach().clone())
        return _fitted(copies, picture.detach().clone(), place.resized(picture.shape[-1]), seconds, steps)


def _fitted(gaussians: Gaussians, picture: Tensor, camera: Cameras, seconds: float, steps: int) -> Gaussians:
    target = picture[:3] * picture[3:] + 1 - picture[3:]
    colors = gaussians.colors.clamp(0.01, 0.99).logit().requires_grad_()
    scales = gaussians.scales.log().requires_grad_()
    optimizer = torch.optim.Adam([{"params": [colors], "lr": 0.05}, {"params": [scales], "lr": 0.01}])
    starts = colors.detach().clone(), scales.detach().clone()
    end = time.monotonic() + seconds
    with torch.enable_grad():
        for _ in range(steps):
            if time.monotonic() > end:
                break
            fitted = replace(gaussians, scales=scales.exp(), colors=colors.sigmoid())
            error = rasterize(fitted, camera, antialiased=True).rgb[0] - target
            held = [
                weight * (x - start).square().mean()
                for weight, x, start in zip(HELD, (colors, scales), starts, strict=True)
            ]
            optimizer.zero_grad()
            (error.square().mean() + sum(held)).backward()
            optimizer.step()
    return replace(gaussians, scales=scales.detach().exp(), colors=colors.detach().sigmoid())
