import json
import sys

import pytest
import torch
from stand_ins.infer_command import fails, picture, run
from stand_ins.tiny_lgm import DEEP, save_lgm, tiny_lgm

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd.perspective import seen_under
from dd3g.picture import load_image, resize_rgba
from distill import two_stage
from distill.lgm import load_lgm
from distill.quadruples import noise_of
from distill.simulation.ode import simulate
from distill.teachers import load
from distill.teachers.analytic import AnalyticTeacher
from distill.two_stage import TeacherAndLGM, load_two_stage


@pytest.fixture
def pair(here, teacher):
    """A teacher's folder and a file of LGM, as --weights takes them; and the picture a.png."""
    picture(here / "a.png")
    return f"{teacher}+{save_lgm(here / 'lgm', tiny_lgm(5, DEEP))}"


def by_hand(pair, seed, elevation):
    """The two stages written down one by one."""
    teacher, _, lgm = pair.partition("+")
    rig = Cameras.orbit([0, 90, 180, 270], elevation, 16)
    model, image = load(teacher), resize_rgba(load_image("a.png").rgba, 16)[None]
    made = simulate(model, image, noise_of((4, 64, 4, 4), seed)[None], cameras=rig)
    return load_lgm(lgm).reconstruct(made.outputs, rig)[0].pruned()


@pytest.mark.slow
def test_infer_with_a_teacher_and_lgm(here, pair):
    """One command on a CPU, and the same file for the same seed."""
    report = json.loads(run("a.png", "--weights", pair, "--seed", "3", "--json").stdout)
    (sample,) = report["pictures"][0]["samples"]
    found, wanted = Gaussians.load("out/a.ply"), by_hand(pair, 3, 10.0)
    assert sample["gaussians"] == len(wanted) == len(found) == 4 * 32 * 32
    torch.testing.assert_close(found.means, wanted.means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.colors, wanted.colors, atol=1e-5, rtol=1e-4)
    first = (here / "out/a.ply").read_bytes()
    run("a.png", "--weights", pair, "--seed", "3")
    assert (here / "out/a.ply").read_bytes() == first
    run("a.png", "--weights", pair, "--seed", "4")
    assert (here / "out/a.ply").read_bytes() != first


@pytest.mark.slow
def test_elevation_is_that_of_the_views_and_of_the_result(here, pair, monkeypatch):
    monkeypatch.setattr(AnalyticTeacher, "rig_at", lambda self, e: Cameras.orbit([0, 90, 180, 270], e, 16))
    both = load_two_stage(pair)
    found = both.generate("a.png", seed=1, elevation=30.0).pruned()
    torch.testing.assert_close(found.means, by_hand(pair, 1, 30.0).means)
    near = both.generate("a.png", seed=1, elevation=30.0, fov=30.0).pruned()
    front = Cameras.orbit([0.0], 30.0, 16)
    torch.testing.assert_close(near.means, seen_under(found, front, 30.0).means)
    assert (near.means - found.means).abs().max() > 0.1
    monkeypatch.setattr("dd3g.pepd.elevation.estimated_elevation", lambda rgba: 30)
    torch.testing.assert_close(both.generate("a.png", seed=1, elevation="auto").pruned().means, found.means)
    level = both.generate("a.png", seed=1, elevation=0.0)
    assert (found.means - level.means).abs().max() > 0.1


def test_plus_signs_in_names(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(two_stage, "load", lambda name, device: asked.append(name))
    monkeypatch.setattr(two_stage, "load_lgm", lambda name, device: asked.append(name))
    monkeypatch.setattr(two_stage, "TeacherAndLGM", lambda *parts: None)
    load_two_stage("my+teacher+lgm")
    load_two_stage("imagedream@v1+lgm@v2")
    assert asked == ["my+teacher", "lgm", "imagedream@v1", "lgm@v2"]
    (tmp_path / "a+b").mkdir()
    assert two_stage.is_pair("imagedream+lgm") and not two_stage.is_pair(str(tmp_path / "a+b"))


def test_bad_pairs_end_in_one_line(here, pair, teacher):
    fails("a.png", "--weights", pair, "--refine", "1", match="--refine")
    fails("a.png", "--weights", f"{teacher}+nothing", match="no safetensors")
    fails("a.png", "--weights", f"nothing+{here / 'lgm'}", match="no such teacher")


def test_first_use_says_size_and_licence_and_asks_nobody_where_told(here, teacher, monkeypatch):
    from huggingface_hub import constants

    asked = []

    def hub(model, offline):
        if not offline:
            asked.append(model.repo)
        raise OSError("no route to host")

    monkeypatch.setattr("dd3g.hub_models._download", hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    picture(here / "a.png")
    fails("a.png", "--weights", f"{teacher}+lgm", match="ashawkey/LGM, 830 MB, licence MIT")
    assert asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lines = run("a.png", "--weights", f"{teacher}+lgm", code=2).stderr.splitlines()
    assert lines[0] == "fetching once: ashawkey/LGM, 830 MB, licence MIT (of its code)"
    assert lines[1].startswith("error: the hub did not give ashawkey/LGM") and len(lines) == 2
    assert asked == ["ashawkey/LGM"]


def test_a_folder_with_a_plus_in_its_name_is_still_a_folder(here):
    picture(here / "a.png")
    (here / "a+b").mkdir()
    fails("a.png", "--weights", "a+b", match="no config.json there")


def test_where_dd3g_is_installed_alone(here, monkeypatch):
    picture(here / "a.png")
    monkeypatch.setitem(sys.modules, "distill.two_stage", None)
    fails("a.png", "--weights", "imagedream+lgm", match="whole project")


def test_a_rig_that_lgm_does_not_know_is_refused():
    teacher = AnalyticTeacher()
    teacher.rig = Cameras.orbit([30, 90, 150, 210, 270, 330], [20, -10] * 3, 32)
    with pytest.raises(UserError, match="6 views"):
        TeacherAndLGM(teacher, tiny_lgm())
