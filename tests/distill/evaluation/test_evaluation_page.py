"""The page of an evaluation, and what is packed into it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins.headless_chromium import CHROMIUM, Page
from stand_ins.tinted_rows import DARK, GREY, WHITE, run

from dd3g.cameras import Cameras
from distill.evaluation import packing
from distill.evaluation.packing import from_png, packed, png, unpacked
from distill.evaluation.predictors import Prediction, Target


def test_the_page_holds_everything(tmp_path, boxes, rows):
    report = run(boxes, tmp_path, [GREY, WHITE], page=True, sheet_objects=1)
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r"\{\{\w+\}\}|https?://", page)  # all is filled in, and nothing comes from elsewhere
    assert page.count("<details") == 3 and page.count("class=turn") == 6
    assert page.count("data:image/webp;base64,") == 3 + 6 + 6  # strips of truth and rows, and turns
    assert "class=sortable" in page and report["protocol"]["hash"] in page and "bright − grey" in page
    psnr = report["rows"]["grey"]["novel"]["psnr"]  # the interval below the mean, not broken into two
    assert f"{psnr['mean']:.2f}<br><small>[{psnr['low']:.2f}, {psnr['high']:.2f}]</small>" in page
    assert report["sheets"] == ["sheet.png"]
    from PIL import Image

    assert Image.open(tmp_path / "sheet.png").size == (7 * 18 - 2, 3 * 18 - 2)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_sorts_and_turns_in_a_browser(tmp_path, boxes, rows):
    run(boxes, tmp_path / "out", [GREY, WHITE, DARK], page=True)
    page = Page(tmp_path / "profile", 1200)
    try:
        page.call("Page.navigate", url=(tmp_path / "out" / "index.html").as_uri() + "#o1")
        page.wait("document.readyState === 'complete' && document.querySelectorAll('.turn').length === 9")
        assert page.eval("document.querySelector('details[open]').id") == "o1"

        def column(number: int) -> list[str]:
            return page.eval(
                "[...document.querySelector('.sortable').tBodies[0].rows]"
                f".map(row => row.cells[{number}].dataset.value ?? row.cells[{number}].textContent)"
            )

        for number in (1, 0):  # numbers and words
            for state in ("descending", "ascending"):
                page.eval(f"document.querySelectorAll('.sortable th')[{number}].click()")
                found = column(number)
                order = sorted(found, key=float if number else str, reverse=state == "descending")
                assert found == order and len(set(found)) == 3
                shown = "[...document.querySelectorAll('[aria-sort]')].map(h => [h.cellIndex, h.ariaSort])"
                assert page.eval(shown) == [[number, state]]
        turn = "document.querySelector('#o1 .turn')"
        page.eval(f"{turn}.scrollIntoView({{block: 'center'}})")
        x, y = page.eval(f"(b => [b.x + 48, b.y + 48])({turn}.getBoundingClientRect())")
        assert page.eval(f"{turn}.style.backgroundPositionX") == ""
        for kind, at in (("mousePressed", x), ("mouseMoved", x - 24), ("mouseReleased", x - 24)):
            page.mouse(kind, at, y, button="left", clickCount=1)
        assert page.eval(f"{turn}.style.backgroundPositionX") == "-288px"  # three frames of 96 pixels on
        page.mouse("mouseMoved", x + 40, y)
        assert page.eval(f"{turn}.style.backgroundPositionX") == "-288px"
        assert page.errors == [] and all(not r.startswith("http") for r in page.requests)
    finally:
        page.close()


def test_features_and_tiles_survive_json():
    x = torch.randn(3, 5)
    assert np.allclose(unpacked(packed(x)), x, atol=2e-3)
    tiles = (torch.rand(6, 3, 8, 8) * 255).round() / 255
    assert torch.equal(from_png(png(tiles)), tiles)


def test_the_first_frame_of_a_turn_is_the_input(boxes):
    from distill.evaluation.protocol import load_protocol
    from distill.evaluation.targets import open_targets

    targets, _ = open_targets(boxes, load_protocol("grm", ["sizes=[16]", "supersample=1"]))
    asked = []

    def draw(at: Target, views: list[int]) -> Prediction:
        asked.append(at.cameras)
        return Prediction(views, torch.ones(len(views), 3, 96, 96), None)

    target = targets[0]
    packing.turn(target, draw)
    torch.testing.assert_close(asked[0].viewmats[0], target.cameras.viewmats[0], atol=1e-4, rtol=0)
    first = target.cameras[0].resized(96)
    torch.testing.assert_close(asked[0].Ks[0], first.Ks, atol=1e-3, rtol=0)
    assert isinstance(asked[0], Cameras) and replace(target, hash="").hash == ""
