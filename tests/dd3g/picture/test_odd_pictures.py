"""A corpus of odd pictures through the real command, in one process."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import odd_pictures
from stand_ins.infer_command import run

from dd3g.gaussians import Gaussians
from dd3g.models import model_path
from dd3g.pepd import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A real checkpoint of the smallest size; weights are random."""
    torch.manual_seed(0)
    return Generator(GeneratorConfig(width=16, depth=1, heads=1)).save_pretrained(
        tmp_path_factory.mktemp("weights") / "tiny"
    )


@pytest.mark.slow
def test_each_odd_picture_becomes_what_it_must(here, tiny):
    expected = odd_pictures.make(here / "in")
    assert len(expected) >= 150
    words = ("in", "--no-matte", "--raw", "--weights", tiny, "--json")
    result = run(*words, code=1)
    report = json.loads(result.stdout)
    made = {os.path.basename(p["picture"]): p for p in report["pictures"]}
    failed = {os.path.basename(f["picture"]): f["error"] for f in report["failed"]}
    assert made.keys() | failed.keys() == expected.keys() and not made.keys() & failed.keys()
    wrong = []
    for name, what in expected.items():
        if isinstance(what, str):
            if what not in failed.get(name, "nothing") or "unexpected" in failed.get(name, ""):
                wrong.append((name, what, failed.get(name)))
        elif name not in made:
            wrong.append((name, what, failed[name]))
        else:
            middle = np.asarray(Image.open(made[name]["matte"])).astype(int)[128, 128]
            if np.abs(middle[:3] - what).max() > 26 or (middle[3] < 50) != (what == (0, 0, 0)):
                wrong.append((name, what, middle.tolist()))
    assert wrong == []
    for entry in made.values():
        (sample,) = entry["samples"]
        assert sample["gaussians"] == len(Gaussians.load(sample["files"][0])) > 0
    assert not [name for name in os.listdir("out") if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.skipif(model_path("u2netp") is None, reason="u2netp is not fetched")
def test_blank_pictures_show_no_object_whatever_their_format(here, tiny):
    (here / "in").mkdir()
    ramp = np.tile(np.linspace(0, 255, 240, dtype=np.uint8), (160, 1))
    dot = np.zeros((160, 240), np.uint8)
    dot[80, 120] = 255
    kinds = {"white": ramp * 0 + 255, "black": ramp * 0, "ramp": ramp, "slope": ramp // 2 + 60, "dot": dot}
    kinds |= {"dot on white": 255 - dot, "nearly": 255 - dot // 255}
    rows, columns = np.mgrid[:160, :240]
    kinds["round"] = (255 - np.hypot(rows - 80, columns - 120)).clip(0, 255).astype(np.uint8)
    for name, pixels in kinds.items():
        for suffix, options in ((".png", {}), (".jpg", {"quality": 30}), (".webp", {"quality": 30})):
            Image.fromarray(pixels).convert("RGB").save(here / "in" / f"{name}{suffix}", **options)
    report = json.loads(run("in", "--weights", tiny, "--json", code=1).stdout)
    assert report["pictures"] == [] and len(report["failed"]) == 24
    assert all("no object was found in" in f["error"] for f in report["failed"])


@pytest.mark.slow
@pytest.mark.skipif(model_path("u2netp") is None, reason="u2netp is not fetched")
def test_noise_shows_no_object(here, tiny):
    (here / "in").mkdir()
    rng = np.random.default_rng(0)
    for size in ((256, 256), (150, 300), (330, 340)):
        noise = rng.integers(0, 256, (*size, 3), np.uint8)
        kinds = {"uniform": noise, "grey": noise[..., 0], "bits": np.where(noise[..., 0] > 127, 255, 0)}
        kinds["normal"] = rng.normal(128, 60, (*size, 3)).clip(0, 255)
        for name, pixels in kinds.items():
            Image.fromarray(pixels.astype(np.uint8)).save(here / "in" / f"{name} {size[1]}.png")
    report = json.loads(run("in", "--weights", tiny, "--json", code=1).stdout)
    assert report["pictures"] == [] and len(report["failed"]) == 12
    assert all("no object was found in" in f["error"] for f in report["failed"])
