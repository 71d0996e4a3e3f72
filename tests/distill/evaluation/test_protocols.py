from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from stand_ins.targets import ellipsoid, target_of

from dd3g.cameras import ELEVATION, FOVY, RADIUS, Cameras
from dd3g.errors import UserError
from dd3g.meshes.layouts import PLAIN, FoundObject
from distill.evaluation import protocol as module
from distill.evaluation.predictors import flat_card
from distill.evaluation.protocol import load_protocol
from distill.evaluation.scores import score
from distill.evaluation.targets import assembled, drawn, frame, moved, plan

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(p.stem for p in (ROOT / "configs" / "evaluation").glob("*.yaml"))


def test_shipped_protocols_are_what_they_say():
    found = {name: load_protocol(name) for name in SHIPPED}
    assert SHIPPED == ["grm", "house", "spar3d", "splatter", "syncdreamer"]
    views = {name: len(plan(p, "x")[3]) for name, p in found.items()}
    # An input view that is one of the test views is left out.
    assert views == {"grm": 63, "house": 16, "spar3d": 16, "splatter": 24, "syncdreamer": 15}
    assert {name: p.sizes[0] for name, p in found.items()} == {
        "grm": 256, "house": 64, "spar3d": 256, "splatter": 128, "syncdreamer": 256,
    }  # fmt: skip
    assert len(found["syncdreamer"].objects) == 30 and found["syncdreamer"].box
    assert math.tan(math.radians(found["syncdreamer"].fovy) / 2) == pytest.approx(16 / 35, abs=1e-5)
    assert {p.fovy for p in (found["grm"],)} == {50.0} and found["spar3d"].geometry_alignment == "icp"
    assert all(p.chosen for name, p in found.items() if name != "house")
    assert len({p.hash for p in found.values()}) == 5


def test_the_house_protocol_is_that_of_the_renders():
    """`dd3g data render --eval` and the card's figures."""
    from data_gen.meshes.objects import Options, view_plan

    p = load_protocol("house")
    azimuth, elevation, rig, novel = plan(p, "any")
    old = view_plan(Options(eval=True), np.random.default_rng(0), True)
    assert azimuth == old["azimuth"] and elevation == pytest.approx(old["elevation"], abs=1e-4)
    assert rig == old["quads"][0] and novel == old["novel"]
    assert (p.fovy, p.radius, p.extent, p.input_elevation) == (FOVY, RADIUS, 0.55, ELEVATION)


def test_the_hash_is_of_what_decides_a_number():
    p = load_protocol("house")
    assert replace(p, about="x", chosen=["y"], name="z").hash == p.hash
    changed = {
        replace(p, fovy=50.0).hash, replace(p, alignment="input").hash, replace(p, objects=["a"]).hash,
        replace(p, light=replace(p.light, ambient=0.6)).hash, replace(p, metrics=[]).hash, p.hash,
    }  # fmt: skip
    assert len(changed) == 6
    assert load_protocol("house", ["fovy=50.0"]).hash == replace(p, fovy=50.0).hash


def test_code_that_measures_otherwise_changes_every_hash(monkeypatch):
    before = load_protocol("grm").hash
    monkeypatch.setattr(module, "CODE", module.CODE + 1)
    assert load_protocol("grm").hash != before


def test_a_protocol_is_a_file(tmp_path):
    p = load_protocol("spar3d", ["objects=[a, b 0123]"])
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(p)))
    assert load_protocol(str(tmp_path / "mine.yaml")) == p
    assert load_protocol(str(tmp_path / "mine.yaml")).hash == p.hash


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("alignment=sideways", r"alignment: Invalid value 'sideways', expected one of \['none', 'input'\]"),
        (
            "geometry_alignment=icq",
            r"geometry_alignment: Invalid value 'icq', expected one of \['none', ",
        ),
        ("metrics=[lpips]", "no metric 'lpips': choose from st-lpips, fd-stlpips, lpips-vgg"),
        ("sizes=[64,32]", r"sizes must rise from 16 pixels on \(--size too\), got \[64, 32\]"),
        ("test_rings=[[1,2]]", r"each of test_rings is \[elevation, number, first azimuth\]"),
        ("views=3", "views: Key 'views' not in 'Protocol'; keys are name, "),
        ("extent=0", "extent must be at least 0.01, got 0"),
        ("extent=.nan", "extent must be at least 0.01, got nan"),
        ("radius=0", "radius must be at least 0.01, got 0"),
        ("fovy=0", "fovy must be between 1 and 179, got 0"),
        ("fovy=180", "fovy must be between 1 and 179, got 180"),
        ("input_elevation=90", "input_elevation must be between -89 and 89, got 90"),
        ("input_view=-1", "input_view must be at least 0, got -1"),
        ("supersample=0", "supersample must be between 1 and 32, got 0"),
        ("supersample=1000", "supersample must be between 1 and 32, got 1000"),
        ("geometry_side=-1", "geometry_side must be at least 0.01, got -1"),
        ("input_azimuths=[]", r"input_azimuths must be one or more degrees, such as \[0\], got \[\]"),
        ("input_azimuths=[.nan]", "input_azimuths must be finite numbers, got nan"),
        ("test_rings=[[.inf,1,0]]", "test_rings must be finite numbers, got inf"),
        ("thresholds=[0]", "thresholds must be finite numbers, at least 1e-06, got 0"),
        ("light.ambient=.nan", "light.ambient must be at least 0, got nan"),
        ("light.colors=[1]", "light.colors must be one for each of light.directions, got 1 for 2"),
        ("light.colors=[1,-1]", "light.colors must be finite numbers, at least 0, got -1"),
        (
            "light.directions=[[0,0,0]]",
            r"light.directions: each is \[x, y, z\], not all zero, got \[0.0, 0.0",
        ),
    ],
)
def test_a_protocol_that_cannot_be_is_told(words, message):
    with pytest.raises(UserError, match=message):
        load_protocol("house", [words])


def test_the_size_of_a_command_is_held_to_the_rule_of_sizes():
    assert load_protocol("house", size=100).sizes == [100, 128, 256]
    with pytest.raises(UserError, match=r"from 16 pixels on \(--size too\), got \[8, 128, 256\]"):
        load_protocol("house", size=8)


def test_an_unknown_protocol_names_those_there_are():
    with pytest.raises(UserError, match="no packaged configuration of that name .grm, house, spar3d"):
        load_protocol("lgm")


def test_the_input_is_drawn_from_the_name():
    p = load_protocol("grm")
    firsts = {id: plan(p, id)[0][0] for id in map(str, range(40))}
    assert set(firsts.values()) == {0.0, 90.0, 180.0, 270.0}
    assert firsts == {id: plan(p, id)[0][0] for id in firsts}
    azimuth, elevation, rig, novel = plan(p, "7")
    assert rig == [0] and (azimuth[0], elevation[0]) not in [(azimuth[v], elevation[v]) for v in novel]


def test_the_frame_is_the_generators_own():
    """Whatever the cameras: the input one stands at azimuth 0, elevation 10, and sees as wide."""
    cameras = Cameras.orbit([70.0, 160.0, 70.0], [40.0, 40.0, -10.0], 32, radius=3.0, fovy=30.0)
    turn, factor = frame(cameras, 0)
    placed = moved(cameras, turn, factor)
    own = Cameras.orbit([0.0], ELEVATION, 32)
    torch.testing.assert_close(placed.viewmats[0, :3, :3], own.viewmats[0, :3, :3], atol=1e-5, rtol=0)
    for one, width in ((placed[0], 2 * float(placed.positions[0].norm()) * math.tan(math.radians(15))),
                       (own[0], 2 * RADIUS * math.tan(math.radians(FOVY / 2)))):  # fmt: skip
        assert width == pytest.approx(2 * 0.68508, abs=1e-3) and float(one.positions.norm()) > 1
    # A point is seen at the same place in every view before and after.
    point = torch.tensor([[0.2, -0.1, 0.3]])
    before, after = cameras.project(point)[0], placed.project(factor * point @ turn.T)[0]
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert placed.near < float(placed.positions.norm(dim=1).min()) < placed.far


def test_a_house_target_is_not_touched():
    cameras = Cameras.orbit([0.0, 90.0], ELEVATION, 32)
    turn, factor = frame(cameras, 0)
    assert factor == 1.0 and (turn == torch.eye(3)).all()


def write_ball(folder: Path) -> FoundObject:
    import trimesh

    ball = trimesh.creation.icosphere(3)
    ball.visual.vertex_colors = np.full((len(ball.vertices), 4), 255, np.uint8)
    ball.export(folder / "ball.glb")
    return FoundObject("ball", folder / "ball.glb", PLAIN, "shape")


def test_meshes_are_drawn_as_the_protocol_says(tmp_path):
    found = write_ball(tmp_path)
    words = ["sizes=[32]", "test_rings=[[0,2,90]]", "supersample=2"]
    p = load_protocol("syncdreamer", [*words, "objects=[]"])
    target = drawn(found, p)
    assert target.rgba.shape == (3, 4, 32, 32) and target.elevation == pytest.approx(30)
    assert (
        target.azimuth.tolist() == pytest.approx([0, 90, 270 - 360], abs=1e-3)
        or target.azimuth.tolist()[1] == 90
    )
    # Longest side 1 seen from 1.5 through lens 35 on 32: the silhouette's half width in pixels.
    half = 16 * (35 / 16) * 0.5 / math.sqrt(1.5**2 - 0.5**2)
    area = float(target.rgba[:, 3].sum()) / 3
    assert area == pytest.approx(math.pi * half**2, rel=0.02)
    assert target.rgba[:, :3].max() == pytest.approx(0.735, abs=0.01)  # even light on white
    radius = target.surface[:, :3].norm(dim=1).mean()
    assert 2 * float(radius) == pytest.approx(target.side, rel=0.02)
    assert len(target.hash) == 16 and drawn(found, load_protocol("house", words)).hash == target.hash
    card = score(target, flat_card(target))
    assert card["input"]["psnr"] > 25 and "rig" not in card and card["novel"]["psnr"] < card["input"]["psnr"]


def test_targets_without_a_rig_have_sheets_too():
    from distill.evaluation.packing import sheet_views

    made = target_of(ellipsoid())
    bare = assembled("x", "y", [(made.rgba, made.cameras)], [0], list(range(1, 10)))
    assert sheet_views(bare) == [0, 4, 1, 6, 2, 3]
