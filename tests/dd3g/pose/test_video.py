"""Videos: true times, broken files, who is who, and steady poses."""

import gc
import json
import os
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.made_up_people import SIZE, STANDING, K, crowd_of, detection, tracks

from dd3g.errors import UserError
from dd3g.pose import video
from dd3g.pose.__main__ import main
from dd3g.pose.body.geometry import axis_angle_to_matrix, project, solve_translation
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.data.motion import load_cmu
from dd3g.pose.data.synthesis import synthesise
from dd3g.pose.detection.frames import detect_frames, frames, open_clip
from dd3g.pose.detection.people import Detection
from dd3g.pose.export import results
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.methods.advice import sized
from dd3g.pose.request import Request, is_video
from dd3g.pose.series import Crowd

G = torch.Generator().manual_seed(2)


def ffmpeg(*words):
    package = pytest.importorskip("imageio_ffmpeg", reason="needs the extra 'video'")
    subprocess.run([package.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, words)], check=True)


def test_uneven_frames_keep_their_times(tmp_path):
    path, source = tmp_path / "vfr.mp4", "testsrc=size=64x48:rate=25:duration=0.64"
    slow = "setpts='if(lt(N,8),N/25,8/25+(N-8)/5)/TB'"  # 8 frames at 25 a second, 8 at 5
    ffmpeg("-f", "lavfi", "-i", source, "-vf", slow, "-fps_mode", "vfr", path)
    clip = open_clip(path)
    wanted = [n / 25 if n < 8 else 8 / 25 + (n - 8) / 5 for n in range(16)]
    assert clip.times == pytest.approx(wanted, abs=0.041)  # the file counts in frames of 1/25
    assert clip.fps == pytest.approx(15 / wanted[-1], rel=0.05)
    assert sum(1 for _ in frames(path)) == len(clip.times) == 16


def test_uneven_frames_are_no_cut(tmp_path):
    """Every third frame at first: Matroska promises the highest rate for all of its length."""
    path = tmp_path / "a.mkv"
    thin = "select='not(mod(n,3))+gt(n,20)'"
    source = "testsrc=size=64x48:rate=30:duration=1"
    ffmpeg("-f", "lavfi", "-i", source, "-vf", thin, "-fps_mode", "vfr", path)
    clip = open_clip(path)
    assert len(clip.times) == 16 and clip.times[7:9] == pytest.approx([0.7, 22 / 30], abs=2e-3)
    assert clip.warnings == ()


def test_a_phone_held_upright(tmp_path, caplog):
    """Its frames lie on their side in the file, which says how to turn them."""
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x48:rate=10:duration=0.3", tmp_path / "a.mp4")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    clip = open_clip(tmp_path / "b.mp4")
    assert clip.size == (48, 64) and {frame.size for _, frame in frames(clip.path)} == {(48, 64)}
    assert not caplog.records


def test_a_video_of_one_frame_and_one_that_begins_late(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=0.1", tmp_path / "a.mp4")
    clip = open_clip(tmp_path / "a.mp4")
    assert clip.times == (0.0,) and clip.fps == 25 and not clip.warnings
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=0.4", tmp_path / "b.mp4")
    ffmpeg("-itsoffset", "5", "-i", tmp_path / "b.mp4", "-c", "copy", tmp_path / "c.mp4")
    late = open_clip(tmp_path / "c.mp4")
    assert late.times == pytest.approx([0, 0.1, 0.2, 0.3]) and not late.warnings


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_have_a_duration_for_each_frame(tmp_path, suffix):
    images = [Image.new("RGB", (16, 12), (60 * i, 9, 9)) for i in range(4)]
    durations = [40, 200, 80, 40]
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
    assert is_video(path) and len(list(frames(path))) == 4
    assert open_clip(path).times == pytest.approx([0, 0.04, 0.24, 0.32])
    images[0].save(tmp_path / f"still.{suffix}")
    assert not is_video(tmp_path / f"still.{suffix}")


def test_a_picture_that_would_fill_the_memory_is_no_video(tmp_path, recwarn):
    """Reading it as a picture says what is wrong."""
    for side in (10_000, 20_000):
        head = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
        assert not is_video(tmp_path / "large.png")
    assert not list(recwarn)


def test_broken_videos_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_bytes(b"no video")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / "audio.mp4")
    for name, reason in (
        ("empty.mp4", "it is empty"),
        ("text.mp4", "cannot be read as a video: "),
        ("audio.mp4", "it has no picture track"),
        ("absent.mp4", "does not exist"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            open_clip(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_cut_video_is_read_with_a_warning(tmp_path):
    path = tmp_path / "a.avi"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=8:duration=2", "-c:v", "mjpeg", path)
    assert len(open_clip(path).times) == 16 and not open_clip(path).warnings
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    (warning,) = open_clip(path).warnings
    assert "of 16 frames: it was cut" in warning


def seen_at(x, y=0.0, track=None):
    return replace(detection(x), track=track)


def test_people_hidden_for_a_moment_stay_the_same():
    crowd = [[seen_at(-0.7 + 0.01 * f), seen_at(0.7)] for f in range(12)]
    for f in (5, 6, 7):  # three black frames
        crowd[f] = []
    times = [f / 25 for f in range(12)]
    assert tracks(crowd, times) == [[] if f in (5, 6, 7) else [0, 1] for f in range(12)]


@pytest.mark.parametrize(
    ("fps", "hidden", "same"),
    [(25, 12, True), (25, 13, False), (120, 60, True), (120, 61, False), (3.8, 1, True), (3.8, 2, False),
     (1, 0, True), (1, 1, False)],
)  # fmt: skip
def test_half_a_second_is_bridged_at_any_rate(fps, hidden, same):
    frames = [[seen_at(-0.5)], *[[]] * hidden, [seen_at(-0.49)]]
    found = tracks(frames, [f / fps for f in range(len(frames))])
    assert (found[-1] == found[0]) == same


def test_people_who_cross_keep_their_numbers():
    times = [f / 25 for f in range(41)]
    ways = [(-1.0 + 0.05 * f, 1.0 - 0.05 * f) for f in range(41)]
    crowd = [[seen_at(a), seen_at(b)] for a, b in ways]
    for f in range(41):
        if f % 2:
            crowd[f].reverse()
        if abs(ways[f][0] - ways[f][1]) < 0.12:  # one hides the other
            crowd[f] = crowd[f][:1]
    found = tracks(crowd, times)
    assert {n for numbers in found for n in numbers} == {0, 1}
    for number, sign in ((0, -1), (1, 1)):
        ends = [crowd[f][found[f].index(number)].keypoints[0, 0] - SIZE[0] / 2 for f in (0, 40)]
        assert ends[0] * sign > 0 and ends[1] * sign < 0, "they walked through each other"


def test_speed_is_that_of_several_frames():
    """Who hides for half a second is found, though the last frame was 9 cm off, or they had just set off."""
    walks, starts = [0.01 * f for f in range(9)] + [0.18], [0.0] * 5 + [0.08 * f for f in range(1, 6)]
    for ways, again in ((walks, 0.01 * 22), (starts, 0.08 * 18)):
        found = tracks([[seen_at(x)] for x in ways] + [[]] * 12 + [[seen_at(again)]])
        assert found[-1] == found[0] == [0]


def test_numbers_of_a_detector_are_believed():
    crowd = [[seen_at(-0.5, track=3), seen_at(0.5, track=8)], [seen_at(0.5, track=3), seen_at(-0.5, track=8)]]
    assert tracks(crowd) == [[0, 1], [0, 1]]
    mixed = [[seen_at(0.5, track=8), seen_at(-0.5)], [seen_at(-0.5), seen_at(0.9, track=3)]]
    assert tracks(mixed) == [[0, 1], [1, 2]]


def smoothed(*words):
    return torch.cat([values for _, values in video.smoothed(*words)])


def test_local_lines_follow_lines_and_average_noise():
    when = torch.tensor([0.0, 0.04, 0.08, 0.28, 0.48, 0.52, 0.56, 0.6], dtype=torch.float64)
    line = torch.stack([3 * when - 1, -2 * when], 1).float()
    torch.testing.assert_close(smoothed(line, when, 0.1), line, atol=1e-5, rtol=0)
    even = torch.arange(600, dtype=torch.float64) / 30
    noise = torch.randn(600, 1, generator=G)
    steady = smoothed(noise, even, 0.25)
    assert steady[50:-50].std() < 0.3 and steady.diff(dim=0).abs().mean() < 0.1
    # Brute force in the middle and across the edge of a block.
    for i in (255, 256, 300):
        w = torch.exp(-((even - even[i]) ** 2) / (2 * 0.25**2))
        A = torch.stack([torch.ones(600), even - even[i]], 1).double()
        fit = torch.linalg.solve(A.T @ (w[:, None] * A), A.T @ (w * noise[:, 0].double()))
        assert steady[i, 0] == pytest.approx(float(fit[0]), abs=1e-4)


def test_sparse_frames_are_not_smeared():
    when = torch.arange(20, dtype=torch.float64) / 3.8
    values = torch.randn(20, 2, generator=G)
    torch.testing.assert_close(smoothed(values, when, video.STEADY), values, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("fps", "pose", "depth"), [(60, 0.5, 0.1), (30, 0.6, 0.15), (3.8, 1.001, 0.6)])
def test_steadied_is_never_worse(fps, pose, depth):
    """Someone who walks away, sways and waves, seen with 4 px and lifted with 4 cm of noise a frame."""
    count = round(6 * fps)
    when = torch.arange(count, dtype=torch.float64) / fps
    t = when.float()
    true = STANDING.repeat(count, 1, 1)
    true[:, 16, 1] += 0.25 * torch.sin(2 * np.pi * 0.8 * t)  # a hand, up to 1.3 m a second
    true[:, 15, 1] += 0.1 * torch.sin(2 * np.pi * 0.8 * t)
    way = torch.stack([0.3 * torch.sin(2 * t), 0 * t, 4 + 0.4 * t], 1)
    g = torch.Generator().manual_seed(1)
    seen = project(true + way[:, None], K) + 4 * torch.randn(count, 17, 2, generator=g)
    noise = 0.04 * torch.randn(true.shape, generator=g)
    lifted = sized(true + noise - noise[:, :1], float(bone_lengths(STANDING).sum()))  # as all answers are
    picture = (seen, torch.ones(count, 17), K.expand(count, 3, 3))

    def scores(poses, roots):
        wrong = roots - way
        across = wrong[:, :2].norm(dim=-1).mean()
        jitter = (wrong - wrong.mean(0)).diff(dim=0).abs().mean(0)[2]
        return (poses - true).norm(dim=-1).mean(), jitter, across

    steady = torch.cat([poses for _, poses in video.steady_poses(lifted, when)])
    roots = torch.cat([places for _, places in video.steady_roots(steady, picture, when)])
    before, after = scores(lifted, solve_translation(lifted, *picture)), scores(steady, roots)
    assert after[0] < pose * before[0]
    assert after[1] < depth * before[1]
    assert after[2] < 1.02 * before[2]


def test_steadied_bones_keep_their_length():
    """Of someone who turns once a second, and who was lifted too small and too large by turns."""
    when = torch.arange(60, dtype=torch.float64) / 30
    turn = torch.zeros(60, 3)
    turn[:, 1] = 2 * np.pi * when
    sizes = torch.tensor([0.9, 1.1]).repeat(30)[:, None, None]
    poses = sizes * STANDING @ axis_angle_to_matrix(turn).transpose(1, 2)
    lengths = torch.cat([bone_lengths(steady).sum(-1) for _, steady in video.steady_poses(poses, when)])
    torch.testing.assert_close(lengths, bone_lengths(STANDING).sum().expand(60), rtol=1e-4, atol=0)


def test_windows_fade_into_each_other(tmp_path, monkeypatch):
    """Two windows that disagree by 0.3 m must not show where they meet."""
    calls = []

    def lift(people, method, m, seed, times, height, networks):
        calls.append(len(people))
        shift = torch.tensor([0.3 * (len(calls) % 2), 0, 0])
        poses = (STANDING + shift * torch.arange(17)[:, None] / 17).expand(len(people), 1, 17, 3)
        h = Hypotheses(poses, torch.zeros(len(people), 1), None, poses[:, 0], torch.full((len(people),), 0.1))
        return [PersonHypotheses(p, method, h[i : i + 1]) for i, p in enumerate(people)]

    monkeypatch.setattr(video, "lift", lift)
    told = []
    found = crowd_of(tmp_path, [[detection()] for _ in range(100)])
    video.lift_tracks(found, 1, tick=told.append)
    assert calls == [64, 52] and told == [64, 36]
    ways = torch.stack([people[0].pose for people in found]).diff(dim=0).norm(dim=-1)
    assert ways.max() < 0.04
    assert all(people[0].expected_error == pytest.approx(0.1) for people in found)


@pytest.mark.slow
def test_a_long_video_is_not_held_in_memory(tmp_path, monkeypatch):
    """However many frames it has, the people of few of them are objects at a time."""
    frames, most = 1500, []

    def count():
        most.append(sum(type(o) in (Detection, PersonHypotheses) for o in gc.get_objects()))

    def lift(people, method, m, seed, times, height, networks):
        count()
        poses = STANDING.expand(len(people), 1, 17, 3)
        h = Hypotheses(poses, torch.zeros(len(people), 1), None, poses[:, 0], torch.full((len(people),), 0.1))
        body = {"rotations": torch.eye(3).expand(24, 3, 3), "betas": torch.zeros(10)}
        return [PersonHypotheses(p, method, h[i : i + 1], **body) for i, p in enumerate(people)]

    monkeypatch.setattr(video, "lift", lift)
    crowd = Crowd(tmp_path, [f / 25 for f in range(frames)], "recovery")
    for f in range(frames):
        crowd.add([detection(0.001 * f)] if f % 10 else [], [0] if f % 10 else [])
    count()
    before = most[-1]
    video.lift_tracks(crowd, 1)
    content = ([results.as_json(p, False) for p in people] for people in crowd)
    results.save_json({"frames": content}, tmp_path / "a.json")
    for f, people in enumerate(crowd):
        assert len(people) == (f % 10 > 0)
        if f % 50 == 1:
            count()
            x = float(people[0].translation[0])
            assert x == pytest.approx(0.001 * f, abs=1e-3) and people[0].rotations is not None
    assert max(most) - before < 700, most


def test_keypoints_of_another_detector_for_a_video(tmp_path):
    images = [Image.new("RGB", SIZE, (9, i, 9)) for i in range(6)]
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:], duration=40)
    flat = torch.cat([project(STANDING + torch.tensor([0, 0, 4.0]), K), torch.ones(17, 1)], 1)
    entry = {"keypoints": flat[:, :2].tolist(), "keypoint_scores": [0.9] * 17, "track_id": 7}
    instances = [{"frame_id": i, "instances": [entry] if i != 2 else []} for i in range(6)]
    (tmp_path / "found.json").write_text(json.dumps(instances))
    command = [str(tmp_path / "clip.gif"), "--keypoints", str(tmp_path / "found.json"), "--layout", "h36m-17"]
    options = ["-o", str(tmp_path / "out"), "--method", "restoration", "--hypotheses", "2"]
    assert main([*command, *options]) == 0
    result = json.loads((tmp_path / "out" / "clip.pose.json").read_text())
    assert [len(f["people"]) for f in result["frames"]] == [1, 1, 0, 1, 1, 1]
    assert [f["time"] for f in result["frames"]] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert {p["track"] for f in result["frames"] for p in f["people"]} == {0}
    assert all(p["recommended"]["expected_error"] > 0 for f in result["frames"] for p in f["people"])
    assert "standing still" in result["camera"]
    many = instances + [{"frame_id": 6 + i, "instances": []} for i in range(9)]
    (tmp_path / "many.json").write_text(json.dumps(many))
    with pytest.raises(UserError, match="has 15 frames, .* has 6: give the video that the detector saw"):
        next(detect_frames(open_clip(tmp_path / "clip.gif"), Request(keypoints=tmp_path / "many.json")))


@pytest.mark.slow
def test_the_root_does_not_jitter(tmp_path):
    """A CMU clip at about 4.5 m, true K, 4 px of noise: z changed by 36 to 50 mm a frame beyond its way."""
    path = Path(os.environ.get("DD3G_DATA", "data")) / "motion" / "cmu_mocap_30fps.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    motion = load_cmu(path, "test")
    rows = motion.windows(90)[3]
    v = synthesise(motion, rows, 4, bones=0.0, mirror=False, steady=True, sigma=4.0, occluded=0.0)
    square = torch.tensor([0.0, 0, 800, 800])
    crowd = [
        [Detection(k, c, square, v.size, K, "flag", 1.0)]
        for k, c, K in zip(v.keypoints, v.confidence, v.K, strict=True)
    ]
    found = crowd_of(tmp_path, crowd, "restoration", (np.arange(90) / 30).tolist())
    video.lift_tracks(found, 4)
    roots = torch.stack([people[0].translation for people in found])
    wrong = (roots - v.root).diff(dim=0).abs().mean(0) * 1000
    assert wrong[2] < 12 and wrong[:2].max() < 8
    single = video.lift([people[0] for people in crowd], "restoration", 4)
    before = torch.stack([person.translation for person in single])
    assert (before - v.root).diff(dim=0).abs().mean(0)[2] * 1000 > 2 * wrong[2]
    poses, alone = (torch.stack([p.pose for p in people]) for people in ([f[0] for f in found], single))
    assert (poses - v.pose).norm(dim=-1).mean() < (alone - v.pose).norm(dim=-1).mean()
