"""The table of an evaluation, one list of columns: Markdown, LaTeX, and a page with all that was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dd3g.io.atomic import replacing
from distill.evaluation.packing import TURN_SIZE, TURNS

# Key of a novel or surface metric, or the start of one -> heading, digits, whether more is better.
HEADINGS = {
    "psnr": ("PSNR", 2, True), "fg_psnr": ("fg PSNR", 2, True), "ssim": ("SSIM", 3, True),
    "lpips_vgg": ("LPIPS vgg", 3, False), "lpips_alex": ("LPIPS alex", 3, False),
    "st_lpips": ("ST-LPIPS", 3, False), "clip": ("CLIP", 3, True), "iou": ("IoU", 3, True),
    "holes": ("holes", 3, False), "alpha_fuzz": ("fuzz", 3, False), "fid": ("FID", 1, False),
    "kid": ("KID", 4, False), "fd_stlpips": ("FD ST-LPIPS", 3, False), "chamfer": ("CD", 4, False),
    "f_": ("F", 3, True), "normals": ("normals °", 1, False),
}  # fmt: skip

WORST = 3  # objects named at either end


def table(report: dict[str, Any]) -> tuple[list[str], list[str], list[list[Any]]]:
    """The rows of a report of `evaluate` that have novel views as columns of means.

    Returns:
        keys of the columns, their headings, and for each row its label, then {mean, low, high} or a number or
        None for each column, then seconds and megabytes.
    """
    rows = {label: row for label, row in report["rows"].items() if row["novel"]}
    order = list(HEADINGS)
    found = dict.fromkeys(key for row in rows.values() for key in _values(row))
    keys = sorted(found, key=lambda key: order.index(_start(key)))
    body = []
    for label, row in rows.items():
        values = _values(row)
        body.append([label, *(values.get(key) for key in keys), row["latency"]["p50"], row["peak_mb"]])
    headings = [heading(key) for key in keys]
    return keys, ["", *headings, "s (p50)", "peak MB"], body


def heading(key: str) -> str:
    """What people call a metric."""
    name, rest = HEADINGS[_start(key)][0], key[len(_start(key)) :].strip("_")
    return f"{name} {rest}".strip()


def cell(key: str, value: Any, interval: bool = True) -> str:
    """A value as text: mean [low, high]."""
    if isinstance(value, dict):
        if value.get("mean") is None:
            return "-"
        digits = HEADINGS[_start(key)][1]
        low, high = f"{value['low']:.{digits}f}", f"{value['high']:.{digits}f}"
        return f"{value['mean']:.{digits}f}" + (f" [{low}, {high}]" if interval else "")
    if value is None:
        return "-"
    return f"{value:.{HEADINGS[_start(key)][1] if key else 3}f}"


def markdown(report: dict[str, Any]) -> str:
    """The table with intervals, what it was made with, and what could not be measured."""
    keys, headings, body = table(report)
    lines = [_row(headings), _row(["---"] * len(headings))]
    for label, *values, seconds, peak in body:
        cells = [cell(key, value) for key, value in zip(keys, values, strict=True)]
        lines.append(_row([label, *cells, f"{seconds:.3f}", "-" if peak is None else f"{peak:.0f}"]))
    return "\n".join([*lines, "", caption(report), ""])


def latex(report: dict[str, Any]) -> str:
    """The same as a booktabs table, the best of each column bold, without intervals."""
    keys, headings, body = table(report)
    rises = [HEADINGS[_start(key)][2] for key in keys]
    columns = [[_mean(row[c]) for row in body] for c in range(1, len(keys) + 1)]
    known = ([mean for mean in column if mean is not None] for column in columns)
    best = [(max if up else min)(means, default=None) for up, means in zip(rises, known, strict=True)]
    heads = [
        _tex(h) + (r"$\uparrow$" if up else r"$\downarrow$")
        for h, up in zip(headings[1:], rises, strict=False)
    ]
    lines = [rf"% {caption(report)}", rf"\begin{{tabular}}{{l{'r' * len(keys)}}}", r"\toprule",
             " & ".join(["", *heads]) + r" \\", r"\midrule"]  # fmt: skip
    for label, *values in body:
        cells = []
        for key, value, top in zip(keys, values, best, strict=False):
            text = cell(key, value, interval=False)
            cells.append(rf"\textbf{{{text}}}" if top is not None and _mean(value) == top else text)
        lines.append(" & ".join([_tex(label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def caption(report: dict[str, Any]) -> str:
    """Protocol, objects and program in one line, and which metrics are missing and why."""
    p, d = report["protocol"], report["data"]
    commit = (report.get("commit") or "none")[:12]
    line = (
        f"Protocol {p['name']} ({p['hash']}), {d['objects']} objects ({report['objects_hash']}), "
        f"{d['novel_views']} views of {d['size']} px; dd3g {report['version']}, commit {commit}; "
        "means over objects"
    )
    missing = [f"{k} not measured: {v['missing']}" for k, v in report["metrics"].items() if "missing" in v]
    return "; ".join([line, *missing]) + "."


def save_tables(report: dict[str, Any], folder: Path) -> None:
    """Write table.md and table.tex."""
    for name, text in (("table.md", markdown(report)), ("table.tex", latex(report))):
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")


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


def _values(row: dict[str, Any]) -> dict[str, Any]:
    found = {**row["novel"], **row.get("surface", {}), **row.get("sets", {})}
    return {key: value for key, value in found.items() if _start(key)}


def _start(key: str) -> str:
    """The entry of `HEADINGS` that a key belongs to: its own, or one followed by a size or a threshold."""
    for start in HEADINGS:
        rest = key[len(start) :].lstrip("_")
        if key == start or (key.startswith(start) and rest.replace(".", "").isdigit()):
            return start
    return ""


def _mean(value: Any) -> float | None:
    return value.get("mean") if isinstance(value, dict) else value


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tex(text: str) -> str:
    for sign in "&%_#":
        text = text.replace(sign, "\\" + sign)
    return text.replace("°", r"$^\circ$")
