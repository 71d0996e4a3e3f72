"""A generator's pass as one CUDA graph.

A pass of one picture is hundreds of small kernels, which take longer to launch one by one than to run.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians

WARM_UP = 3  # passes before the capture, in which libraries choose their kernels


class CapturedPass:
    """Launches the pass of one picture at once, without gradients.

    Args:
        generator: a `Generator` on a CUDA device, in evaluation mode; its weights may change in place, but
            not be replaced.
        dtype: that the network multiplies in, by autocast; None is that of its weights.

    Attributes:
        seconds: that warming up and capturing took.
    """

    def __init__(self, generator: Any, dtype: torch.dtype | None = None) -> None:
        start = time.perf_counter()
        self.dtype = dtype
        c, device = generator.config, generator.type_embedding.device
        self.generator = generator
        self.cameras = Cameras.stack([generator.rig.to(device)])
        self.front = Cameras.orbit([0.0], size=c.size).to(device)
        self.noise = torch.zeros(1, *c.latent_shape, device=device)
        self.image = torch.zeros(1, 4, c.size, c.size, device=device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Without a stream it captures that of the current device, and of a pass on another one nothing.
        with torch.cuda.graph(self.graph, stream=side):
            self.result = self._run()
        torch.cuda.synchronize(device)
        self.seconds = time.perf_counter() - start

    @torch.no_grad()
    def _run(self) -> Gaussians:
        # A graph must not read what autocast keeps of weights between passes.
        kept = {"enabled": self.dtype is not None, "cache_enabled": False}
        with torch.autocast(self.noise.device.type, self.dtype or torch.bfloat16, **kept):
            return self.generator(self.noise, self.cameras, self.image, front=self.front)

    def fits(self, noise: Tensor, cameras: Cameras, image: Tensor) -> bool:
        """Whether inputs have the shapes, and cameras the frame, that the graph was captured with."""
        mine = self.cameras
        frame = (cameras.width, cameras.height, cameras.near, cameras.far)
        return (
            noise.shape == self.noise.shape
            and image.shape == self.image.shape
            and frame == (mine.width, mine.height, mine.near, mine.far)
        )

    def __call__(
        self, noise: Tensor, cameras: Cameras, image: Tensor, front: Cameras | None = None
    ) -> Gaussians:
        """What `Generator.forward` gives for inputs that fit; later calls leave the result alone."""
        self.noise.copy_(noise)
        self.image.copy_(image)
        front = cameras.expand(*noise.shape[:2])[:, 0] if front is None else front
        for mine, given in ((self.cameras, cameras), (self.front, front)):
            mine.viewmats.copy_(given.viewmats)
            mine.Ks.copy_(given.Ks)
        self.graph.replay()
        return Gaussians(*(x.clone() for x in vars(self.result).values()))
