"""Every branch that only CUDA has, in a minute: `python -m distill.smoke`, before hours are spent on one."""

from __future__ import annotations

import sys

import torch

from dd3g.cameras import Cameras
from dd3g.command import run_command
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator
from dd3g.pepd.occupancy import OccupancyConfig, OccupancyNet
from dd3g.rasterizer import rasterize


def smoke_command() -> None:
    """Compare CUDA with the CPU: a captured pass, the rasteriser, gradients of a shape network."""
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA here, and the smoke test is of CUDA alone")
    generator = Generator.from_pretrained("nano", device="cuda").compiled()
    g = torch.Generator().manual_seed(0)
    picture = torch.rand(4, 64, 64, generator=g)
    fast = generator.generate(picture, raw=True).to("cpu")
    slow = Generator.from_pretrained("nano").generate(picture, raw=True)
    check("a pass as one graph", fast.means, slow.means, 1e-2)
    check("rasteriser", drawn(slow, "cuda"), drawn(slow, "cpu"), 2e-2)
    network = OccupancyNet(OccupancyConfig()).cuda()
    image = picture[None].cuda()
    with torch.autocast("cuda", torch.bfloat16):
        logits, volume = network(image, torch.zeros(1, device="cuda"))
    (logits.square().mean() + volume.square().mean()).backward()
    if not all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()):
        raise UserError("smoke test: the shape network has no finite gradients in bfloat16")
    print("smoke test: passed", file=sys.stderr)


def drawn(gaussians: Gaussians, device: str) -> torch.Tensor:
    """Two views, on the CPU."""
    cameras = Cameras.orbit([0.0, 120.0], 10.0, 64)
    return rasterize(gaussians.to(device), cameras.to(device), antialiased=True).rgb.detach().cpu()


def check(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare CUDA with the CPU, where TensorFloat-32 rounds otherwise."""
    worst = float((found - expected).abs().max())
    print(f"smoke test: {name}, largest difference {worst:.1e}", file=sys.stderr)
    if not worst < tolerance:
        raise UserError(f"smoke test: {name} differs by {worst:.2g} from the CPU's, {tolerance:g} is allowed")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(smoke_command, argv, "python -m distill.smoke")


if __name__ == "__main__":
    sys.exit(main())
