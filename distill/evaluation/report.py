"""An evaluation on paper: CSV, picture sheet and tables."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.io.atomic import replacing
from distill.evaluation.predictors import Drawing, Target
from distill.evaluation.scores import BANDS, RIG
from distill.pictures import on_white, pixels, save_contact_sheet


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


NOT_ON_SHEETS = ("all white", "flat card", "mean-colour blob", "true shape in our decoder")


def save_sheets(folder: Path, objects: Iterable[Sequence[tuple[str, Tensor]]], page: int = 10) -> list[Path]:
    """Pictures of rows below the truth, `page` objects on each sheet.png, sheet-2.png and so on.

    Args:
        folder: for the files.
        objects: for each its name with its true views, then labels of rows with theirs, (6, 3, S, S) each:
            the input, near 45 degrees from it, 90, near 135, 180, 270; see `sheet_views`.
        page: objects on a sheet.
    """
    left = iter(objects)
    paths: list[Path] = []
    while rows := [row for one in islice(left, page) for row in one]:
        shown = torch.stack([torch.stack([_label(name, tiles.shape[-1]), *tiles]) for name, tiles in rows])
        name = f"sheet-{len(paths) + 1}.png" if paths else "sheet.png"
        paths.append(save_contact_sheet(shown, folder / name))
    return paths


def sheet_views(target: Target) -> list[int]:
    """Indices of the views at azimuth 0, near 45, at 90, near 135, at 180 and at 270, or nearest to those."""
    positions = target.cameras.positions
    rig = target.rig if len(target.rig) == 4 else []

    def nearest(azimuth: float, among: list[int]) -> int:
        return among[int((positions[among] @ Cameras.orbit([azimuth]).positions[0]).argmax())]

    among = rig or [target.rig[0], *target.novel]
    front, right, back, left = (nearest(a, among) for a in (0.0, 90.0, 180.0, 270.0))
    return [front, nearest(45.0, target.novel), right, nearest(135.0, target.novel), back, left]


def true_tiles(target: Target) -> Tensor:
    """(6, 3, S, S) the views of `sheet_views`, with as many pixels as there are."""
    return on_white(target.finest.rgba[sheet_views(target)])


def titled_tiles(target: Target) -> Tensor:
    """`true_tiles`, each with its azimuth from the input in a corner."""
    size, titled = target.finest.size, []
    for view, tile in zip(sheet_views(target), true_tiles(target), strict=True):
        azimuth = round(float(target.azimuth[view])) % 360
        titled.append(_written(Image.fromarray(pixels(tile)), f"{azimuth}°", 2, size // 16))
    return torch.stack(titled)


def sheet_tiles(target: Target, drawing: Drawing) -> Tensor:
    """(6, 3, S, S) the predicted ones, white where there is none."""
    views, finest = sheet_views(target), target.finest
    found = drawing(finest, sorted(set(views)))
    shown = dict(zip(found.views, found.rgb, strict=True))
    return torch.stack([shown.get(v, torch.ones(3, finest.size, finest.size)) for v in views])


def evenly(there: int, count: int) -> list[int]:
    """At most `count` of so many indices, the first and the last among them, none twice."""
    count = min(count, there)
    return [round(i * (there - 1) / max(count - 1, 1)) for i in range(count)]


def _label(text: str, size: int) -> Tensor:
    """(3, size, size) tile with a word on it."""
    height = max(10, size // 13)
    lines = "\n".join(textwrap.wrap(text.replace("_", " "), max(2 * size // height, 1)))
    return _written(Image.new("RGB", (size, size), "white"), lines, size // 2 - height, height)


def _written(image: Image.Image, text: str, top: int, height: int) -> Tensor:
    """(3, H, W) picture with text at its left edge."""
    font = ImageFont.load_default(max(10, height))
    ImageDraw.Draw(image).multiline_text((2, top), text, fill="black", font=font)
    return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0) / 255


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
    if value.get("mean") is None:
        return "-"
    scale = 100 if heading.endswith(" %") else 1
    mean, low, high = (f"{scale * value[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if heading.endswith("[95 %]") else mean
