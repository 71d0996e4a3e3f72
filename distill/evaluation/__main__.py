"""The command `dd3g evaluate OBJECTS --generator nano --output out/evaluation`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dd3g.command import Device, Json, run_command
from dd3g.errors import UserError


def evaluate_command(
    source: Annotated[
        list[Path],
        typer.Argument(help="Folder of meshes, or folders of shards by `dd3g data render`, one a --size."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "out/evaluation"
    ),
    generator: Annotated[
        list[str] | None, typer.Option(help="LABEL=NAME_OR_FOLDER, or just the name; may be repeated.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Another row, KIND=VALUE; see distill/evaluation/rows.py.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher whose own views make a row.")] = None,
    teacher_steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps; default: the teacher's.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the teacher's.")] = None,
    quadruples: Annotated[
        Path | None,
        typer.Option(help="Held-out quadruples: generators against the teacher on the same noise."),
    ] = None,
    size: Annotated[
        int, typer.Option(min=16, help="Pixels a side of meshes rendered now, beside 128 and 256.")
    ] = 64,
    limit: Annotated[int, typer.Option(min=0, help="Only the first objects (and quadruples); 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and the bootstrap.")] = 0,
    device: Device = "auto",
    sheet_objects: Annotated[
        int, typer.Option(min=0, help="Objects on picture sheets, ten on each; 0: no sheet.")
    ] = 10,
    as_json: Json = False,
) -> None:
    """Compare generators, a teacher and simple baselines with the true views of objects."""
    from dd3g.device import find_device
    from distill.evaluation.compare import evaluate, named
    from distill.evaluation.report import print_table

    place = find_device(device)
    if place.type == "mps":
        raise UserError("nothing rasterises on mps: give --device cpu")
    report = evaluate(
        source, output, named(generator or []), teacher, teacher_steps, guidance_scale, quadruples,
        size, limit, seed, str(place), sheet_objects, row or [],
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        print_table(report)
        print(f"wrote {', '.join(['evaluation.json', 'objects.csv', *report['sheets']])} to {output}")
    if report["data"]["failed"]:
        raise typer.Exit(1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(evaluate_command, argv, "dd3g evaluate")


if __name__ == "__main__":
    sys.exit(main())
