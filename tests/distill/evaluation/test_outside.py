"""Results of other tools, in the axes and formats that they write."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.targets import NOVEL, ellipsoid, plain, target_of

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io.splats import world_turn
from distill.evaluation.outside import Predictions, parse_predictions
from distill.evaluation.predictors import Target, drawing_of
from distill.evaluation.scores import score
from distill.evaluation.targets import assembled

BALLS = ((0.25, 0.1, 0.15), (-0.2, -0.15, 0.05), (0.05, 0.25, -0.2))  # nothing is symmetric


def balls() -> Gaussians:
    colors = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.9]])
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1), torch.full((3, 3), 0.06)
    return Gaussians(torch.tensor(BALLS), quats, scales, torch.full((3,), 0.95), colors)


@pytest.fixture(scope="module")
def target() -> Target:
    """What a rasteriser sees of the balls, with an input at azimuth 0 and elevation 10."""
    made = target_of(ellipsoid())
    shown = drawing_of(balls())(made, list(range(10)))
    straight = (shown.rgb - (1 - shown.alpha)) / shown.alpha.clamp(min=1e-6)
    return replace(made, rgba=torch.cat([straight.clamp(0, 1), shown.alpha], 1))


@pytest.mark.parametrize(
    ("name", "axes", "option"),
    [
        ("thing.ply", "opencv", ""), ("thing.ply", "opengl", ""), ("thing.ply", "zup", ",axes=zup"),
        ("thing.splat", "zup", ",axes=zup"), ("thing.splat", "opencv", ""), ("thing.spz", None, ""),
        ("thing.glb", None, ""), ("thing/out.ply", "opencv", ""), ("thing/0/out.ply", "opencv", ""),
        ("thing.compressed.ply", "zup", ""), ("thing.sog", "opencv", ""),
        ("thing/x.compressed.ply", "opengl", ""),
    ],
)  # fmt: skip
def test_splats_of_any_format_and_axes_fall_into_place(tmp_path, target, name, axes, option):
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    balls().save(path, axes=axes)
    predict = parse_predictions(f"theirs={tmp_path / 'theirs'}{option}")
    predict.check(["thing"])
    found = score(target, predict(target))
    # .splat and .spz round colours, places and sizes.
    assert found["novel"]["psnr"] > 35 and found["novel"]["iou"] > 0.95
    wrong = replace(predict, axes="zup" if axes == "opencv" else "opencv")
    if not name.endswith(".spz"):
        assert score(target, wrong(target))["novel"]["psnr"] < 22


def test_a_tools_own_input_camera_is_undone(tmp_path, target):
    """Written as by a tool whose input camera stands at azimuth 90, elevation 0, twice as far, fovy 30."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    theirs = Cameras.orbit([90.0], 0.0, 32, 3.0, 30.0)
    ours = Cameras.orbit([0.0], 10.0, 32)
    # The same rays: what is at x in our input camera is at factor * x in theirs.
    factor = 3.0 * math.tan(math.radians(15)) / (1.5 * math.tan(math.radians(49.1 / 2)))
    turn = theirs.viewmats[0, :3, :3].T @ ours.viewmats[0, :3, :3]
    balls().transformed(turn, scale=factor).save(folder / "thing.ply", axes="opengl")
    predict = parse_predictions(f"theirs={folder},azimuth=90,elevation=0,radius=3,fovy=30")
    assert score(target, predict(target))["novel"]["psnr"] > 45
    assert score(target, Predictions("theirs", folder)(target))["novel"]["psnr"] < 20


def test_an_upright_world_is_the_default(tmp_path):
    """At elevation 40 the input's world is tilted; a file in the object's own world still fits."""
    made = Cameras.orbit([30.0, 75.0, 200.0], [40.0, 10.0, 0.0], 32)
    at_home = balls().transformed(
        torch.tensor([[math.cos(math.radians(30)), 0, math.sin(math.radians(30))], [0, 1, 0],
                      [-math.sin(math.radians(30)), 0, math.cos(math.radians(30))]])
    )  # fmt: skip
    from dd3g.rasterizer import rasterize

    drawn = rasterize(at_home, made, background=0.0, antialiased=True)
    straight = (drawn.rgb / drawn.alpha.clamp(min=1e-6)).clamp(0, 1)
    target = assembled("thing", "x", [(torch.cat([straight, drawn.alpha], 1), made)], [0], [1, 2])
    assert target.elevation == pytest.approx(40, abs=0.01)
    balls().save(tmp_path / "thing.ply")  # upright, its front where the input camera stands
    assert score(target, parse_predictions(f"a={tmp_path}")(target))["novel"]["psnr"] > 45
    assert score(target, parse_predictions(f"a={tmp_path},elevation=10")(target))["novel"]["psnr"] < 30


@pytest.mark.parametrize(
    ("suffix", "axes"), [(".glb", "opengl"), (".obj", "opengl"), (".obj", "zup"), (".glb", "opencv")]
)
def test_meshes_fall_into_place(tmp_path, suffix, axes):
    import trimesh

    mesh = ellipsoid((0.2, 0.6, 0.3), (0.45, 0.2, 0.3))
    mesh = replace(mesh, vertices=mesh.vertices + np.float32([0.05, 0.1, -0.05]))
    target = target_of(mesh)
    matrix = world_turn(axes).double().numpy()
    colors = np.tile(np.uint8([51, 153, 77, 255]), (len(mesh.vertices), 1))
    trimesh.Trimesh(mesh.vertices @ matrix, mesh.faces, vertex_colors=colors, process=False).export(
        tmp_path / f"thing{suffix}"
    )
    predict = parse_predictions(f"theirs={tmp_path},axes={axes}")
    found = score(target, predict(target))
    assert found["novel"]["iou"] > 0.99 and found["input"]["iou"] > 0.99
    if suffix == ".obj":  # trimesh's GLB of vertex colours says that they are linear
        assert found["novel"]["psnr"] > 35


def test_pictures_are_scored_in_the_order_of_the_test_views(tmp_path):
    target = target_of(ellipsoid())
    folder = tmp_path / "thing"
    folder.mkdir()
    for k, v in enumerate(NOVEL):
        pixels = (target.rgba[v] * 255).round().byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")
    hidden = [folder / "._000.png", folder / "._thing.ply"]  # as macOS leaves them beside a copy
    for path in hidden:
        path.touch()
    drawing = parse_predictions(f"theirs={tmp_path}")(target)
    found = score(target, drawing)
    assert found["novel"]["psnr"] > 60 and found["novel"]["iou"] == 1 and "input" not in found
    assert drawing(target, [0, 5]).views == [5]
    for path in hidden:
        path.unlink()
    for path in folder.iterdir():  # without alpha, masks are unknown
        Image.open(path).convert("RGB").save(path)
    assert math.isnan(score(target, parse_predictions(f"x={tmp_path}")(target))["novel"]["iou"])
    Image.new("RGB", (16, 12)).save(folder / "000.png")
    with pytest.raises(UserError, match="000.png is 16 x 12: test views are square"):
        parse_predictions(f"theirs={tmp_path}")(target)
    (folder / "000.png").unlink()
    with pytest.raises(UserError, match="holds 5 pictures, and the protocol has 6 test views of thing"):
        parse_predictions(f"theirs={tmp_path}")(target)


def test_bad_predictions_are_told(tmp_path, target):
    with pytest.raises(UserError, match="give NAME=FOLDER"):
        parse_predictions("lgm")
    for option, words in (
        ("radius=0", "0 and inf, not 0"), ("fovy=200", "0 and 180, not 200"), ("elevation=nan", "-90 and 90"),
        ("elevation=90", "-90 and 90"), ("azimuth=nan", "azimuth lies between"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            parse_predictions(f"a={tmp_path},{option}")
    balls().save(tmp_path / "thing.ply")
    data = (tmp_path / "thing.ply").read_bytes()
    head = data.index(b"end_header\n") + 11
    (tmp_path / "thing.ply").write_bytes(
        data[:head] + np.full((len(data) - head) // 4, np.nan, "f4").tobytes()
    )
    with pytest.raises(UserError, match="thing.ply holds no Gaussian whose numbers are all finite"):
        parse_predictions(f"a={tmp_path}")(target)
    (tmp_path / "thing.ply").unlink()
    with pytest.raises(UserError, match="nowhere is not a folder"):
        parse_predictions(f"lgm={tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"'axes=up' is not an option: options are axes \(auto, opencv"):
        parse_predictions(f"lgm={tmp_path},axes=up")
    with pytest.raises(UserError, match="no option 'zoom'"):
        parse_predictions(f"lgm={tmp_path},zoom=2")
    row = parse_predictions(f"lgm={tmp_path},elevation=0,radius=2")
    assert (row.elevation, row.radius, row.axes) == (0.0, 2.0, "auto")
    with pytest.raises(UserError, match="lgm: .* lacks 2 of 2 objects: thing, other; expected NAME.ply"):
        row.check(["thing", "other"])
    (tmp_path / "thing.ply").write_bytes(b"ply\nnonsense")
    with pytest.raises(UserError, match="thing.ply"):
        row(target)
    (tmp_path / "thing.ply").unlink()
    (tmp_path / "thing.glb").write_bytes(b"nonsense that is long enough to read")
    with pytest.raises(UserError, match="thing.glb cannot be read: it is not a glTF 2.0 binary"):
        row(target)
    (tmp_path / "thing.glb").unlink()
    inside = tmp_path / "thing"
    inside.mkdir()
    for name in ("a.ply", "b.obj"):
        (inside / name).write_bytes(b"")
    with pytest.raises(UserError, match="holds a.ply, b.obj: keep one of them"):
        row.find("thing")
    for name in ("a.ply", "b.obj"):
        (inside / name).unlink()
    for number in ("0", "1"):
        (inside / number).mkdir()
        (inside / number / "mesh.glb").write_bytes(b"glTF" + bytes(30))
    with pytest.raises(UserError, match="holds 0/mesh.glb, 1/mesh.glb: keep one of them"):
        row.find("thing")
    (inside / "1" / "mesh.glb").unlink()
    with pytest.raises(UserError, match="thing/0/mesh.glb cannot be read: "):
        row(target)
    assert Path(row.folder) == tmp_path and plain is not None
