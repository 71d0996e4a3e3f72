"""A page about a dataset, finished or not: counts, scores, pictures, speed, and what is left to do.

dd3g data stats SET -o stats.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from data_gen.reports.figures import Figures, read_figures, sample_pictures
from data_gen.reports.stats_page import save_page
from data_gen.shards.storage import Storage
from dd3g.command.run import run_command

PERCENTILES = (1, 25, 50, 75, 99)


def report(figures: Figures, processes: int = 1) -> dict[str, Any]:
    """The figures as JSON-able values; scores by their percentiles."""
    hours = figures.hours_left(processes)
    return {
        "place": figures.place,
        "asked": figures.asked,
        "pictures": figures.pictures,
        "in_work": figures.in_work,
        "left": figures.left,
        "missing": dict(sorted(figures.missing.items())),
        "rejected": dict(sorted(figures.rejected.items())),
        "tries": figures.tries,
        "shards": figures.shards,
        "bytes": figures.bytes,
        "bytes_left": figures.bytes_left and round(figures.bytes_left),
        "bytes_free": figures.free,
        "seconds_per_try": {k: round(v / max(figures.tries, 1), 4) for k, v in figures.seconds.items()},
        "hours_left": hours and round(hours, 3),
        "groups": {k: vars(g) for k, g in sorted(figures.groups.items())},
        "made": {k: dict(v) for k, v in figures.made.items()},
        "scores": {
            k: {f"p{q}": round(float(np.percentile(v, q)), 4) for q in PERCENTILES}
            for k, v in figures.accepted.items()
        },
    }


def stats_command(
    folder: Annotated[str, typer.Argument(metavar="SET", help="Folder or bucket prefix of a set.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML page to write.")] = Path("stats.html"),
    pictures: Annotated[int, typer.Option(min=0, max=500, help="Pictures on the contact sheet.")] = 60,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that continue the set, to estimate the hours left.")
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object too.")
    ] = False,
) -> None:
    """Write one self-contained page about a set, finished or not. Only a few pictures are read."""
    storage = Storage(folder)
    figures = read_figures(storage)
    save_page(figures, sample_pictures(storage, pictures), output, processes)
    if as_json:
        print(json.dumps(report(figures, processes)))
    else:
        print(f"wrote {output}: {figures.pictures + figures.in_work} of {figures.asked} pictures")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 with one line when something is wrong."""
    return run_command(stats_command, argv, "dd3g data stats")
