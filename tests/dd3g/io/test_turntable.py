"""Turntables: the right side at the right time, files that other programs open."""

import builtins
import resource
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import turntable
from dd3g.io.turntable import render_turntable, save_turntable


def marks() -> Gaussians:
    """Red at the object's +x, blue at -x, green on top, grey in front."""
    means = torch.tensor([[0.5, 0, 0], [-0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])
    colors = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0.5, 0.5, 0.5]]).float()
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(4, 1)
    return Gaussians(means, quats, torch.full((4, 3), 0.05), torch.full((4,), 0.99), colors)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return render_turntable(marks(), frames=12, size=48)


def place(image: np.ndarray, channel: int) -> tuple[float, float]:
    """(x, y) centre of what has `channel` and lacks the others, in pixels."""
    others = [c for c in range(3) if c != channel]
    weight = (image[..., channel].astype(float) - image[..., others].max(-1)).clip(min=0)
    assert weight.sum() > 100
    y, x = np.indices(weight.shape)
    return (x * weight).sum() / weight.sum() + 0.5, (y * weight).sum() / weight.sum() + 0.5


def test_front_comes_first_and_the_camera_goes_to_plus_x(images):
    assert images.shape == (12, 48, 48, 3) and images.dtype == np.uint8
    assert (images[:, 0, 0] == 255).all()
    (red_x, red_y), (blue_x, _), (green_x, green_y) = (place(images[0], c) for c in (0, 2, 1))
    assert red_x > 34 and blue_x < 14 and abs(green_x - 24) < 1 and green_y < 14 < red_y
    quarter = images[3]  # from +x: red is nearest, in the middle, and hides blue; grey (+z) is on the left
    assert abs(place(quarter, 0)[0] - 24) < 1
    assert abs(int(quarter[:, :16, 0].min()) - 128) < 20 and quarter[:, 32:].min() > 250
    half = images[6]  # from behind: sides are swapped
    assert place(half, 0)[0] < 14 and place(half, 2)[0] > 34


@pytest.mark.parametrize(
    "how",
    [{"frames": 0}, {"size": 0}, {"distance": 0}, {"distance": float("nan")}, {"background": (1, 2)}],
)
def test_a_turntable_of_nothing_is_refused(how):
    with pytest.raises(UserError, match="a turntable needs 1 or more frames and pixels"):
        render_turntable(marks(), **{"frames": 2, "size": 16, **how})
    with pytest.raises(UserError, match="elevation 90 is out of range"):
        render_turntable(marks(), 2, 16, elevation=90)


def test_background_and_elevation():
    grey = render_turntable(marks(), frames=1, size=16, background=0.5)
    assert abs(int(grey[0, 0, 0, 0]) - 128) <= 1
    above = render_turntable(marks(), frames=1, size=48, elevation=60)
    assert place(above[0], 1)[1] > place(render_turntable(marks(), frames=1, size=48)[0], 1)[1] + 5


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_hold_every_frame(images, tmp_path, suffix):
    path = save_turntable(images, tmp_path / f"turn{suffix}", fps=25)
    assert path == tmp_path / f"turn{suffix}" and list(tmp_path.iterdir()) == [path]
    with Image.open(path) as file:
        assert file.n_frames == 12 and file.info["loop"] == 0
        for i in (0, 3, 11):
            file.seek(i)
            file.load()
            assert file.info["duration"] == 40
            assert np.abs(np.asarray(file.convert("RGB")).astype(int) - images[i]).mean() < 3
    assert save_turntable(images, tmp_path / f"again{suffix}", fps=25).read_bytes() == path.read_bytes()


def test_mp4_decodes_to_the_same_pictures(images, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    path = save_turntable(images[:, :47, :47], tmp_path / "turn.mp4")  # odd sides are padded to even ones
    assert path.suffix == ".mp4" and list(tmp_path.iterdir()) == [path]
    reader = ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["size"] == (48, 48) and meta["fps"] == 24
    frames = [np.frombuffer(frame, np.uint8).reshape(48, 48, 3) for frame in reader]
    assert len(frames) == 12
    assert np.abs(frames[3][:47, :47].astype(int) - images[3, :47, :47]).mean() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_same_pictures_give_the_same_video(images, tmp_path, suffix):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    first, second = (save_turntable(images, tmp_path / f"{n}{suffix}").read_bytes() for n in (1, 2))
    assert first == second


@pytest.mark.parametrize("background", [1.0, None])
def test_how_many_are_drawn_together_changes_nothing(monkeypatch, background):
    together = render_turntable(marks(), frames=9, size=24, background=background)
    monkeypatch.setattr(turntable, "AT_ONCE", 0)  # as for pictures larger than that
    np.testing.assert_array_equal(
        render_turntable(marks(), frames=9, size=24, background=background), together
    )


def test_a_full_disk_leaves_no_torn_mp4(images, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    path = save_turntable(images, tmp_path / "turn.mp4")
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))  # ffmpeg inherits it
    try:
        with pytest.raises(UserError, match=r"cannot write .*turn\.mp4: .+; choose another folder"):
            save_turntable(images, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == whole


def test_what_ffmpeg_says_last_is_passed_on(images, tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    stub = tmp_path / "ffmpeg"
    stub.write_text("#!/bin/sh\ncat >/dev/null\necho first >&2\necho no such codec >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", lambda: str(stub))
    with pytest.raises(UserError, match=r"turn\.mp4: no such codec;"):
        save_turntable(images, tmp_path / "turn.mp4")


def test_without_ffmpeg_an_mp4_becomes_a_webp(images, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("imageio_ffmpeg"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    path = save_turntable(images, tmp_path / "turn.mp4")
    assert path == tmp_path / "turn.webp" and list(tmp_path.iterdir()) == [path]


def test_bad_names_and_failed_writes(images, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"unknown video format '\.avi'.*use one of \.mp4, \.webm, \.webp, \.gif, \.png"
    ):
        save_turntable(images, tmp_path / "turn.avi")

    def fail(images, path, fps):
        path.write_bytes(b"half")
        raise subprocess.SubprocessError("ffmpeg was stopped")

    monkeypatch.setattr(turntable, "_ffmpeg_is_here", lambda: True)
    monkeypatch.setattr(turntable, "_write_video", fail)
    with pytest.raises(subprocess.SubprocessError):
        save_turntable(images, tmp_path / "turn.mp4")
    assert list(tmp_path.iterdir()) == []
