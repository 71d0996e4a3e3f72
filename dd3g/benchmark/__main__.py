"""The command `dd3g benchmark`: time a part of dd3g, and print a table with the machine it ran on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dd3g.command.run import Json, dispatch

if TYPE_CHECKING:
    from rich.table import Table

Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each part.")]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 if a part is slower than it should be.")]


def rasterize(repeats: Repeats = 9, check: Check = False, as_json: Json = False) -> None:
    """Time the CPU rasteriser, forward and backward, against a per-tile rasteriser on torch's autograd."""
    from dd3g.benchmark.rasterize import SCENES, race

    rows = [race(count, size, floor, repeats) for count, size, floor in SCENES]
    table = _table(
        "rasterize, median ms, float32, RGB + depth + alpha, gradients to all fields",
        ("Gaussians", "image", "dd3g fwd", "fwd+bwd", "torch tiles fwd", "fwd+bwd", "speed-up"),
    )
    for r in rows:
        times = (r[engine][part] for engine in ("dd3g", "tiles") for part in ("forward", "both"))
        cells = (f"{ms:.1f}" for ms in times)
        table.add_row(f"{r['gaussians']:,}", f"{r['size']}²", *cells, f"{r['speedup']:.1f}x")
    slow = [f"{r['gaussians']} at {r['size']}: {r['speedup']:.1f}x < {r['floor']:g}x" for r in rows
            if r["speedup"] < r["floor"]]  # fmt: skip
    _tell({"rasterize": rows}, table, as_json, slow if check else [])


def infer(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture with alpha.")] = Path(
        "assets/lamp.png"
    ),
    weights: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "nano",
    repeats: Repeats = 15,
    as_json: Json = False,
) -> None:
    """Time the way from a picture to a splat file; on CUDA also bfloat16 passes, one of them a graph."""
    import torch

    from dd3g.benchmark.infer import time_cuda, time_parts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = time_parts(picture, weights, device, repeats)
    passes = time_cuda(weights, 10 * repeats) if device == "cuda" else {}
    table = _table(f"infer, {weights}, median ms", ("part", "ms"))
    for part, seconds in parts.items():
        table.add_row(part, "model not fetched" if seconds is None else f"{1e3 * seconds:.1f}")
    for name, times in passes.items():
        table.add_row(f"generator, {name}", f"p50 {1e3 * times['p50']:.2f}, p95 {1e3 * times['p95']:.2f}")
    _tell({"infer": parts, "cuda": passes}, table, as_json, [], device)


def pose(
    photo: Annotated[
        Path | None, typer.Argument(metavar="PHOTO", help="Photo of people; default: a synthetic one.")
    ] = None,
    hypotheses: Annotated[int, typer.Option(min=1, help="3D hypotheses per person.")] = 20,
    repeats: Repeats = 5,
    check: Check = False,
    as_json: Json = False,
) -> None:
    """Time the detector and the pose methods for one person, networks loaded."""
    from dd3g.benchmark.pose import FLOORS, time_pose

    parts = time_pose(photo, hypotheses, repeats)
    table = _table(f"pose, one person, {hypotheses} hypotheses, median ms", ("part", "ms", "at most"))
    for part, seconds in parts.items():
        floor = f"{1e3 * FLOORS[part]:.0f}" if part in FLOORS else ""
        table.add_row(part, "not timed" if seconds is None else f"{1e3 * seconds:.1f}", floor)
    slow = [part for part, floor in FLOORS.items() if (parts[part] or 0) > floor]
    _tell({"pose": parts, "hypotheses": hypotheses}, table, as_json, slow if check else [])


def _table(title: str, columns: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "part" else "right")
    return table


def _tell(report: dict[str, Any], table: Table, as_json: bool, slow: list[str], device: str = "cpu") -> None:
    from rich.console import Console

    from dd3g.machine import provenance

    made = provenance(device)
    if as_json:
        print(json.dumps(made | report))
    else:
        Console().print(table)
        print(", ".join(f"{k} {v}" for k, v in (made["machine"] | made["versions"]).items() if v))
    if slow:
        print(f"error: too slow: {'; '.join(slow)}", file=sys.stderr)
        raise typer.Exit(1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    about = "Time a part of dd3g, and print a table with the machine it ran on."
    return dispatch({"infer": infer, "rasterize": rasterize, "pose": pose}, argv, "dd3g benchmark", about)


if __name__ == "__main__":
    sys.exit(main())
