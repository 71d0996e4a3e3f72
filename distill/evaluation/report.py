"""An evaluation on paper: CSV, picture sheet and tables."""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dd3g.io.atomic import replacing
from distill.contact_sheet import save_contact_sheet
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
    save_contact_sheet(stack, path)


def evenly(targets: list[Target], count: int) -> list[Target]:
    """At most `count` of them, the first and the last among them, none twice."""
    count = min(count, len(targets))
    return [targets[round(i * (len(targets) - 1) / max(count - 1, 1))] for i in range(count)]


def _label(text: str, size: int) -> Tensor:
    """(3, size, size) tile with a word on it."""
    tile = Image.new("RGB", (size, size), "white")
    lines = "\n".join(textwrap.wrap(text, max(size // 6, 1)))
    ImageDraw.Draw(tile).multiline_text((2, size // 2 - 10), lines, fill="black")
    return torch.from_numpy(np.asarray(tile).copy()).movedim(-1, 0) / 255


Column = tuple[str, tuple[str, ...], int]  # heading, where its value is in a row, digits
NOVEL: list[Column] = [
    ("PSNR [95 %]", ("novel", "psnr"), 2), ("fg PSNR", ("novel", "fg_psnr"), 2),
    ("SSIM", ("novel", "ssim"), 3), ("fg SSIM", ("novel", "fg_ssim"), 3), ("IoU", ("novel", "iou"), 3),
    ("holes %", ("novel", "holes"), 1), ("eroded %", ("novel", "holes_eroded"), 1),
    ("leak", ("novel", "leak"), 3), ("60-120", ("bands", "60-120", "psnr"), 2),
    ("over card", ("psnr_over_flat_card",), 2), ("input PSNR", ("input", "psnr"), 2),
    ("SSIM", ("input", "ssim"), 3), ("IoU", ("input", "iou"), 3), ("ST-LPIPS", ("novel", "st_lpips"), 3),
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
    _print(f"Novel views: {data['objects']} objects, {data['size']} px, white", NOVEL, rows)
    _print("PSNR by azimuth from the input, and by style", groups, rows)
    _print("At the rig, against the true views", AT_RIG, report["rows"])
    if report.get("against_teacher"):
        _print("Against the teacher's stored views, PSNR", noises, report["against_teacher"])


def _print(title: str, columns: list[Column], rows: dict[str, Any]) -> None:
    console, table = Console(), Table(title=title)
    console.width = max(console.width, 170)  # a cut table says nothing; a log has room
    table.add_column("")
    cells = [[_cell(row, *column) for row in rows.values()] for column in columns]
    shown = [(column[0], values) for column, values in zip(columns, cells, strict=True) if {*values} != {"-"}]
    for heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for k, name in enumerate(rows):
        table.add_row(name, *(values[k] for _, values in shown))
    console.print(table)


def _cell(row: dict[str, Any], heading: str, path: tuple[str, ...], digits: int) -> str:
    value: Any = row
    for step in path:
        value = value.get(step) or {}
    if value.get("mean") is None:
        return "-"
    scale = 100 if heading.endswith(" %") else 1
    mean, low, high = (f"{scale * value[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if heading.endswith("[95 %]") else mean
