"""An evaluation as one HTML page without a network: a table that sorts, strips, and objects that turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dd3g.io.atomic import replacing
from distill.evaluation.packing import TURN_SIZE, TURNS
from distill.evaluation.tables import caption, cell, heading, table

WORST = 3  # objects named at either end


def save_page(report: dict[str, Any], results: list[dict[str, Any]], path: Path) -> Path:
    """Write the page from page.html."""
    from jinja2 import ChainableUndefined, Environment

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined
    )
    keys, headings, body = table(report)
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for d in report["grouped_differences"]:
        pairs.setdefault((d["a"], d["b"]), {})[d["group"]] = d
    differences = report["differences"]
    page = environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8")).render(
        report=report,
        caption=caption(report),
        keys=keys,
        headings=headings,
        body=body,
        cell=cell,
        heading=heading,
        differences=[d for d in differences if d["metric"] == "psnr" and d["p"] is not None],
        pairs=pairs,
        groups=list(dict.fromkeys(d["group"] for d in report["grouped_differences"])),
        extremes=list(_extremes(report)),
        results=results,
        turns=TURNS,
        size=TURN_SIZE,
        about={k: report[k] for k in ("protocol", "objects_hash", "metrics", "data")},
    )
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace")
    return path


def _extremes(report: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Label of each row, and PSNR and number of the objects at which it is worst and best."""
    for label, columns in report["per_object"].items():
        ranked = sorted((v, k) for k, v in enumerate(columns.get("psnr", [])) if v is not None)
        if ranked:
            yield label, ranked[:WORST], ranked[: -WORST - 1 : -1]
