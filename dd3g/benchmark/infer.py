"""The parts of `dd3g infer`, timed one by one."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dd3g import Gaussians, Generator
from dd3g.io.splats import save
from dd3g.models import model_path
from dd3g.pepd.captured import CapturedPass
from dd3g.picture import load_image

SPLATS = 65_536  # what the writing of files is judged on, whatever the generator makes


def time_parts(picture: Path, weights: str, device: str, repeats: int) -> dict[str, Any]:
    """Median seconds of each part on one machine; of "matte" None where its model has not been fetched.

    The picture is read with its alpha, and once without it, so that the matte has to be found.
    """
    parts: dict[str, Any] = {}
    rgba = load_image(picture).rgba
    generator = Generator.from_pretrained(weights, device=device)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dd3g.infer", str(picture), "-o", folder, "--weights", weights]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        parts["whole command, cold process"] = time.perf_counter() - start

        parts["read"] = median(lambda: load_image(picture), repeats)
        opaque = Image.open(picture).convert("RGB")
        parts["matte"] = median(lambda: load_image(opaque), repeats) if model_path("u2netp") else None
        parts["encode + generate, float32, eager"] = median(lambda: generator.generate(rgba), repeats)
        # Opaque copies: writers leave out what cannot be seen.
        made = generator.generate(rgba).to("cpu")
        copies = made.select(torch.arange(SPLATS) % len(made))
        gaussians = replace(copies, opacities=copies.opacities.clamp(min=0.1))
        for suffix in ("ply", "splat", "spz", "glb"):
            path = Path(folder) / f"x.{suffix}"
            parts[f"write {SPLATS:,} splats .{suffix}"] = median(partial(save, gaussians, path), repeats)
    return parts


def time_cuda(weights: str, repeats: int) -> dict[str, Any]:
    """p50 and p95 seconds of a bfloat16 pass on CUDA, launched eagerly and as one graph.

    Neither is what the command does for one picture: that is one eager float32 pass, timed by `time_parts`.
    """
    generator = Generator.from_pretrained(weights, device="cuda")
    c = generator.config
    noise = torch.randn(1, *c.latent_shape, device="cuda")
    image = torch.rand(1, 4, c.size, c.size, device="cuda")
    cameras = generator.rig.to("cuda")

    @torch.inference_mode()
    def forward() -> Gaussians:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return generator(noise, cameras, image)

    captured = CapturedPass(generator, dtype=torch.bfloat16)
    return {
        "bfloat16, eager": _quantiles(forward, repeats),
        "bfloat16, CUDA graph": _quantiles(lambda: captured(noise, cameras, image), repeats),
    }


def median(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `run` after one run that is not timed."""
    return statistics.median(_durations(run, repeats))


def _quantiles(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    times = sorted(_durations(run, repeats))
    return {"p50": times[len(times) // 2], "p95": times[int(0.95 * (len(times) - 1))]}


def _durations(run: Callable[[], Any], repeats: int) -> list[float]:
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken
