"""A splat file that turns."""

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.cluster_files import cluster, raw_ply, refused, told

from dd3g.io import splats

pytestmark = pytest.mark.usefixtures("here")


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


def test_turntable_as_pictures(lamp, capsys):
    report = told(capsys, "turntable", lamp, "-o", "turn.png", "--frames", 4, "--size", 64)
    assert report["files"] == [f"turn-00{i}.png" for i in range(4)]
    front, left, *_ = (np.asarray(Image.open(name)).astype(int) for name in report["files"])
    assert front.shape == (64, 64, 3) and (front[0, 0] == 255).all()

    def column(picture, channel):
        others = [c for c in range(3) if c != channel]
        return np.nonzero(picture[..., channel] - picture[..., others].max(-1) > 100)[1].mean()

    again = told(capsys, "turntable", lamp, "-o", "turn.png", "--frames", 2, "--size", 64)
    assert again["warnings"] == ["turn-002.png and 1 more are of an earlier turn: delete them"]
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
