"""What the commands around files have in common: convert, view, turntable, info."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stand_ins.cluster_files import cluster, raw_ply, refused, told
from stand_ins.infer_command import ROOT

from dd3g.__main__ import main
from dd3g.io import splats
from dd3g.io.formats import SPLATS

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("format", SPLATS)
def test_every_format_can_be_described_and_viewed(lamp, capsys, format):
    splats.save(cluster(), f"in.{format}")
    report = told(capsys, "info", f"in.{format}")
    assert report["format"] == format and report["gaussians"] == 600
    assert told(capsys, "view", f"in.{format}", "--no-open")["page"] == "out/in.html"
    assert "<title>in</title>" in (lamp.parent / "out/in.html").read_text()


def test_what_view_and_turntable_refuse(lamp, capsys):
    for words, message in {
        ("view", lamp, "-o", "x.ply"): "-o x.ply is no page: give a name that ends in .html",
        ("turntable", lamp, "-o", "x.png", "--fps", 12): "--fps is for videos and animations",
        ("turntable", lamp, "-o", "x.gif", "--fps", 60): "a .gif shows at most 50 pictures a second",
        ("turntable", lamp, "-o", "x.gif", "--background", "#10203080"): "'#10203080' is translucent",
        ("turntable", lamp, "-o", "x.mp4", "--background", "transparent"): ".mp4 has no transparency",
    }.items():
        assert message in refused(capsys, *words)
    assert [p.name for p in lamp.parent.resolve().iterdir()] == ["lamp.ply"]


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


@pytest.mark.parametrize(
    "words", ["convert lamp.ply x.mesh.obj", "turntable lamp.ply -o x.png --frames 3 --size 16"]
)
@pytest.mark.parametrize("when", ["written", "moved"])
def test_of_files_that_belong_together_all_are_written_or_those_are_named(
    lamp, capsys, monkeypatch, coarse_meshes, words, when
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
