"""A page about a dataset, finished or not: counts, scores, pictures, speed, and what is left to do.

dd3g data stats SET -o stats.html

The page comes from stats.html and needs no scripts, fonts or network.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from data_gen.filters.rules import REASONS, RULES
from data_gen.reports.figures import Figures, read_figures, sample_pictures
from data_gen.shards.storage import Storage
from dd3g.command.run import command_line
from dd3g.io.atomic import replacing

PERCENTILES = (1, 25, 50, 75, 99)
THUMBNAIL = 112
_BINS = 40
_WIDTH, _HEIGHT = 320, 92  # of a histogram


def _page(figures: Figures, shown: Sequence[tuple[bytes, dict[str, Any]]], processes: int) -> str:
    """The HTML of the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"count": _count, "size": _bytes, "duration": _duration}
    template = environment.from_string(Path(__file__).with_name("stats.html").read_text("utf-8"))
    return template.render(
        figures=figures,
        processes=processes,
        kept=figures.pictures + figures.in_work,
        missing=sum(figures.missing.values()),
        wall=figures.seconds["wall"],
        shown=[(_thumbnail(png), record) for png, record in shown],
        reasons=REASONS,
        groups=sorted(figures.groups.items(), key=lambda item: (-item[1].asked, item[0])),
        histograms=[_histogram(figures, name, values) for name, values in figures.accepted.items()],
        speed=_speed(figures),
        width=_WIDTH,
        height=_HEIGHT,
    )


def _histogram(figures: Figures, name: str, accepted: NDArray[np.float32]) -> dict[str, Any]:
    """One score: pictures and rejected tries by bin, and the thresholds with their places in 0..1."""
    refused = figures.refused.get(name, np.empty(0, np.float32))
    everything = np.concatenate([accepted, refused])
    low, high = (float(v) for v in np.percentile(everything, (0.1, 99.9)))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    kept, lost = (np.histogram(v.clip(low, high), edges)[0] for v in (accepted, refused))
    options = {
        threshold: figures.options.get(f"filters.{threshold}")
        for s, threshold, _ in RULES.values()
        if s == name
    }
    limits = {threshold: float(limit) for threshold, limit in options.items() if limit is not None}
    return {
        "name": name,
        "median": float(np.median(everything)),
        "bars": list(zip(edges[:-1], edges[1:], kept.tolist(), lost.tolist(), strict=True)),
        "top": max(1, int((kept + lost).max())),
        "limits": [(text, limit, (limit - low) / (high - low)) for text, limit in limits.items()],
        "range": (low, high),
    }


def _speed(figures: Figures) -> list[tuple[int, float]]:
    """(first shard, wall seconds a try); of many shards, means over equal stretches."""
    if not figures.speed or not figures.tries:
        return []
    bins = np.array_split(np.array(figures.speed), min(len(figures.speed), 2 * _BINS))
    return [(int(b[0, 0]), float(b[:, 1].mean())) for b in bins]


def _thumbnail(png: bytes) -> str:
    """The picture, small, as a data URL."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        small = image.convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=82)
    return f"data:image/webp;base64,{b64encode(stream.getvalue()).decode('ascii')}"


def _count(number: float) -> str:
    return f"{round(number):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _bytes(number: float | None) -> str:
    if number is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _duration(hours: float | None) -> str:
    if hours is None:
        return "–"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


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
        bool, typer.Option("--json", help="Also print the figures as one JSON object.")
    ] = False,
) -> None:
    """Write one self-contained page about a set, finished or not. Only a few pictures are read."""
    storage = Storage(folder)
    figures = read_figures(storage)
    page = _page(figures, sample_pictures(storage, pictures), processes)
    with replacing(output) as partial:
        partial.write_bytes(page.encode("utf-8", "replace"))
    if as_json:
        print(json.dumps(report(figures, processes)))
    else:
        print(f"wrote {output}: {figures.pictures + figures.in_work} of {figures.asked} pictures")


main = command_line(stats_command, "dd3g data stats")
