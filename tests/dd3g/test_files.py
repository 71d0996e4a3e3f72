"""The commands around files: convert, view, turntable, info."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.infer_command import ROOT

from dd3g.__main__ import main
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import splats
from dd3g.io.formats import SPLATS, check_format, check_layout, format_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cluster() -> Gaussians:
    """Three hundred red Gaussians on the right, as many blue ones above."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(600, 3, generator=draw) * 0.05
    means[:300, 0] += 0.3
    means[300:, 1] += 0.3
    colors = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).repeat_interleave(300, 0)
    quats = torch.nn.functional.normalize(torch.randn(600, 4, generator=draw), dim=-1)
    return Gaussians(means, quats, torch.full((600, 3), 0.02), torch.full((600,), 0.9), colors)


@pytest.fixture
def lamp():
    return splats.save(cluster(), "lamp.ply")


def told(capsys, *words):
    """What a command prints as JSON."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def red(gaussians: Gaussians) -> torch.Tensor:
    return gaussians.means[gaussians.colors[:, 0] > 0.5].mean(0)


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


@pytest.mark.parametrize("format", SPLATS)
def test_every_format_can_be_described_and_viewed(lamp, capsys, format):
    splats.save(cluster(), f"in.{format}")
    report = told(capsys, "info", f"in.{format}")
    assert report["format"] == format and report["gaussians"] == 600
    assert told(capsys, "view", f"in.{format}", "--no-open")["page"] == "out/in.html"
    assert "<title>in</title>" in (lamp.parent / "out/in.html").read_text()


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
    assert f"a .{format} cannot say whether" in refused(capsys, "convert", lamp, f"x.{format}", how)


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
    assert warning == f"a.ply is to be drawn without antialiasing, which a .{format} cannot say"


def test_what_view_and_turntable_refuse(lamp, capsys):
    for words, message in {
        ("view", lamp, "-o", "x.ply"): "-o x.ply is to be a page: give a name that ends in .html",
        ("turntable", lamp, "-o", "x.png", "--fps", 12): "--fps is for videos and animations",
        ("turntable", lamp, "-o", "x.gif", "--fps", 60): "a .gif shows at most 50 pictures a second",
        ("turntable", lamp, "-o", "x.gif", "--background", "#10203080"): "'#10203080' is translucent",
        ("turntable", lamp, "-o", "x.mp4", "--background", "transparent"): ".mp4 has no transparency",
    }.items():
        assert message in refused(capsys, *words)
    assert [p.name for p in lamp.parent.resolve().iterdir()] == ["lamp.ply"]


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


def raw_ply(name: str, **columns) -> Path:
    """The cluster with some columns of raw values changed."""
    head, _, body = splats.encode(cluster(), "ply").partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(600, 14).copy()
    for column, (where, value) in columns.items():
        rows[where, splats.ply.FIELDS.index(column)] = value
    Path(name).write_bytes(head + b"end_header\n" + rows.tobytes())
    return Path(name)


def test_rows_that_are_not_finite_are_missed(capsys):
    raw_ply("nan.ply", x=(slice(7), np.nan), opacity=(slice(5, 9), np.nan), scale_1=(slice(20, 21), 200))
    said = "nan.ply: 10 of 600 Gaussians are not finite and were left out"
    assert told(capsys, "info", "nan.ply")["not_finite"] == 10
    assert told(capsys, "convert", "nan.ply", "x.splat")["warnings"] == [said]
    assert told(capsys, "view", "nan.ply", "--no-open")["warnings"] == [said]
    assert told(capsys, "turntable", "nan.ply", "-o", "x.gif", "--frames", 1)["warnings"] == [said]
    assert main(["info", "nan.ply"]) == 0
    assert "Gaussians    590, and 10 that are not finite\n" in capsys.readouterr().out
    for words in (("view", "nan.ply", "--no-open"), ("turntable", "nan.ply", "-o", "x.gif", "--frames", "1")):
        assert main([*words]) == 0 and capsys.readouterr().err == f"warning: {said}\n"


@pytest.mark.parametrize("far", [3000.0, -50_000.0, 4e6])
def test_an_spz_of_far_places_has_coarser_ones_and_not_others(capsys, far):
    raw_ply("far.ply", x=(0, far))
    told(capsys, "convert", "far.ply", "x.spz")
    means, right = splats.load("x.spz").means, splats.load("far.ply").means
    assert (means - right).abs().max() <= 2.0 ** (int(abs(far)).bit_length() - 24)
    told(capsys, "view", "far.ply", "--no-open")


def test_places_that_a_format_cannot_hold_are_refused(capsys):
    raw_ply("far.ply", y=(3, 5e6))
    for words in (("convert", "far.ply", "x.spz"), ("view", "far.ply", "--no-open")):
        message = "the Gaussians reach 5e+06 from the origin, and a .spz holds coordinates up to 4.1943e+06"
        assert message in refused(capsys, *words)
    raw_ply("farther.ply", y=(3, 3e38))
    assert "a .compressed.ply holds" in refused(capsys, "convert", "farther.ply", "x.compressed.ply")
    for format in ("ply", "splat", "sog", "glb"):
        told(capsys, "convert", "farther.ply", f"x.{format}")
        assert splats.load(f"x.{format}").means.abs().max() == pytest.approx(3e38, rel=1e-3)


def test_a_turn_that_shows_nothing_is_said(lamp, capsys):
    raw_ply("away.ply", x=(slice(None), 900))
    (warning,) = told(capsys, "turntable", "away.ply", "-o", "x.gif", "--frames", 2, "--distance", 2)[
        "warnings"
    ]
    assert warning.startswith("the pictures are empty: away.ply shows nothing at this --distance")
    raw_ply("faint.ply", opacity=(slice(None), -9))
    for words in (("view", "faint.ply"), ("turntable", "faint.ply")):
        message = "faint.ply shows nothing: none of its 600 Gaussians has an opacity of 0.005 or more"
        assert message in refused(capsys, *words)


def test_a_turn_shows_an_object_that_lies_elsewhere(lamp, capsys):
    far = cluster().transformed(scale=30.0).transformed(translation=torch.tensor([500.0, 20.0, -3.0]))
    splats.save(far, "far.ply")
    for name in ("lamp", "far"):
        words = "turntable", f"{name}.ply", "-o", f"{name}.png", "--frames", 1, "--size", 64
        assert told(capsys, *words)["warnings"] == []
    near, far = (np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("lamp", "far"))
    counts = [(picture < 200).any(-1).sum() for picture in (near, far)]
    assert counts[0] > 100 and 1 < counts[1] / counts[0] < 3
    assert all((edge == 255).all() for edge in (far[0], far[-1], far[:, 0], far[:, -1]))


def test_an_spz_of_a_small_object_is_as_exact_as_that_of_a_large_one(capsys):
    small = cluster().transformed(scale=0.002)
    splats.save(small, "small.ply")
    told(capsys, "convert", "small.ply", "small.spz")
    exact, read = splats.load("small.ply").means, splats.load("small.spz").means
    assert (exact - read).abs().max() < 2e-3 * exact.abs().max()


def test_files_with_nothing_in_them(capsys):
    for format in SPLATS:
        Path(f"empty.{format}").touch()
        assert "it is empty (0 bytes); copy or download it again" in refused(
            capsys, "info", f"empty.{format}"
        )
    head = splats.encode(cluster(), "ply").replace(b"vertex 600", b"vertex -60")
    Path("minus.ply").write_bytes(head)
    assert "its header promises -60 Gaussians" in refused(capsys, "info", "minus.ply")


def test_info(lamp, capsys):
    report = told(capsys, "info", lamp)
    assert (report["format"], report["gaussians"], report["axes"]) == ("ply", 600, "opencv")
    assert report["antialiased"] is True and report["view_dependent"] is False
    assert report["bytes"] == lamp.stat().st_size
    assert report["scale"] == [0.02, 0.02, 0.02] and report["opacity"] == [0.9, 0.9, 0.9]
    np.testing.assert_allclose(report["high"], cluster().means.amax(0), atol=1e-4)
    assert main(["info", str(lamp)]) == 0
    shown = capsys.readouterr().out
    assert "Gaussians    600\n" in shown and "axes         opencv\n" in shown


def test_view_makes_a_page_and_opens_it(lamp, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    splats.save(cluster(), "lamp.compressed.ply", antialiased=False)
    assert told(capsys, "view", "lamp.compressed.ply") == {
        "input": "lamp.compressed.ply",
        "page": "out/lamp.html",
        "opened": True,
        "warnings": [],
    }
    assert opened == [(lamp.parent / "out/lamp.html").resolve().as_uri()]
    page = (lamp.parent / "out/lamp.html").read_text()
    assert "<title>lamp</title>" in page and 'data-antialiased="false"' in page
    assert told(capsys, "view", lamp, "-o", "x.html", "--no-open")["opened"] is False and len(opened) == 1
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["view", str(lamp)]) == 0
    assert capsys.readouterr().out == "wrote out/lamp.html; open it in a browser\n"


def test_turntable_as_pictures(lamp, capsys):
    report = told(capsys, "turntable", lamp, "-o", "turn.png", "--frames", 4, "--size", 64)
    assert report["files"] == [f"turn-00{i}.png" for i in range(4)]
    front, left, *_ = (np.asarray(Image.open(name)).astype(int) for name in report["files"])
    assert front.shape == (64, 64, 3) and (front[0, 0] == 255).all()

    def column(picture, channel):
        others = [c for c in range(3) if c != channel]
        return np.nonzero(picture[..., channel] - picture[..., others].max(-1) > 100)[1].mean()

    assert column(front, 0) > 40 and 28 < column(front, 2) < 36  # red on the right, blue in the middle
    assert 28 < column(left, 0) < 36  # from +x it is in front
    (one,) = told(capsys, "turntable", lamp, "-o", "one.png", "--frames", 1, "--size", 64)["files"]
    assert one == "one.png" and (np.asarray(Image.open(one)) == front).all()


def test_turntable_background(lamp, capsys):
    for name, wanted in (("#102030", (16, 32, 48)), ("black", (0, 0, 0))):
        told(capsys, "turntable", lamp, "-o", "x.png", "--frames", 1, "--size", 32, "--background", name)
        assert Image.open("x.png").getpixel((0, 0)) == wanted
    for suffix in (".png", ".webp", ".gif"):
        words = ("--frames", 1 if suffix == ".png" else 2, "--size", 32, "--background", "transparent")
        told(capsys, "turntable", lamp, "-o", f"t{suffix}", *words)
        with Image.open(f"t{suffix}") as image:
            pixels = np.asarray(image.convert("RGBA"))
        assert pixels[0, 0, 3] == 0 and pixels[..., 3].max() > 200, suffix
    assert "unknown colour 'nocolour'" in refused(capsys, "turntable", lamp, "--background", "nocolour")
    message = refused(capsys, "turntable", lamp, "-o", "x.mp4", "--background", "transparent")
    assert ".mp4 has no transparency, use one of .webm, .webp, .gif, .png" in message
    assert "unknown video format '.avi'" in refused(capsys, "turntable", lamp, "-o", "x.avi")


def test_turntable_as_webm(lamp, capsys):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    for background in ("white", "transparent"):
        words = ("--frames", 5, "--size", 48, "--fps", 10, "--background", background)
        assert told(capsys, "turntable", lamp, "-o", "x.webm", *words)["files"] == ["x.webm"]
        reader = ffmpeg.read_frames("x.webm")
        meta = next(reader)
        assert meta["size"] == (48, 48) and meta["fps"] == 10 and "vp9" in meta["codec"]
        assert len(list(reader)) == 5


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


@pytest.mark.parametrize(
    "words", ["convert lamp.ply x.mesh.obj", "turntable lamp.ply -o x.png --frames 3 --size 16"]
)
@pytest.mark.parametrize("when", ["written", "moved"])
def test_of_files_that_belong_together_all_are_written_or_those_are_named(
    lamp, capsys, monkeypatch, words, when
):
    if when == "moved":
        replace, moved = Path.replace, []

        def move(path, target):
            moved.append(str(target))
            if len(moved) == 3:
                raise OSError(28, "No space left on device")
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", move)
    else:
        write = Path.write_bytes

        def fill(path, data):
            if path.suffix == ".png":
                raise OSError(28, "No space left on device")
            return write(path, data)

        def draw(image, path, **_):
            if "2" in path.name:
                raise OSError(28, "No space left on device")
            path.touch()

        monkeypatch.setattr(Path, "write_bytes", fill)
        monkeypatch.setattr(Image.Image, "save", draw) if "turntable" in words else None
    assert main([*words.split(), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "the disk is full" in error
    there = sorted(p.name for p in Path().iterdir())
    if when == "written":
        assert there == ["lamp.ply"]
    else:
        assert there == sorted(["lamp.ply", *moved[:2]])
        assert error.endswith(f"; written, and whole: {', '.join(moved[:2])}")


@pytest.mark.parametrize("words", [("convert", "x.spz"), ("view", "--no-open"), ("turntable", "-o", "x.gif")])
def test_a_file_of_no_gaussians_shows_nothing(lamp, capsys, words):
    header, _, _ = lamp.read_bytes().partition(b"end_header\n")
    Path("none.ply").write_bytes(header.replace(b"vertex 600", b"vertex 0") + b"end_header\n")
    assert "holds no Gaussians that are finite" in refused(capsys, words[0], "none.ply", *words[1:])
    assert told(capsys, "info", "none.ply")["gaussians"] == 0
    assert sorted(path.name for path in Path().iterdir()) == ["lamp.ply", "none.ply"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["info"], ["convert"], ["info", "--help"]])
def test_output_that_nobody_takes_or_that_has_no_room(lamp, words):
    """Whoever reads only the first line makes no error; a full disk does, in one line."""
    named = [] if "--help" in words else ["lamp.ply", *(["x.sog"] if words[0] == "convert" else [])]
    command = [sys.executable, "-m", "dd3g", *words, *named]
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for out, code in ((writer, 0), (os.open("/dev/full", os.O_WRONLY), 2)):
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment)
        os.close(out)
        assert done.returncode == code and len(done.stderr.splitlines()) == (code > 0), done.stderr
