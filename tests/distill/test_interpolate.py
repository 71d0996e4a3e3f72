from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator, GeneratorConfig
from distill.interpolate import AZIMUTHS, between, main, perceptual_spread, spread
from distill.quadruples import noise_of


def test_the_path_between_noises_keeps_their_length():
    a, b = noise_of((4, 4, 8, 8), 1), noise_of((4, 4, 8, 8), 2)
    assert torch.equal(between(a, b, 0.0), a)
    torch.testing.assert_close(between(a, b, 1.0), b)
    middle = between(a, b, 0.5)
    assert float(middle.norm()) == pytest.approx(float((a.norm() + b.norm()) / 2), rel=0.01)
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    third = between(x, y, 1 / 3)
    assert third.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    assert torch.equal(between(x, x, 0.7), x)


def test_spread_is_the_deviation_over_noises():
    views = [torch.zeros(6, 3, 4, 4) for _ in range(2)]
    views[1][AZIMUTHS.index(180.0)] = 0.5
    found = spread(views)
    assert found == {"deviation": pytest.approx(0.25 / 6), "front": 0.0, "back": pytest.approx(0.25)}
    assert spread([views[0], views[0]])["deviation"] == 0


class Balls:
    """The noise's first value decides the size of a ball."""

    config = GeneratorConfig(size=16, latent_shape=(4, 4, 2, 2))

    def generate(self, picture, raw, noise):
        scales = (0.2 * (1 + 0.5 * torch.tanh(noise[0, 0, 0, 0]))).expand(1, 3)
        quats = torch.tensor([[1.0, 0, 0, 0]])
        return Gaussians(torch.zeros(1, 3), quats, scales, torch.full((1,), 0.99), torch.zeros(1, 3))


def test_the_perceptual_spread_is_the_mean_over_pairs_of_noises(monkeypatch):
    from distill.evaluation import learned

    monkeypatch.setitem(
        learned.METRICS,
        "st-lpips",
        lambda: learned.Metric("st_lpips", {}, lambda rgb: rgb, lambda a, b: (a - b).abs().mean((1, 2, 3))),
    )
    views = [torch.full((6, 3, 16, 16), x) for x in (0.0, 0.1, 0.4)]
    assert perceptual_spread(views)["st_lpips"] == pytest.approx((0.1 + 0.4 + 0.3) / 3)
    assert "16 pixels" in perceptual_spread([v[..., :8, :8] for v in views])["missing"]
    monkeypatch.setattr(learned, "model_path", lambda name: None)
    monkeypatch.setitem(learned.METRICS, "st-lpips", learned._st_lpips)
    assert "dd3g models fetch stlpips_alex" in perceptual_spread(views)["missing"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("x.foo", "x.foo is no picture to write: give a file that ends in .png, .jpg or .webp"),
        (".", " is no picture to write"),
        ("taken/x.png", "taken (it is a file): choose another with -o"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_told_before_any_work(
    tmp_path, monkeypatch, capsys, output, message
):
    monkeypatch.setattr(Generator, "from_pretrained", lambda *_, **__: pytest.fail("it was at work"))
    (tmp_path / "taken").write_text("")
    assert main(["thing.png", "3", "7", "-o", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_a_sheet_and_tells_what_the_noise_decides(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Generator, "from_pretrained", lambda name, device="cpu": Balls())
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:24, 8:24] = 200
    Image.fromarray(pixels).save(tmp_path / "thing.png")
    words = [
        str(tmp_path / "thing.png"),
        "3",
        "7",
        "--steps",
        "3",
        "--size",
        "16",
        "-o",
        str(tmp_path / "s.png"),
    ]
    assert main([*words, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["deviation"] > 0.01 and found["noises"] == 4
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape == (3 * 18 - 2, 6 * 18 - 2, 3)
    assert main([*words[:2], str(2**64), *words[3:]]) == 2
    assert "the seed 18446744073709551616 is out of range" in capsys.readouterr().err
    dark = [(sheet[18 * row : 18 * row + 16, :16] < 128).sum() for row in range(3)]
    assert len(set(dark)) > 1 and min(dark[0], dark[2]) <= dark[1] <= max(dark[0], dark[2])
