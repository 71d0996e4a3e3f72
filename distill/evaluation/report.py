"""An evaluation on paper: CSV, picture sheet and tables."""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.io.atomic import replacing
from distill.evaluation.metrics import on_white
from distill.evaluation.predictors import Predictor, Target
from distill.evaluation.scores import BANDS, RIG


def write_csv(path: Path, scores: dict[str, list[dict[str, Any]]]) -> None:
    """One line an object and row of the table."""
    lines = []
    for label, rows in scores.items():
        for row in rows:
            line = {"row": label, "id": row["id"], "style": row["style"], **row.get("novel", {})}
            line |= {f"input_{k}": row["input"][k] for k in ("psnr", "ssim", "iou")}
            line |= {f"{r}_{k}": row["rig"][r][k] for r in RIG for k in ("psnr", "iou", "color_error")}
            line["psnr_60_120"] = row.get("bands", {}).get("60-120", {}).get("psnr", "")
            line["seconds"] = row["seconds"]
            lines.append({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(lines)


def write_sheet(path: Path, targets: list[Target], rows: dict[str, Predictor], count: int) -> None:
    """Per object a row of truth and one of each predictor: the rig, then six novel views."""
    from distill.sheet import save_sheet

    tiles = []
    for target in evenly(targets, count):
        step = max(len(target.novel) // 6, 1)
        views = target.rig + target.novel[::step][:6]
        size = target.rgba.shape[-1]
        tiles.append([_label("truth", size), *on_white(target.rgba[views])])
        for name, predictor in rows.items():
            with torch.inference_mode():
                prediction = predictor(target)
            shown = dict(zip(prediction.views, prediction.rgb, strict=True))
            empty = torch.ones(3, size, size)
            tiles.append([_label(name, size), *(shown.get(v, empty) for v in views)])
    width = max(len(row) for row in tiles)
    blank = torch.ones_like(tiles[0][0])
    stack = torch.stack([torch.stack(row + [blank] * (width - len(row))) for row in tiles])
    save_sheet(stack, path)


def evenly(targets: list[Target], count: int) -> list[Target]:
    """At most `count` of them, the first and the last among them, none twice."""
    count = min(count, len(targets))
    return [targets[round(i * (len(targets) - 1) / max(count - 1, 1))] for i in range(count)]


def _label(text: str, size: int) -> Tensor:
    """(3, size, size) tile with a word on it."""
    import numpy as np
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (size, size), "white")
    lines = "\n".join(textwrap.wrap(text, max(size // 6, 1)))
    ImageDraw.Draw(tile).multiline_text((2, size // 2 - 10), lines, fill="black")
    return torch.from_numpy(np.asarray(tile).copy()).movedim(-1, 0) / 255


def print_table(report: dict[str, Any]) -> None:
    """The report's means as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 170)  # a cut table says nothing; a log has room

    def cell(block: dict[str, Any], name: str, digits: int = 2, interval: bool = False) -> str:
        value = block.get(name) or {}
        if value.get("mean") is None:
            return "-"
        text = f"{value['mean']:.{digits}f}"
        return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" if interval else text

    rows = {name: row for name, row in report["rows"].items() if row["novel"]}
    table = Table(
        title=f"Novel views: {report['data']['objects']} objects, {report['data']['size']} px, white"
    )
    for column in ("", "PSNR [95 %]", "fg PSNR", "SSIM", "fg SSIM", "IoU", "holes %", "eroded %", "leak",
                   "60-120", "over card", "input PSNR", "SSIM", "IoU"):  # fmt: skip
        table.add_column(column, justify="left" if not column else "right", no_wrap=not column)
    if any("st_lpips" in row["novel"] for row in rows.values()):
        table.add_column("ST-LPIPS", justify="right")
    for name, row in rows.items():
        new, first = row["novel"], row["input"]
        percent = {k: {"mean": 100 * new[k]["mean"]} for k in ("holes", "holes_eroded") if new[k]["n"]}
        cells = [name, cell(new, "psnr", 2, True), cell(new, "fg_psnr"), cell(new, "ssim", 3)]
        cells += [cell(new, "fg_ssim", 3), cell(new, "iou", 3), cell(percent, "holes", 1)]
        cells += [
            cell(percent, "holes_eroded", 1),
            cell(new, "leak", 3),
            cell(row["bands"]["60-120"], "psnr"),
        ]
        cells += [cell(row, "psnr_over_flat_card"), cell(first, "psnr"), cell(first, "ssim", 3)]
        cells += [cell(first, "iou", 3)]
        table.add_row(*cells, *([cell(new, "st_lpips", 3)] if "st_lpips" in new else []))
    console.print(table)

    table = Table(title="PSNR by azimuth from the input, and by style")
    styles = sorted({s for row in rows.values() for s in row["by_style"]})
    for column in ("", *BANDS, *styles):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        by_band = [cell(row["bands"][band], "psnr") for band in BANDS]
        table.add_row(name, *by_band, *(cell(row["by_style"].get(s, {}), "psnr") for s in styles))
    console.print(table)

    table = Table(title="At the rig, against the true views")
    for column in ("", "front PSNR", "IoU", "sides PSNR", "IoU", "colour error", "back PSNR", "IoU"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in report["rows"].items():
        front, sides, back = (row["rig"][r] for r in RIG)
        cells = [cell(front, "psnr"), cell(front, "iou", 3), cell(sides, "psnr"), cell(sides, "iou", 3)]
        table.add_row(name, *cells, cell(sides, "color_error", 3), cell(back, "psnr"), cell(back, "iou", 3))
    console.print(table)

    if report.get("against_teacher"):
        table = Table(title="Against the teacher's stored views, PSNR (in brackets: with another noise)")
        for column in ("", *RIG):
            table.add_column(column, justify="left" if not column else "right")
        for name, row in report["against_teacher"].items():
            same, other = row["same_noise"], row["other_noise"]
            table.add_row(name, *(f"{cell(same, r, 2, True)} ({cell(other, r)})" for r in RIG))
        console.print(table)
