"""The commands `dd3g evaluate OBJECTS --generator nano -o out/evaluation` and `dd3g evaluate compare`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dd3g.command.run import Json, dispatch
from dd3g.command.setting import flattened
from dd3g.errors import UserError
from distill.evaluation.protocol import Evaluation


@flattened
def evaluate_command(
    source: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="Folder of a data set, or folders of shards by `dd3g data render`, one per --size.",
        ),
    ],
    options: Evaluation,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "out/evaluation"
    ),
    as_json: Json = False,
) -> None:
    """Compare generators, a teacher, other tools and simple baselines with the true views of objects."""
    from dd3g.nn.checkpoint import find_device
    from distill.evaluation.compare import evaluate
    from distill.evaluation.tables import print_table

    place = find_device(options.device)
    if place.type == "mps":
        raise UserError("nothing rasterises on mps: give --device cpu")
    report = evaluate(source, output, replace(options, device=str(place)))
    if as_json:
        print(json.dumps(report))
    else:
        print_table(report)
        files = ["evaluation.json", "objects.csv", "table.md", "table.tex"] + ["index.html"] * options.page
        print(f"wrote {', '.join([*files, *report['sheets']])} to {output}")
    failed = report["data"]["failed"]
    if failed:
        for id, reason in failed.items():
            print(f"left out {id}: {reason}", file=sys.stderr)
        raise typer.Exit(1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    commands = {"compare": ("distill.evaluation.paired", "Put rows of several evaluations into one table.")}
    return dispatch(commands, argv, "dd3g evaluate", "", otherwise=evaluate_command)


if __name__ == "__main__":
    sys.exit(main())
