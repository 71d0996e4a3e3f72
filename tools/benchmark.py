"""How fast it is on this machine: `python -m tools.benchmark rasterize`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from tools.report import processor

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

# Gaussians, pixels a side, and how many times faster than torch tiles the CPU engine must be.
SCENES = ((16_384, 128, 8.0), (65_536, 256, 9.0))


@app.callback()
def _group() -> None:
    """Time a part of dd3g and print a table with the machine it ran on."""


@app.command()
def rasterize(
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each engine and scene.")] = 9,
    check: Annotated[bool, typer.Option(help="Exit with 1 if a speed-up is below its floor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Forward and backward of the CPU rasteriser against a per-tile rasteriser on torch's autograd."""
    try:
        rows = [_race(count, size, floor, repeats) for count, size, floor in SCENES]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    machine = describe_machine()
    if as_json:
        print(json.dumps({"machine": machine, "rasterize": rows}))
    else:
        table = Table(title="rasterize, median ms, float32, RGB + depth + alpha, gradients to all fields")
        for column in ("Gaussians", "image", "dd3g fwd", "fwd+bwd", "torch tiles fwd", "fwd+bwd", "speed-up"):
            table.add_column(column, justify="right")
        for r in rows:
            cells = [r["dd3g"]["forward"], r["dd3g"]["both"], r["tiles"]["forward"], r["tiles"]["both"]]
            table.add_row(
                f"{r['gaussians']:,}", f"{r['size']}²", *(f"{ms:.1f}" for ms in cells), f"{r['speedup']:.1f}x"
            )
        Console().print(table)
        print(", ".join(f"{k} {v}" for k, v in machine.items()))
    if check and any(r["speedup"] < r["floor"] for r in rows):
        slow = [f"{r['gaussians']} at {r['size']}: {r['speedup']:.1f}x < {r['floor']:g}x" for r in rows]
        print(f"error: too slow: {'; '.join(slow)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def infer(
    picture: Annotated[Path, typer.Argument(help="A picture with alpha.")] = Path("assets/lamp.png"),
    weights: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "nano",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each part.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Parts of the way from a picture to a splat file; on CUDA also bfloat16 passes, one of them a graph."""
    from tools.benchmark_infer import time_cuda, time_parts

    try:
        cuda = torch.cuda.is_available()
        parts = time_parts(picture, weights, "cuda" if cuda else "cpu", repeats)
        passes = time_cuda(weights, 10 * repeats) if cuda else {}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    machine = describe_machine() | ({"gpu": torch.cuda.get_device_name()} if cuda else {})
    if as_json:
        print(json.dumps({"machine": machine, "infer": parts, "cuda": passes}))
        return
    table = Table(title=f"infer, {weights}, median ms")
    table.add_column("part")
    table.add_column("ms", justify="right")
    for part, seconds in parts.items():
        table.add_row(part, "model not fetched" if seconds is None else f"{1e3 * seconds:.1f}")
    for name, times in passes.items():
        table.add_row(f"generator, {name}", f"p50 {1e3 * times['p50']:.2f}, p95 {1e3 * times['p95']:.2f}")
    Console().print(table)
    print(", ".join(f"{k} {v}" for k, v in machine.items()))


@app.command()
def pose(
    photo: Annotated[Path | None, typer.Argument(help="With people; else one is made up.")] = None,
    hypotheses: Annotated[int, typer.Option(min=1, help="3D hypotheses a person.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each part.")] = 5,
    check: Annotated[bool, typer.Option(help="Exit with 1 if a part is slower than it should be.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Detector and pose methods for one person, networks loaded."""
    from tools.benchmark_pose import FLOORS, time_pose

    try:
        parts = time_pose(photo, hypotheses, repeats)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    machine = describe_machine()
    if as_json:
        print(json.dumps({"machine": machine, "pose": parts, "hypotheses": hypotheses}))
    else:
        table = Table(title=f"pose, one person, {hypotheses} hypotheses, median ms")
        for column in ("part", "ms", "at most"):
            table.add_column(column, justify="left" if column == "part" else "right")
        for part, seconds in parts.items():
            floor = f"{1e3 * FLOORS[part]:.0f}" if part in FLOORS else ""
            table.add_row(part, "not timed" if seconds is None else f"{1e3 * seconds:.1f}", floor)
        Console().print(table)
        print(", ".join(f"{k} {v}" for k, v in machine.items()))
    slow = [part for part, floor in FLOORS.items() if (parts[part] or 0) > floor]
    if check and slow:
        print(f"error: too slow: {', '.join(slow)}", file=sys.stderr)
        raise typer.Exit(1)


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


def describe_machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "os": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": version("numba"),
    }


def _race(count: int, size: int, floor: float, repeats: int) -> dict[str, Any]:
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

    tiles = _tile_render()
    with torch.no_grad():
        difference = (_dd3g(gaussians, camera) - tiles(gaussians, camera)).abs().mean().item()
    ms = interleaved({"dd3g": timed(_dd3g), "tiles": timed(tiles)}, repeats)
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
    from dd3g.rasterizer import rasterize

    render = rasterize(gaussians, camera, background=0.0)
    return torch.cat([render.rgb, render.depth, render.alpha], 1)[0]


def _tile_render() -> Callable[[Gaussians, Cameras], Tensor]:
    tests = Path(__file__).resolve().parents[1] / "tests"
    if not (tests / "tile_reference.py").exists():
        raise UserError(f"the baseline {tests / 'tile_reference.py'} is missing: run from a checkout of dd3g")
    sys.path.insert(0, str(tests))
    from tile_reference import tile_render

    return lambda gaussians, camera: tile_render(gaussians, camera)[0]


if __name__ == "__main__":
    app()
