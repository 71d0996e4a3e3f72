"""The pictures and the table that an evaluation leaves for the eye."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import ImageDraw
from stand_ins.targets import RIG, ellipsoid, only_rig, perfect, target_of

from dd3g.cameras import Cameras
from distill.evaluation.packing import (
    evenly,
    save_sheets,
    sheet_tiles,
    sheet_views,
    titled_tiles,
    true_tiles,
)
from distill.evaluation.predictors import (
    Prediction,
    Target,
    all_white,
)
from distill.evaluation.scores import score
from distill.evaluation.tables import write_csv
from distill.pictures import on_white


def only_rig_of(target: Target, views: list[int]) -> Prediction:
    chosen = [v for v in views if v in RIG]
    return Prediction(chosen, on_white(target.rgba[chosen]), None)


def test_missing_cells_in_the_csv(tmp_path):
    target = target_of(ellipsoid())
    rows = {"a": [score(target, all_white(target))], "b": [score(target, only_rig)]}
    for (found,) in rows.values():
        found["seconds"] = 0.5
    write_csv(tmp_path / "x.csv", rows)
    lines = list(csv.DictReader(open(tmp_path / "x.csv", newline="")))
    assert lines[1]["psnr"] == "" and float(lines[1]["back_psnr"]) == 100 and lines[1]["psnr_60_120"] == ""


@pytest.mark.parametrize(
    ("there", "count", "wanted"),
    [(2, 10, [0, 1]), (1, 10, [0]), (30, 3, [0, 14, 29]), (4, 1, [0]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_a_sheet_shows_every_object_once(there, count, wanted):
    assert evenly(there, count) == wanted


def test_sheets_show_the_views_that_are_named(tmp_path):
    azimuths = [0.0, 90, 180, 270, 50, 50, 131, 20]
    cameras = Cameras.orbit(azimuths, [10.0] * 4 + [40.0, 5.0, 15.0, 10.0], 16)
    rgba = torch.rand(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    rgba[:, 3] = 1
    target = Target("thing", "x", rgba, cameras, torch.tensor(azimuths), RIG, [4, 5, 6, 7])
    assert sheet_views(target) == [0, 5, 1, 6, 2, 3]
    shown = [("right", sheet_tiles(target, perfect)), ("rig only", sheet_tiles(target, only_rig_of))]
    paths = save_sheets(tmp_path, [[(target.id, true_tiles(target)), *shown]] * 3, page=2)
    assert [p.name for p in paths] == ["sheet.png", "sheet-2.png"]
    from PIL import Image

    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape == (2 * 3 * 18 - 2, 7 * 18 - 2, 3)
    assert np.asarray(Image.open(tmp_path / "sheet-2.png")).shape == (3 * 18 - 2, 7 * 18 - 2, 3)
    tile = lambda row, column: page[18 * row : 18 * row + 16, 18 * column : 18 * column + 16]  # noqa: E731
    true = (rgba[[0, 5, 1, 6, 2, 3], :3] * 255).round().byte().movedim(1, -1).numpy()
    for column in range(6):
        assert (tile(0, column + 1) == true[column]).all() and (tile(1, column + 1) == true[column]).all()
    assert (tile(2, 2) == 255).all() and (tile(2, 3) == true[2]).all()


def test_true_views_of_a_sheet_tell_their_azimuths(monkeypatch):
    azimuths = [0.0, 90, -180, -90, 50, 131]  # as renders store them
    rgba = torch.ones(6, 4, 96, 96)
    target = Target(
        "x", "x", rgba, Cameras.orbit(azimuths, [10.0] * 6, 96), torch.tensor(azimuths), RIG, [4, 5]
    )
    written: list[str] = []
    draw = ImageDraw.ImageDraw.multiline_text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "multiline_text",
        lambda d, at, text, **k: (written.append(text), draw(d, at, text, **k)),
    )
    tiles = titled_tiles(target)
    assert written == ["0°", "50°", "90°", "131°", "180°", "270°"]
    ink = (tiles < 0.5).any(1)  # in the upper left corner only
    assert ink[:, :16, :32].flatten(1).any(1).all() and not ink[:, 16:].any() and not ink[:, :, 32:].any()
