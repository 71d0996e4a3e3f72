from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dd3g import Generator, load_image
from dd3g.errors import UserError
from dd3g.models import model_path
from dd3g.pepd.elevation import HIGHEST, ElevationNet, estimated_elevation, framed

ASSETS = Path(__file__).parents[3] / "assets"


def box(top, bottom, left, right, size=64):
    """A white rectangle."""
    rgba = torch.zeros(4, size, size)
    rgba[:, top:bottom, left:right] = 1
    return rgba


def test_the_object_fills_its_frame():
    seen = framed(box(4, 20, 8, 40))
    white = seen > 0.5
    rows, columns = (white[0].any(axis).nonzero()[:, 0] for axis in (1, 0))
    # 32 by 16 pixels: the longer side takes .8 of 128, in the middle.
    assert (int(columns[0]), int(columns[-1])) == (13, 114) and (int(rows[0]), int(rows[-1])) == (38, 89)
    assert torch.equal(seen[:, 0, 0], torch.zeros(3))  # grey beside it
    moved = framed(box(4, 20, 8, 40), 0.4, torch.tensor([0.5, 0.0]))
    columns = (moved > 0.5)[0].any(0).nonzero()[:, 0]
    assert (int(columns[0]), int(columns[-1])) == (6, 57)
    rows = (framed(box(4, 20, 8, 40), 0.4, torch.tensor([0.0, -0.5])) > 0.5)[0].any(1).nonzero()[:, 0]
    assert (int(rows[0]), int(rows[-1])) == (83, 108)
    turned = framed(box(4, 20, 8, 40), 0.8, roll=math.pi / 2) > 0.5
    torch.testing.assert_close(turned[0].T.float().mean(), white[0].float().mean(), atol=0.02, rtol=0)
    assert turned[0].any(1).sum() > 95 and turned[0].any(0).sum() < 60
    assert torch.equal(framed(torch.zeros(4, 64, 64)), torch.zeros(3, 128, 128))


def test_a_picture_and_its_mirror_image_are_from_the_same_height():
    torch.manual_seed(0)
    network = ElevationNet().eval()
    picture = torch.rand(4, 96, 96, generator=torch.Generator().manual_seed(1)) * box(10, 80, 30, 60, 96)
    one, other = (network.estimate(p) for p in (picture, picture.flip(-1)))
    assert one == pytest.approx(other, abs=1e-3) and -10 < one < 50
    with torch.no_grad():
        network.head.bias.fill_(100)
    assert network.estimate(picture) == HIGHEST


def test_weights_are_of_this_kind(tmp_path):
    torch.manual_seed(0)
    network = ElevationNet().eval()
    again = ElevationNet.from_pretrained(network.save_pretrained(tmp_path / "a"))
    picture = box(10, 50, 20, 40)
    assert again.estimate(picture) == network.estimate(picture)
    with pytest.raises(UserError, match="elevation"):
        ElevationNet.from_pretrained("nano")


@pytest.mark.parametrize(("name", "least", "most"), [("lamp", 3, 18), ("stool", 3, 18), ("coffee", 33, 50)])
def test_what_ships_tells_the_pictures_of_the_readme(name, least, most):
    path = next(ASSETS.glob(f"{name}.*"))
    if path.suffix == ".jpg" and not model_path("u2netp"):
        pytest.skip("needs the matting model")
    assert least <= estimated_elevation(load_image(path).rgba) <= most


def test_pictures_of_any_size_and_of_nothing():
    network = ElevationNet.from_pretrained()
    small, large = network.estimate(box(16, 48, 16, 32)), network.estimate(box(75, 225, 75, 150, 300))
    assert small == pytest.approx(large, abs=1.5)
    for size in (16, 64, 300):
        assert -10 <= network.estimate(torch.zeros(4, size, size)) <= 50


def test_the_generator_asks_for_it(monkeypatch):
    monkeypatch.setattr("dd3g.pepd.elevation.estimated_elevation", lambda rgba: 31)
    generator, picture = Generator.from_pretrained("nano"), box(10, 50, 20, 40)
    found = generator.generate(picture, elevation="auto", raw=True)
    told = generator.generate(picture, elevation=31, raw=True)
    assert torch.equal(found.means, told.means)
    with pytest.raises(UserError, match="elevation 'above' is not a number: give one, or auto"):
        generator.generate(picture, elevation="above")
