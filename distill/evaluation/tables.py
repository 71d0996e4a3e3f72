"""What an evaluation says: tables in Markdown, LaTeX, CSV and the terminal, and a page with all of it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dd3g.io.atomic import replacing
from distill.evaluation.packing import TURN_SIZE, TURNS
from distill.evaluation.scores import BANDS, RIG

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
    return _figure(value, HEADINGS[_start(key)][1] if key else 3, interval)


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


def save_page(report: dict[str, Any], results: list[dict[str, Any]], path: Path) -> None:
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


def write_csv(path: Path, scores: dict[str, list[dict[str, Any]]]) -> None:
    """One line an object and row of the table."""
    lines = []
    for label, rows in scores.items():
        for row in rows:
            line = {"row": label, "id": row["id"], "style": row["style"], **row.get("novel", {})}
            line |= {
                f"input_{k}": v for k, v in row.get("input", {}).items() if k[:4] in ("psnr", "ssim", "iou")
            }
            if "rig" in row:
                line |= {f"{r}_{k}": row["rig"][r][k] for r in RIG for k in ("psnr", "iou", "color_error")}
            line["psnr_60_120"] = row.get("bands", {}).get("60-120", {}).get("psnr", "")
            line |= row.get("surface", {})
            line |= {f"alignment_{k}": v for k, v in row.get("alignment", {}).items()}
            line |= row.get("seeds", {})
            line |= {k: row[k] for k in ("seconds", "peak_mb") if k in row}
            lines.append({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(lines)


Column = tuple[str, tuple[str, ...], int]  # heading, where its value is in a row, digits
NOVEL: list[Column] = [
    ("PSNR [95 %]", ("novel", "psnr"), 2), ("fg PSNR", ("novel", "fg_psnr"), 2),
    ("SSIM", ("novel", "ssim"), 3), ("fg SSIM", ("novel", "fg_ssim"), 3), ("IoU", ("novel", "iou"), 3),
    ("holes %", ("novel", "holes"), 1), ("eroded %", ("novel", "holes_eroded"), 1),
    ("leak", ("novel", "leak"), 3), ("60-120", ("bands", "60-120", "psnr"), 2),
    ("over card", ("psnr_over_flat_card",), 2), ("input PSNR", ("input", "psnr"), 2),
    ("SSIM", ("input", "ssim"), 3), ("IoU", ("input", "iou"), 3),
]  # fmt: skip
AT_RIG: list[Column] = [
    ("front PSNR", ("rig", "front", "psnr"), 2), ("IoU", ("rig", "front", "iou"), 3),
    ("sides PSNR", ("rig", "sides", "psnr"), 2), ("IoU", ("rig", "sides", "iou"), 3),
    ("colour error", ("rig", "sides", "color_error"), 3),
    ("back PSNR", ("rig", "back", "psnr"), 2), ("IoU", ("rig", "back", "iou"), 3),
]  # fmt: skip


def print_table(report: dict[str, Any]) -> None:
    """The report's means as tables; a column that no row has is left out."""
    data, rows = report["data"], {name: row for name, row in report["rows"].items() if row["novel"]}
    styles = sorted({s for row in rows.values() for s in row["by_style"]})
    groups: list[Column] = [(band, ("bands", band, "psnr"), 2) for band in BANDS]
    groups += [(style, ("by_style", style, "psnr"), 2) for style in styles]
    noises: list[Column] = [(f"{r} [95 %]", ("same_noise", r), 2) for r in RIG]
    noises += [(f"{r}, other noise", ("other_noise", r), 2) for r in RIG]
    seen: list[Column] = [
        (f"ST-LPIPS {data['fine_size']}", ("novel", f"st_lpips_{data['fine_size']}"), 3),
        (f"fuzz {data['fine_size']}", ("novel", f"alpha_fuzz_{data['fine_size']}"), 3),
        (f"input PSNR {data['input_size']}", ("input", f"psnr_{data['input_size']}"), 2),
    ]
    _print(f"Novel views: {data['objects']} objects, {data['size']} px, white", seen + NOVEL, rows)
    _print("PSNR by azimuth from the input, and by style", groups, rows)
    _print("At the rig, against the true views", AT_RIG, report["rows"])
    for title, part in (
        ("Surface", "surface"),
        ("Alignment to the input view", "alignment"),
        ("Over seeds", "seeds"),
    ):
        names = dict.fromkeys(name for row in report["rows"].values() for name in row.get(part, {}))
        _print(title, [(name.replace("_", " "), (part, name), 3) for name in names], report["rows"])
    for name, about in report.get("metrics", {}).items():
        if "missing" in about:
            Console().print(f"{name} was not measured: {about['missing']}", highlight=False)
    if report.get("against_teacher"):
        _print("Against the teacher's stored views, PSNR", noises, report["against_teacher"])


def _print(title: str, columns: list[Column], rows: dict[str, Any]) -> None:
    cells = [[_cell(row, *column) for row in rows.values()] for column in columns]
    shown = [(column[0], values) for column, values in zip(columns, cells, strict=True) if {*values} != {"-"}]
    if not shown:
        return
    console, table = Console(), Table(title=title)
    console.width = max(console.width, 200)  # a cut table says nothing; a log has room
    table.add_column("")
    for heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for k, name in enumerate(rows):
        table.add_row(name, *(values[k] for _, values in shown))
    console.print(table)


def _cell(row: dict[str, Any], heading: str, path: tuple[str, ...], digits: int) -> str:
    value: Any = row
    for step in path:
        value = value.get(step) or {}
    return _figure(value, digits, heading.endswith("[95 %]"), 100 if heading.endswith(" %") else 1)


def _figure(value: Any, digits: int, interval: bool, scale: int = 1) -> str:
    """A number, or a mean with or without its interval."""
    if not isinstance(value, dict):
        return "-" if value is None else f"{value:.{digits}f}"
    if value.get("mean") is None:
        return "-"
    mean, low, high = (f"{scale * value[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if interval else mean
