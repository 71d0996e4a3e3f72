"""The command from end to end, with small untrained networks and a detector that knows one person."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.keypoint_files import bad_files
from stand_ins.made_up_people import SIZE, STANDING, K, detection, person, tracks
from typer.testing import CliRunner

from dd3g.command.run import make_app
from dd3g.errors import UserError
from dd3g.pose import estimation
from dd3g.pose.__main__ import pose
from dd3g.pose.body.geometry import project
from dd3g.pose.body.skeletons import BLAZEPOSE_33, H36M_17, bone_lengths
from dd3g.pose.detection import blazepose as detector
from dd3g.pose.detection import people as detection_module
from dd3g.pose.detection.blazepose import Person
from dd3g.pose.detection.detected import Someone
from dd3g.pose.detection.frames import frames, open_clip
from dd3g.pose.detection.keypoints import checked
from dd3g.pose.export.figures import save_overlay
from dd3g.pose.methods import guided, registry
from dd3g.pose.methods.advice import grown
from dd3g.pose.methods.registry import METHODS
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter, LifterConfig
from dd3g.pose.networks.prior import Prior, PriorConfig
from dd3g.pose.networks.rotation_denoiser import RotationConfig, RotationDenoiser

FILES = ["a.pose.json", "a.pose.png"]


def blazepose(x: float = 0.0, seen: bool = True) -> Person:
    """Someone who stands at x metres, with what H36M-17 has of BlazePose's points."""
    places = {name: STANDING[i] for i, name in enumerate(H36M_17.joints)}
    ear = places["head"] + torch.tensor([0, 0.05, 0])
    points = torch.stack([places.get(name, ear) for name in BLAZEPOSE_33.joints])
    at = project(points + torch.tensor([x, 0, 4.0]), K).numpy()
    maps = np.full((33, 64, 64), 1e-3, np.float32)
    middle = (at.min(0) + at.max(0)) / 2
    square = np.concatenate([middle - 200, middle + 200]).astype(np.float32)
    for heatmap, (column, row) in zip(maps, ((at - square[:2]) / 400 * 64).astype(int), strict=True):
        heatmap[row, column] = 1
    return Person(at, np.full(33, float(seen), np.float32), maps, square, 0.9, SIZE)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch, one_thread):
    torch.manual_seed(0)
    for network in (
        Prior(PriorConfig(width=32, time_width=16, groups=4)),
        GraphLifter(LifterConfig(width=16, blocks=1)),
        Difficulty(),
        RotationDenoiser(RotationConfig(hidden=16, condition=16, blocks=1)),
    ):
        monkeypatch.setattr(type(network), "shipped", lambda network=network.eval(): network)
    monkeypatch.setitem(guided.lift.__kwdefaults__, "steps", 5)  # of 30: what they say is wrong anyway
    monkeypatch.setattr(detector, "load", lambda: None)

    def find(picture, tiles=True, before=()):
        # Grey pictures show nobody; the red channel says how many people, the green one where.
        red, green, blue = np.asarray(picture)[0, 0].tolist()
        return (
            []
            if red == green == blue
            else [blazepose((green - 100) / 100 + i, red > 50) for i in range(blue)]
        )

    monkeypatch.setattr(detection_module, "find_people", find)


def photo(path, people: int = 1, green: int = 100, red: int = 200):
    Image.new("RGB", SIZE, (red, green, people)).save(path)
    return path


def run(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(make_app(pose), [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("views", [[], ["--views"]])
def test_a_signal_leaves_what_the_report_names(tmp_path, monkeypatch, views):
    """It comes between the files of the second picture, which move into place."""
    replace, moved = Path.replace, []

    def move(path, target):
        moved.append(target)
        if target.name == "b.pose.png":
            os.kill(os.getpid(), signal.SIGTERM)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", move)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pictures = [photo(tmp_path / f"{name}.png") for name in "abc"]
        out = tmp_path / "out"
        code, text, _ = run(*pictures, "-o", out, "--hypotheses", 2, "--json", *views)
    finally:
        signal.signal(signal.SIGTERM, before)
    report = json.loads(text)
    count = 3 if views else 2  # one pose for all views: all or none
    assert code == 143 and report["error"].startswith(f"stopped by SIGTERM after {count} inputs")
    named = sorted(file for entry in report["inputs"] for file in entry["files"])
    assert named == sorted(map(str, out.iterdir())) == sorted(map(str, moved)) and len(named) == 2 * count


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_what_it_says(tmp_path, method):
    photo(tmp_path / "a.png")
    out = tmp_path / "out"
    code, text, errors = run(
        tmp_path / "a.png", "-o", out, "--method", method, "--hypotheses", 3, "--viewer", "--focal", 800
    )
    extra = ["a.pose.bvh", "a.pose.glb"] if method == "recovery" else []
    assert (code, errors) == (0, ""), (text, errors)
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "a.pose.html", *extra])
    assert text.startswith("1 person: wrote ") and "a.pose.json" in text
    result = json.loads((out / "a.pose.json").read_text())
    assert result["method"] == method and result["size"] == list(SIZE)
    (someone,) = result["people"]
    assert np.shape(someone["keypoints"]) == (17, 2) and np.shape(someone["recommended"]["pose"]) == (17, 3)
    assert [np.shape(h["pose"]) for h in someone["hypotheses"]] == [(17, 3)] * 3
    assert someone["recommended"]["expected_error"] > 0 and someone["K"][0][0] == 800
    assert ("body" in someone) == (method == "recovery")
    bones = bone_lengths(torch.tensor(someone["recommended"]["pose"])).sum()
    assert bones.item() == pytest.approx(grown().bones, abs=1e-3)


@pytest.mark.slow
def test_same_seed_same_file(tmp_path):
    photo(tmp_path / "a.png")
    texts = []
    for seed in (1, 1, 2):
        assert run(tmp_path / "a.png", "-o", tmp_path / "out", "--hypotheses", 2, "--seed", seed)[0] == 0
        texts.append((tmp_path / "out" / "a.pose.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_folder_goes_on_and_says_what_failed(tmp_path):
    photos = tmp_path / "in"
    photos.mkdir()
    photo(photos / "a.png")
    photo(photos / "crowd.png", people=2)
    photo(photos / "hidden.png", red=20)
    Image.new("RGB", SIZE, "gray").save(photos / "nobody.png")
    (photos / "broken.jpg").write_bytes((photos / "a.png").read_bytes()[:60])
    code, text, errors = run(photos, "-o", photos, "--method", "restoration", "--json")
    report = json.loads(text)
    assert code == 1 and [r["people"] for r in report["inputs"]] == [1, 2]
    failed = {f["input"].rsplit("/")[-1]: f["error"] for f in report["failed"]}
    assert set(failed) == {"broken.jpg", "hidden.png", "nobody.png"}
    assert "no person was found" in failed["nobody.png"] and "no person was found" in failed["hidden.png"]
    assert sorted(p.name for p in photos.glob("*.pose.json")) == ["a.pose.json", "crowd.pose.json"]
    # What was written is not taken for input the next time.
    code, text, errors = run(photos, "-o", photos, "--method", "restoration")
    assert code == 1 and text.startswith("3 people: wrote ") and text.strip().endswith("3 failed")
    assert len(errors.strip().split("\n")) == 3 and all(
        e.startswith("error: ") for e in errors.strip().split("\n")
    )


def test_one_bad_input_is_exit_code_two_and_writes_nothing(tmp_path):
    Image.new("RGB", SIZE, "gray").save(tmp_path / "nobody.png")
    out = tmp_path / "out"
    for arguments, message in (
        ((tmp_path / "nobody.png",), "no person was found in"),
        ((tmp_path / "absent.png",), "does not exist"),
        ((tmp_path / "absent.mp4",), "does not exist"),
        (
            ("https://a.b/c.jpg",),
            "https://a.b/c.jpg is an address, and poses are of files: download it first",
        ),
        ((tmp_path / "nobody.png", "--focal", -700), "--focal -700 is not a focal length"),
        ((tmp_path / "nobody.png", "--hypotheses", 0), "--hypotheses 0 is too few"),
        ((tmp_path / "nobody.png", "--seed", 2**64), f"--seed {2**64} is out of range: give 0 to"),
        ((tmp_path / "nobody.png", "--keypoints", tmp_path / "absent.json"), "does not exist"),
    ):
        code, text, errors = run(*arguments, "-o", out)
        assert (code, text) == (2, "") and message in errors and errors.count("\n") == 1, errors
        assert not out.exists() or not list(out.iterdir())


def test_a_mistyped_name_is_answered_without_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "load_networks", lambda *_: pytest.fail("loaded a network"))
    monkeypatch.setattr(detector, "load", lambda: pytest.fail("loaded the detector"))
    code, _, errors = run(tmp_path / "absent.png", "-o", tmp_path / "out")
    assert code == 2 and "does not exist" in errors


def test_an_empty_folder_fails_alone(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    arguments = (tmp_path / "empty", tmp_path / "a.png", "-o", tmp_path / "out", "--hypotheses", 1)
    code, text, errors = run(*arguments)
    assert code == 1 and "holds no pictures, videos or keypoints" in errors and "1 failed" in text
    assert run(tmp_path / "empty", "-o", tmp_path / "out")[0] == 2


def test_help_tells_the_formats_of_keypoints():
    text = " ".join(run("--help")[1].split())
    for words in ("OpenPose", "COCO", '"people": [{"keypoints": [[x, y], ...]', '"boxes" (people, 4)'):
        assert words in text, text


def test_keypoints_of_another_detector(tmp_path):
    photo(tmp_path / "a.png")
    values = torch.cat([detection().keypoints, torch.ones(17, 1)], 1)
    values[13] = 0  # the left wrist was missed
    person_entry = {"keypoints": values.flatten().tolist()}
    data = {"layout": "h36m-17", "size": list(SIZE), "K": K.tolist(), "people": [person_entry]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    out = tmp_path / "out"
    for arguments in ((tmp_path / "a.png", "--keypoints", tmp_path), (tmp_path / "a.json",)):
        code, _, errors = run(*arguments, "-o", out, "--hypotheses", 2)
        assert code == 0 and "person 0: not seen, so guessed: l_wrist" in errors
        (someone,) = json.loads((out / "a.pose.json").read_text())["people"]
        np.testing.assert_allclose(someone["keypoints"], values[:, :2], atol=1e-3)
        assert someone["K_source"] == "file" and someone["confidence"][13] == 0
    data["people"].insert(0, {"keypoints": [0] * 51})
    (tmp_path / "d.json").write_text(json.dumps(data))
    code, _, errors = run(tmp_path / "d.json", "-o", out, "--hypotheses", 2)
    assert code == 0 and "d.json: person 0 has confidence 0 everywhere, and is left out" in errors
    assert len(json.loads((out / "d.pose.json").read_text())["people"]) == 1
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    code, _, errors = run(tmp_path / "a.png", "--keypoints", tmp_path, "-o", out)
    assert code == 2 and "a picture of 640 x 480 pixels, this one has 64 x 48" in errors
    del data["size"]
    (tmp_path / "b.json").write_text(json.dumps(data))
    assert "add 'size': [width, height]" in run(tmp_path / "b.json", "-o", out)[2]
    assert "no keypoints for" in run(photo(tmp_path / "c.png"), "--keypoints", tmp_path, "-o", out)[2]


def test_bad_keypoint_files_fail_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    bad_files(folder)
    bad = {p.name for p in folder.iterdir()} - {"keypoints.pkl"}
    values = torch.cat([detection().keypoints, torch.ones(17, 1)], 1)
    legless = values.clone()
    legless[1:7, 2] = 0  # the picture ends at the hip
    for name, people in (
        ("crowd-30", [values + i * torch.eye(3)[0] for i in range(30)]),
        ("half", [legless]),
    ):
        entries = [{"keypoints": p.flatten().tolist()} for p in people]
        content = {"layout": "h36m-17", "size": list(SIZE), "people": entries}
        (folder / f"{name}.json").write_text(json.dumps(content))
    options = ("-o", tmp_path / "out", "--method", "restoration", "--hypotheses", 1, "--layout", "h36m-17")
    code, text, errors = run(folder, *options, "--json")
    report = json.loads(text)
    assert code == 1 and [r["people"] for r in report["inputs"]] == [30, 1]
    (warning,) = report["inputs"][1]["warnings"]
    assert warning.endswith("not seen, so guessed: r_hip, r_knee, r_ankle, l_hip, l_knee, l_ankle")
    assert {Path(f["input"]).name for f in report["failed"]} == bad and not list(tmp_path.rglob("RAN"))
    assert [line[:7] for line in errors.splitlines()] == ["error: "] * len(bad)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {f"{n}.pose.{s}" for n in ("crowd-30", "half") for s in ("json", "png")}


def test_animation_is_followed_over_time(tmp_path):
    images = [Image.new("RGB", SIZE, (200, g, 1)) for g in (100, 105, 110, 115)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=40)
    out = tmp_path / "out"
    code, text, errors = run(tmp_path / "a.gif", "-o", out, "--method", "restoration", "--viewer")
    assert code == 0, errors
    assert sorted(p.name for p in out.iterdir()) == ["a.pose.gif", "a.pose.html", "a.pose.json"]
    result = json.loads((out / "a.pose.json").read_text())
    assert result["fps"] == pytest.approx(25) and [f["index"] for f in result["frames"]] == [0, 1, 2, 3]
    assert all(f["people"][0]["track"] == 0 for f in result["frames"])
    with Image.open(out / "a.pose.gif") as overlay:
        assert overlay.n_frames == 4
    assert run(tmp_path / "a.gif", "-o", out, "--method", "restoration", "--every", 2)[0] == 0
    result = json.loads((out / "a.pose.json").read_text())
    assert [f["index"] for f in result["frames"]] == [0, 2] and result["fps"] == 12.5


def test_video_by_ffmpeg(tmp_path):
    iio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra 'video'")
    stack = np.stack([np.asarray(Image.new("RGB", (64, 48), (20 * i, 90, 90))) for i in range(6)])
    iio.imwrite(tmp_path / "a.mp4", stack, fps=12, plugin="FFMPEG")
    read = list(frames(tmp_path / "a.mp4", 2))
    assert [i for i, _ in read] == [0, 2, 4] and all(f.size == (64, 48) for _, f in read)
    clip = open_clip(tmp_path / "a.mp4")
    assert clip.fps == pytest.approx(12) and clip.size == (64, 48) and not clip.warnings
    name = save_overlay(tmp_path / "a.mp4", [[], [person()], []], tmp_path, "a.pose", 2, 6.0)
    drawn = [frame for _, frame in frames(tmp_path / name)]
    assert name == "a.pose.mp4" and [frame.size for frame in drawn] == [(1280, 960)] * 3
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        list(frames(tmp_path / "b.mp4"))


def test_tracks_follow_the_nearest():
    a, b = (
        [detection(-0.6), detection(-0.55), detection(-0.5)],
        [detection(0.9), detection(0.95), detection(1.0)],
    )
    people = [[a[0], b[0]], [b[1], a[1]], [], [b[2], a[2]]]
    assert tracks(people) == [[0, 1], [1, 0], [], [1, 0]]
    # Half a second later they may be others.
    assert tracks(people, [0, 0.1, 0.65, 0.7]) == [[0, 1], [1, 0], [], [2, 3]]


def test_recommended_is_no_worse_than_the_mean_of_hypotheses():
    one = person(m=20)
    error = (one.hypotheses.poses[0] - STANDING).norm(dim=-1).mean(-1)
    assert (one.pose - STANDING).norm(dim=-1).mean() <= error.mean()


def test_estimate_from_keypoints_alone_and_completion():
    seen = checked([Someone(detection().keypoints)], "h36m-17", size=SIZE)
    (one,) = estimation.estimate(None, "guided", 4, keypoints=seen, focal=800, seed=1)
    assert one.hypotheses.poses.shape == (1, 4, 17, 3) and one.translation[2] > 0
    (again,) = estimation.estimate(None, "guided", 4, keypoints=seen, focal=800, seed=1)
    with torch.inference_mode():  # guidance needs gradients all the same
        (unrecorded,) = estimation.estimate(None, "guided", 4, keypoints=seen, focal=800, seed=1)
    assert torch.equal(one.pose, again.pose) and torch.equal(one.pose, unrecorded.pose)
    assert estimation.generate(3, steps=5).shape == (3, 17, 3)
    known = torch.ones(1, 17)
    known[0, 10:] = 0
    whole = estimation.complete(STANDING[None], known, 2, steps=50)
    with torch.inference_mode():
        unrecorded = estimation.complete(STANDING[None].clone(), known.clone(), 2, steps=50)
    assert torch.equal(whole.poses, unrecorded.poses)
    assert whole.poses.shape == (1, 2, 17, 3)
    assert (whole.poses[0, :, 1:10] - STANDING[1:10]).norm(dim=-1).mean() < 0.1
    with pytest.raises(UserError, match="unknown method 'magic'"):
        estimation.estimate(None, "magic", keypoints=seen)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: estimation.estimate(None, m=0), "m 0 is out of range: give 1 or more"),
        (lambda: estimation.estimate(None, seed=1.5), "the seed 1.5 is not a whole number: give 0 to"),
        (lambda: estimation.generate(-1), "n -1 is out of range: give 0 or more"),
        (lambda: estimation.generate(1, seed=-1), "the seed -1 is out of range: give 0 to"),
        (lambda: estimation.complete(STANDING[None], torch.ones(1, 17), 2.0), "m 2.0 is not a whole number"),
        (lambda: estimation.complete(STANDING[None], torch.ones(1, 17), seed=2**64), "the seed .* is out of"),
    ],
)
def test_counts_and_seeds_that_are_none(call, match):
    with pytest.raises(UserError, match=match):
        call()


def test_people_at_impossible_distances_are_refused(tmp_path):
    points = (detection().keypoints - torch.tensor([320.0, 240])) / 400 + torch.tensor([320.0, 240])
    data = {
        "layout": "h36m-17",
        "size": list(SIZE),
        "K": K.tolist(),
        "people": [{"keypoints": points.tolist()}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    code, _, errors = run(tmp_path / "a.json", "-o", tmp_path / "out", "--method", "restoration")
    assert code == 2 and "m away or farther: keypoints and K must be in pixels of the same picture" in errors


def lengths_in(folder):
    """Numbers in metres, millimetres or centimetres in each file of one person, and where in it they are."""
    (person_entry,) = json.loads((folder / "a.pose.json").read_text())["people"]
    answer = person_entry["recommended"]
    glb = (folder / "a.pose.glb").read_bytes()
    document = json.loads(glb[20 : 20 + int.from_bytes(glb[12:16], "little")])
    c3d, npz = (folder / "a.pose.c3d").read_bytes(), np.load(folder / "a.pose.npz")
    bvh = (folder / "a.pose.bvh").read_text()
    return {
        "pose": answer["pose"],
        "translation": answer["translation"],
        "expected": answer["expected_error"],
        "csv": np.loadtxt(folder / "a.pose.csv", delimiter=",", skiprows=1)[1:],
        "trc": np.array((folder / "a.pose.trc").read_text().splitlines()[-1].split("\t")[2:], float),
        "c3d": np.frombuffer(c3d, "<f4", 17 * 4, 512 * (int.from_bytes(c3d[16:18], "little") - 1)),
        "npz": npz["trans"],
        "bvh": [float(v) for line in bvh.splitlines() if "OFFSET" in line for v in line.split()[1:]],
        "bvh, where": [float(v) for v in bvh.splitlines()[-1].split()[:3]],
        "glb": [node["translation"] for node in document["nodes"] if "translation" in node],
    }, npz["poses"]


@pytest.mark.parametrize("method", METHODS)
def test_a_childs_height_sizes_every_file(tmp_path, method):
    """Half as tall, everything is half as large and half as far, and turned alike."""
    data = {"layout": "h36m-17", "size": list(SIZE), "K": K.tolist()}
    data["people"] = [{"keypoints": detection().keypoints.tolist()}]
    (tmp_path / "a.json").write_text(json.dumps(data))
    command = [tmp_path / "a.json", "--method", method, "--hypotheses", 2]
    command += [word for kind in ("bvh", "glb", "trc", "c3d", "csv", "npz") for word in ("--export", kind)]
    assert run(*command, "-o", tmp_path / "grown")[0] == 0
    assert run(*command, "-o", tmp_path / "child", "--height", grown().height / 2)[0] == 0
    (large, turned), (small, alike) = (lengths_in(tmp_path / name) for name in ("grown", "child"))
    for name, lengths in large.items():
        wrong = np.abs(2 * np.array(small[name]) - lengths).max()
        assert wrong < (0.03 if name in ("trc", "c3d", "bvh", "bvh, where") else 3e-5), name
    np.testing.assert_allclose(alike, turned, atol=1e-4)


def test_importing_the_package_is_light():
    code = "import sys, dd3g.pose; print(sorted({'torch', 'imageio', 'ai_edge_litert'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
