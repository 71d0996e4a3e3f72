"""An evaluation as one HTML page without a network: a table that sorts, strips, and objects that turn."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from dd3g.io.atomic import replacing
from distill.evaluation.packing import TURN_SIZE, TURNS
from distill.evaluation.tables import caption, cell, heading, table

WORST = 3  # objects named at either end


def save_page(report: dict[str, Any], results: list[dict[str, Any]], path: Path) -> Path:
    """Write the page.

    Args:
        report: of `evaluate`.
        results: of its objects, with their pictures.
        path: the .html file.
    """
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    values = {
        "title": escape(f"{report['protocol']['name']}, {report['data']['objects']} objects"),
        "caption": escape(caption(report)),
        "about": escape(report["protocol"]["about"]),
        "chosen": "".join(f"<li>{escape(line)}</li>" for line in report["protocol"]["chosen"]),
        "table": _table(report),
        "differences": _differences(report),
        "grouped": _grouped(report),
        "extremes": _extremes(report),
        "objects": "\n".join(_object(report, k, found) for k, found in enumerate(results)),
        "command": escape(report["command"]),
        "turns": str(TURNS),
        "turn_size": str(TURN_SIZE),
        "report": json.dumps({k: report[k] for k in ("protocol", "objects_hash", "metrics", "data")}).replace(
            "<", "\\u003c"
        ),
    }
    for key, value in values.items():
        template = template.replace("{{" + key + "}}", value)
    with replacing(path) as part:
        part.write_text(template, encoding="utf-8", errors="replace")
    return path


def _table(report: dict[str, Any]) -> str:
    keys, headings, body = table(report)
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    lines = []
    for label, *values, seconds, peak in body:
        cells = [_td(cell(key, value), value) for key, value in zip(keys, values, strict=True)]
        cells += [_td(f"{seconds:.3f}", seconds), _td("-" if peak is None else f"{peak:.0f}", peak)]
        lines.append(f"<tr><td>{escape(label)}</td>{''.join(cells)}</tr>")
    return f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _td(text: str, value: Any) -> str:
    number = value.get("mean") if isinstance(value, dict) else value
    mean, bracket, interval = escape(text).partition(" [")
    shown = f"{mean}<br><small>[{interval}</small>" if bracket else mean
    return f'<td data-value="{"" if number is None else number}">{shown}</td>'


def _differences(report: dict[str, Any]) -> str:
    """Paired differences in PSNR."""
    lines = [
        f"<tr><td>{escape(d['a'])} − {escape(d['b'])}</td>{_td(cell('psnr', d), d)}"
        f'<td data-value="{d["p"]}">{d["p"]:.4f}</td></tr>'
        for d in report["differences"] if d["metric"] == "psnr" and d["p"] is not None
    ]  # fmt: skip
    head = "<tr><th>rows</th><th>PSNR apart, dB [95 %]</th><th>p</th></tr>"
    return (
        f"<table class=sortable><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>" if lines else ""
    )


def _grouped(report: dict[str, Any]) -> str:
    """Paired differences in PSNR by style and band, a line a pair; bold where p is below .05."""
    found = report["grouped_differences"]
    groups = list(dict.fromkeys(d["group"] for d in found))
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for d in found:
        pairs.setdefault((d["a"], d["b"]), {})[d["group"]] = d
    lines = []
    for (a, b), by in pairs.items():
        cells = []
        for d in (by.get(group) for group in groups):
            if d is None:
                cells.append(_td("-", None))
                continue
            title = f"[{d['low']:.2f}, {d['high']:.2f}], p {d['p']:.4f}, {d['n']} objects"
            weight = " style='font-weight: bold'" if d["p"] < 0.05 else ""
            cells.append(f'<td data-value="{d["mean"]}" title="{title}"{weight}>{d["mean"]:+.2f}</td>')
        lines.append(f"<tr><td>{escape(a)} − {escape(b)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in ("rows", *groups))
    return f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _extremes(report: dict[str, Any]) -> str:
    """The objects at which each row is worst and best, by PSNR."""
    ids, lines = [o["id"] for o in report["objects"]], []
    for label, columns in report["per_object"].items():
        ranked = sorted((v, k) for k, v in enumerate(columns.get("psnr", [])) if v is not None)
        if ranked:
            parts = (ranked[:WORST], ranked[: -WORST - 1 : -1])
            worst, best = (
                ", ".join(f'<a href="#o{k}">{escape(ids[k])}</a> {v:.1f}' for v, k in p) for p in parts
            )
            lines.append(f"<tr><td>{escape(label)}</td><td>{worst}</td><td>{best}</td></tr>")
    return f"<table class=words><tr><th>row</th><th>worst</th><th>best</th></tr>{''.join(lines)}</table>"


def _object(report: dict[str, Any], number: int, found: dict[str, Any]) -> str:
    rows = [f'<tr><td>truth</td><td></td><td><img src="{found["strip"]}" loading=lazy></td><td></td></tr>']
    for part in found["rows"].values():
        for label, row in part.items():
            turn = (
                f"<div class=turn style=\"background-image:url('{row['turn']}')\"></div>"
                if row["turn"]
                else ""
            )
            values = {**row.get("novel", {}), **row.get("surface", {})}
            shown = [k for k in ("psnr", "ssim", "iou", "chamfer") if values.get(k) is not None]
            numbers = "<br>".join(f"{heading(k)} {cell(k, values[k])}" for k in shown)
            rows.append(
                f"<tr><td>{escape(label)}</td><td>{numbers}</td>"
                f'<td><img src="{row["strip"]}" loading=lazy></td><td>{turn}</td></tr>'
            )
    name = f"{escape(found['id'])} <small>{escape(found['style'])} {found['hash']}</small>"
    return f'<details id="o{number}"><summary>{name}</summary><table>{"".join(rows)}</table></details>'
