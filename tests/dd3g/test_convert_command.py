"""Splat files to other formats."""

import math

import numpy as np
import pytest
import torch
from stand_ins.cluster_files import cluster, raw_ply, red, refused, told

from dd3g.__main__ import main
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import splats
from dd3g.io.formats import SPLATS, check_format, check_layout, format_of

pytestmark = pytest.mark.usefixtures("here")


def test_names_end_in_formats():
    names = {"a.ply": "ply", "a.compressed.PLY": "compressed.ply", "a.mesh.glb": "mesh.glb", "a.b.glb": "glb"}
    names |= {"x/y.sog": "sog", "compressed.ply": "ply", "a.obj": "obj", "a": ""}
    assert {name: format_of(name) for name in names} == names
    for format in SPLATS:
        check_format(format, "opengl")


@pytest.mark.parametrize("source", SPLATS)
@pytest.mark.parametrize("target", SPLATS)
def test_every_format_becomes_every_other(lamp, capsys, source, target):
    splats.save(cluster(), f"in.{source}")
    report = told(capsys, "convert", f"in.{source}", f"deep/out.{target}")
    assert (
        report["files"] == [f"deep/out.{target}"] and report["gaussians"] == 600 and report["warnings"] == []
    )
    got = splats.load(f"deep/out.{target}")
    torch.testing.assert_close(red(got), red(cluster()), atol=2e-3, rtol=0)
    torch.testing.assert_close(got.opacities, torch.full((600,), 0.9), atol=5e-3, rtol=0)


@pytest.mark.parametrize("format", [f for f in SPLATS if f != "glb"])
def test_axes_are_turned_both_ways(lamp, capsys, format):
    told(capsys, "convert", lamp, f"x.{format}", "--axes", "zup")
    raw = splats.load(f"x.{format}", axes="opengl")  # its own numbers
    x, y, z = red(cluster()).tolist()
    torch.testing.assert_close(red(raw), torch.tensor([x, -z, y]), atol=2e-3, rtol=0)
    told(capsys, "convert", f"x.{format}", "back.ply", "--from-axes", "zup")
    torch.testing.assert_close(red(splats.load("back.ply")), red(cluster()), atol=2e-3, rtol=0)


def test_what_convert_refuses(lamp, capsys):
    assert "a .glb is y up by its standard" in refused(capsys, "convert", lamp, "x.glb", "--axes", "zup")
    assert "unknown format 'obj': use one of ply, " in refused(capsys, "convert", lamp, "x.obj")
    assert "unknown format 'png'" in refused(capsys, "convert", "x.png", "x.ply")
    assert "cannot read none.ply: No such file" in refused(capsys, "convert", "none.ply", "x.ply")
    (lamp.parent / "bad.sog").write_bytes(b"PK")
    assert "bad.sog is not a .sog file that can be read" in refused(capsys, "convert", "bad.sog", "x.ply")
    assert "unknown layout 'x' of .ply" in refused(capsys, "convert", lamp, "x.ply", "--ply-layout", "x")
    assert sorted(p.name for p in lamp.parent.resolve().iterdir()) == ["bad.sog", "lamp.ply"]


@pytest.mark.parametrize("format", ["spz", "splat", "glb", "mesh.glb", "mesh.usdz", "mesh.obj"])
@pytest.mark.parametrize("how", ["--antialiased", "--classic"])
def test_formats_that_cannot_say_how_they_are_drawn(lamp, capsys, format, how):
    assert f"a .{format} cannot record whether" in refused(capsys, "convert", lamp, f"x.{format}", how)


@pytest.mark.parametrize("format", ["compressed.ply", "sog", "spz", "mesh.obj"])
def test_the_layout_is_that_of_a_ply(lamp, capsys, format):
    words = "convert", lamp, f"x.{format}", "--ply-layout", "inria"
    assert f"is one of .ply, and .{format} has none" in refused(capsys, *words)
    with pytest.raises(UserError, match="is one of .ply"):
        check_layout("inria", (format,))


@pytest.mark.parametrize("format", ["spz", "splat", "glb"])
def test_what_is_lost_about_drawing_is_said(capsys, format):
    splats.save(cluster(), "a.ply", antialiased=False)
    (warning,) = told(capsys, "convert", "a.ply", f"x.{format}")["warnings"]
    assert warning == f"a.ply is drawn without antialiasing, which a .{format} cannot record"


def test_convert_keeps_the_faint_and_passes_on_how_to_draw(capsys):
    faint = cluster()
    splats.save(Gaussians(faint.means, faint.quats, faint.scales, faint.opacities * 0.003, faint.colors),
                "faint.ply", min_opacity=0, antialiased=False)  # fmt: skip
    assert told(capsys, "convert", "faint.ply", "x.sog")["gaussians"] == 600
    assert splats.read("x.sog").antialiased is False and len(splats.load("x.sog")) == 600
    told(capsys, "convert", "faint.ply", "y.ply", "--antialiased", "--ply-layout", "inria")
    assert (
        splats.read("y.ply").antialiased is True and b"property float f_rest_44" in open("y.ply", "rb").read()
    )


def test_colour_that_depends_on_the_view_is_missed(lamp, capsys):
    data = splats.encode(cluster(), "ply", layout="inria")
    head, _, body = data.partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(600, 62).copy()
    rows[:, 9] = 0.2
    (lamp.parent / "sh.ply").write_bytes(head + b"end_header\n" + rows.tobytes())
    assert told(capsys, "convert", "sh.ply", "x.spz")["warnings"] == [
        "sh.ply: colour that depends on the view was left out"
    ]
    assert main(["convert", "sh.ply", "x.spz"]) == 0
    assert capsys.readouterr().err == "warning: sh.ply: colour that depends on the view was left out\n"


@pytest.mark.parametrize("far", [3000.0, -50_000.0, 4e6])
def test_an_spz_of_far_places_has_coarser_ones_and_not_others(capsys, far):
    raw_ply("far.ply", x=(0, far))
    told(capsys, "convert", "far.ply", "x.spz")
    means, right = splats.load("x.spz").means, splats.load("far.ply").means
    assert (means - right).abs().max() <= 2.0 ** (int(abs(far)).bit_length() - 24)
    told(capsys, "view", "far.ply", "--no-open")


def test_places_that_a_format_cannot_hold_are_refused(capsys):
    raw_ply("far.ply", y=(3, 5e6))
    message = "the Gaussians reach 5e+06 from the origin, and a .spz holds coordinates up to 4.1943e+06"
    assert message in refused(capsys, "convert", "far.ply", "x.spz")
    raw_ply("farther.ply", y=(3, 3e38))
    assert "a .compressed.ply holds" in refused(capsys, "convert", "farther.ply", "x.compressed.ply")
    for format in ("ply", "splat", "sog", "glb"):
        told(capsys, "convert", "farther.ply", f"x.{format}")
        assert splats.load(f"x.{format}").means.abs().max() == pytest.approx(3e38, rel=1e-3)


def test_an_spz_of_a_small_object_is_as_exact_as_that_of_a_large_one(capsys):
    small = cluster().transformed(scale=0.002)
    splats.save(small, "small.ply")
    told(capsys, "convert", "small.ply", "small.spz")
    exact, read = splats.load("small.ply").means, splats.load("small.spz").means
    assert (exact - read).abs().max() < 2e-3 * exact.abs().max()


@pytest.mark.slow
def test_a_mesh_of_a_file(lamp, capsys):
    trimesh = pytest.importorskip("trimesh")
    report = told(capsys, "convert", lamp, "lamp.mesh.glb")
    assert report["files"] == ["lamp.mesh.glb"]
    (read,) = trimesh.load("lamp.mesh.glb").geometry.values()
    merged = trimesh.Trimesh(read.vertices, read.faces)
    assert merged.is_watertight and math.isfinite(merged.volume) and merged.volume > 0
    files = told(capsys, "convert", lamp, "lamp.mesh.obj")["files"]
    assert files == ["lamp.mesh.obj", "lamp.mesh.mtl", "lamp.mesh.png"]
