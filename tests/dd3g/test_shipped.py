"""The weights in the package, through the doors that users take."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from stand_ins.infer_command import ROOT, command

from dd3g import Cameras, Gaussians, Generator, load_image, rasterize
from dd3g.__main__ import main
from dd3g.pepd.mesh import mesh_of
from dd3g.picture import resize_rgba
from distill.teachers import load

LAMP = ROOT / "assets" / "lamp.png"
WEIGHTS = ROOT / "dd3g" / "weights"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the plain command makes of the demo picture: its folder and report."""
    out = tmp_path_factory.mktemp("shipped")
    result = command(LAMP, "-o", out, "--json")
    assert result.returncode == 0, result.stderr
    return out, json.loads(result.stdout)


def psnr(a, b):
    return -10 * (a - b).square().mean().log10().item()


def over_white(rgba):
    return rgba[:3] * rgba[3:] + 1 - rgba[3:]


@pytest.mark.slow
def test_the_input_view_shows_the_picture(made):
    out, report = made
    gaussians = Gaussians.load(out / "lamp.ply")
    assert len(gaussians) == report["pictures"][0]["samples"][0]["gaussians"] > 1000
    front = Cameras.default_rig(64)[:1]
    shown = rasterize(gaussians, front, antialiased=True).rgb[0]  # (3, 64, 64)
    picture = resize_rgba(load_image(LAMP).rgba, 64)
    assert picture[3].mean() > 0.1
    assert shown.isfinite().all() and psnr(shown, over_white(picture)) >= 20


@pytest.mark.slow
def test_its_mesh_is_watertight_and_right_side_out(made):
    (path, *_) = mesh_of(Gaussians.load(made[0] / "lamp.ply")).save(made[0] / "lamp.mesh.glb")
    mesh = trimesh.load(path, force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0.01
    assert len(mesh.faces) > 20_000


@pytest.mark.slow
def test_python_makes_the_same_file_as_the_command(made, tmp_path):
    gaussians = Generator.from_pretrained("nano").generate(LAMP)
    assert gaussians.save(tmp_path / "x.ply").read_bytes() == (made[0] / "lamp.ply").read_bytes()


@pytest.mark.slow
def test_the_shipped_teacher_keeps_the_input_view():
    teacher = load("nano-teacher")
    picture = resize_rgba(load_image(LAMP).rgba, teacher.rig.width)
    condition = teacher.condition(picture[None])
    noise = torch.randn(1, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        x0 = teacher.denoiser(condition, 1.0)(noise, teacher.schedule.steps - 1, condition)
    views = teacher.codec.decode(x0)[0]  # (V, 4, S, S)
    assert len(views) == len(teacher.rig) == 4 and views.isfinite().all()
    assert psnr(over_white(views[0]), over_white(picture)) >= 25


@pytest.mark.parametrize("folder", sorted(WEIGHTS.iterdir()), ids=lambda p: p.name)
def test_what_ships_is_small_and_no_pickle(folder):
    names = {p.name for p in folder.iterdir()}
    assert "config.json" in names and names & {"model.safetensors", "model.safetensors.index.json"}
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 50e6


def test_the_installed_script_is_this_command():
    (script,) = entry_points(group="console_scripts", name="dd3g")
    assert script.load() is main


@pytest.mark.slow
def test_when_a_seed_gives_the_same_file(here):
    """Byte for byte with as many threads, nearly so with more."""
    for out, threads in (("one", "1"), ("again", "1"), ("two", "2"), ("two-again", "2")):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
        words = [sys.executable, "-m", "dd3g", "infer", LAMP, "-o", out, "--device", "cpu"]
        subprocess.run(words, env=environment, check=True, capture_output=True)
    read = {out: Path(out, "lamp.ply").read_bytes() for out in ("one", "again", "two", "two-again")}
    assert read["one"] == read["again"] and read["two"] == read["two-again"]
    one, two = (Gaussians.load(f"{out}/lamp.ply") for out in ("one", "two"))
    assert len(one) == len(two) > 15_000
    for name in ("means", "scales", "opacities", "colors"):
        assert np.allclose(getattr(one, name), getattr(two, name), atol=1e-3), name
    assert np.allclose(one.quats, two.quats, atol=1e-2)
