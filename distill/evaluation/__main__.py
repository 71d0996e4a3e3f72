"""The commands `dd3g evaluate OBJECTS --generator nano -o out/evaluation` and `dd3g evaluate compare`."""

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
        typer.Argument(
            help="Folder of a data set, or folders of shards by `dd3g data render`, one a --size."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "out/evaluation"
    ),
    protocol: Annotated[
        str,
        typer.Option(help="house, grm, spar3d, syncdreamer, splatter, or a file; see docs/evaluation.md."),
    ] = "house",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the protocol; it changes the hash.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Of the data set: auto, or gso, gso-zip, omniobject3d, ycb, nerf and so on.")
    ] = "auto",
    generator: Annotated[
        list[str] | None, typer.Option(help="LABEL=NAME_OR_FOLDER, or just the name; may be repeated.")
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of another tool's results, with options: ,axes=opengl,elevation=0"),
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Another row, KIND=VALUE; see distill/evaluation/rows.py.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="The rows that need no network.")] = True,
    teacher: Annotated[str | None, typer.Option(help="Teacher whose own views make a row.")] = None,
    teacher_steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps; default: the teacher's.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the teacher's.")] = None,
    quadruples: Annotated[
        Path | None,
        typer.Option(help="Held-out quadruples: generators against the teacher on the same noise."),
    ] = None,
    size: Annotated[int, typer.Option(min=0, help="Pixels a side of what is scored; 0: the protocol's.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Only the first objects (and quadruples); 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and the bootstrap.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Noises for each object; two or more show diversity and best-of-K.")
    ] = 1,
    device: Device = "auto",
    processes: Annotated[
        int, typer.Option(min=0, help="Objects at a time; 0: one a core, one on a GPU.")
    ] = 0,
    sheet_objects: Annotated[
        int, typer.Option(min=0, help="Objects on picture sheets, ten on each; 0: no sheet.")
    ] = 10,
    page: Annotated[bool, typer.Option(help="Write index.html.")] = True,
    as_json: Json = False,
) -> None:
    """Compare generators, a teacher, other tools and simple baselines with the true views of objects."""
    from dd3g.nn.checkpoint import find_device
    from distill.evaluation.compare import evaluate, named
    from distill.evaluation.report import print_table

    place = find_device(device)
    if place.type == "mps":
        raise UserError("nothing rasterises on mps: give --device cpu")
    more = [*(row or []), *(f"predictions={words}" for words in predictions or [])]
    report = evaluate(
        source, output, named(generator or []), teacher, teacher_steps, guidance_scale, quadruples,
        size, limit, seed, str(place), sheet_objects, more, protocol, change or [], layout, baselines, seeds,
        processes, page,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        print_table(report)
        files = ["evaluation.json", "objects.csv", "table.md", "table.tex", *(["index.html"] if page else [])]
        print(f"wrote {', '.join([*files, *report['sheets']])} to {output}")
    failed = report["data"]["failed"]
    if failed:
        for id, reason in failed.items():
            print(f"left out {id}: {reason}", file=sys.stderr)
        raise typer.Exit(1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["compare"]:
        from distill.evaluation.paired import compare_command

        return run_command(compare_command, words[1:], "dd3g evaluate compare")
    return run_command(evaluate_command, words, "dd3g evaluate")


if __name__ == "__main__":
    sys.exit(main())
