"""Keypoint files of other detectors, each kind of bad one, and intrinsics."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dd3g.errors import UserError
from dd3g.pose.detection import load
from dd3g.pose.keypoints import intrinsics, read_keypoints
from dd3g.pose.skeletons import SKELETONS, to_h36m

COUNTS = {"coco-17": 17, "openpose-25": 25, "h36m-17": 17, "blazepose-33": 33}


def some(joints: int, people: int = 2, seed: int = 0) -> np.ndarray:
    """(people, joints, 3): places 100..500 px, confidences 0.5..1."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.uniform(100, 500, (people, joints, 2)), rng.uniform(0.5, 1, (people, joints, 1))], 2
    )


def write(path, data) -> str:
    path.write_text(json.dumps(data))
    return str(path)


@pytest.mark.parametrize("layout", COUNTS)
def test_every_layout_from_npz_and_json(tmp_path, layout):
    values = some(COUNTS[layout])
    want, seen = to_h36m(torch.tensor(values[..., :2]).float(), torch.tensor(values[..., 2]).float(), layout)
    np.savez(tmp_path / "a.npz", keypoints=values, layout=layout)
    np.savez(tmp_path / "b.npz", keypoints=values[..., :2], confidence=values[..., 2])
    people = [{"keypoints": v[:, :2].tolist(), "confidence": v[:, 2].tolist()} for v in values]
    write(tmp_path / "c.json", {"layout": layout, "size": [640, 480], "people": people})
    write(
        tmp_path / "d.json", {"layout": layout, "people": [{"keypoints": v.ravel().tolist()} for v in values]}
    )
    for name in ("a.npz", "b.npz", "c.json", "d.json"):
        read = read_keypoints(tmp_path / name, layout if name == "b.npz" else None)
        assert torch.allclose(read.points, want, atol=1e-3) and torch.allclose(read.confidence, seen), name
    assert read_keypoints(tmp_path / "c.json").size == (640, 480)


def test_openpose_file(tmp_path):
    values = some(25)
    values[1, 11] = 0  # a missed ankle
    people = [{"person_id": [-1], "pose_keypoints_2d": v.ravel().tolist()} for v in values]
    read = read_keypoints(write(tmp_path / "a_keypoints.json", {"version": 1.3, "people": people}))
    assert read.points[0, 3].tolist() == pytest.approx(values[0, 11, :2].tolist())
    assert read.confidence[1, 3] == 0 and (read.points[1, 3] == 0).all()
    assert read.points[0, 0].tolist() == pytest.approx(values[0, 8, :2].tolist())  # its own mid hip


def test_coco_results_and_annotations(tmp_path):
    values = some(17, 1)
    values[..., 2] = 2  # COCO's flag for visible
    values[0, 9] = 0
    flat = values[0].ravel().tolist()
    for data in (
        [{"image_id": 7, "category_id": 1, "keypoints": flat, "score": 0.9}],
        {"images": [], "annotations": [{"image_id": 7, "keypoints": flat, "num_keypoints": 16}]},
    ):
        read = read_keypoints(write(tmp_path / "a.json", data))
        assert read.confidence[0, 12] == 1 and read.confidence[0, 13] == 0  # left elbow, left wrist
        assert read.points[0, 12].tolist() == pytest.approx(values[0, 7, :2].tolist())


def test_zero_without_confidence_is_missing_and_nan_may_be(tmp_path):
    values = some(17, 1)[0, :, :2]
    values[3] = 0
    np.savez(tmp_path / "a.npz", keypoints=values)
    read = read_keypoints(tmp_path / "a.npz", "h36m-17")
    assert read.confidence[0].tolist() == [float(i != 3) for i in range(17)]
    values[3] = np.nan
    np.savez(tmp_path / "a.npz", keypoints=values, confidence=(np.arange(17) != 3).astype(float))
    assert torch.isfinite(read_keypoints(tmp_path / "a.npz", "h36m-17").points).all()


def test_heatmaps_camera_and_size_come_along(tmp_path):
    K = [[900.0, 0, 320], [0, 910, 240], [0, 0, 1]]
    maps = np.random.default_rng(0).uniform(size=(2, 17, 8, 6))
    np.savez(
        tmp_path / "a.npz",
        keypoints=some(17),
        layout="h36m-17",
        K=K,
        size=(640, 480),
        heatmaps=maps,
        boxes=np.array([[0, 0, 60, 80.0]] * 2),
        scores=[0.5, 0.7],
    )
    read = read_keypoints(tmp_path / "a.npz")
    assert read.K.tolist() == K and read.size == (640, 480)
    assert read.heatmaps.shape == (2, 17, 8, 6) and read.boxes[1].tolist() == [0, 0, 60, 80]
    assert read.scores.tolist() == pytest.approx([0.5, 0.7])


def test_people_with_too_few_joints_are_left_out(tmp_path):
    values = some(17, 3)
    values[..., 2] = 1
    values[0, :, 2], values[2, 2:, 2] = 0, 0
    maps, boxes = np.ones((3, 17, 4, 4)), np.array([[i, 0, 60, 80.0] for i in range(3)])
    np.savez(tmp_path / "a.npz", keypoints=values, heatmaps=maps, boxes=boxes, scores=[0.1, 0.2, 0.3])
    read = read_keypoints(tmp_path / "a.npz", "h36m-17")
    assert np.allclose(read.points, values[1:2, :, :2]) and read.confidence.shape == (1, 17)
    assert read.scores.tolist() == pytest.approx([0.2]) and read.boxes.tolist() == boxes[1:2].tolist()
    assert read.heatmaps.shape == (1, 17, 4, 4)
    dark, two = read.warnings
    assert dark.startswith("person 0 has confidence 0 everywhere, and is left out")
    assert two.startswith("person 2 has only 2 of 17 joints")


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('RAN').touch()",))


def bad_files(folder):
    good = some(17, 1)
    nan = good.copy()
    nan[0, 4, 0] = np.nan
    dark = good.copy()
    dark[..., 2] = 0
    few = dark.copy()
    few[0, [1, 2, 3], 2] = 1

    far = good.copy()
    far[0, 4, 0] = 1e30
    one, box = np.ones((1, 17, 1, 4)), np.array([[0, 0, 9, 9.0]])
    turned = np.array([[800, 0, 0], [0, 800, 0], [320, 240, 1.0]])

    def npz(name, **arrays):
        np.savez(folder / name, **arrays)
        return name

    def text(name, content):
        (folder / name).write_text(content)
        return name

    npz("whole.npz", keypoints=good)
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:200])
    np.savez_compressed(folder / "rotten.npz", keypoints=good.repeat(30, 0))
    content = bytearray((folder / "rotten.npz").read_bytes())
    content[200:260] = bytes(60)
    (folder / "rotten.npz").write_bytes(content)
    (folder / "bomb.npz").write_bytes(b"")
    np.savez(folder / "bomb.npz", keypoints=np.array([Bomb()], dtype=object))
    (folder / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    person = json.dumps({"keypoints": good[0].tolist()})
    pair = [{"image_id": i, "keypoints": good[0].ravel().tolist()} for i in (7, 8)]
    return [
        (npz("nan.npz", keypoints=nan), "h36m-17", "l_hip of person 0 is not a number"),
        (npz("far.npz", keypoints=far), "h36m-17", "l_hip of person 0 is not a number of pixels"),
        (npz("trust.npz", keypoints=good, confidence=good[0, :16, 2]), "h36m-17", r"\(1, 17\) like the key"),
        (npz("scores.npz", keypoints=good, scores=[1.0, 1.0]), "h36m-17", "one for each of 1 people, got 2"),
        (npz("turned.npz", keypoints=good, K=turned), "h36m-17", "fx, s, cx"),
        (npz("flat.npz", keypoints=good, heatmaps=one, boxes=0 * box), "h36m-17", "left before right"),
        (npz("boxnan.npz", keypoints=good, heatmaps=one, boxes=box * np.nan), "h36m-17", "left before right"),
        (npz("nomaps.npz", keypoints=good, heatmaps=one[..., :0], boxes=box), "h36m-17", "h, w"),
        (npz("dark.npz", keypoints=dark), "h36m-17", "person 0 has confidence 0 everywhere"),
        (npz("few.npz", keypoints=few), "h36m-17", "only 3 of 17 joints: give at least 4"),
        (npz("count.npz", keypoints=good[:, :16]), None, "no layout has 16 joints"),
        (npz("count2.npz", keypoints=good), "openpose-25", "openpose-25 has 25 joints, got 17"),
        (npz("which.npz", keypoints=good), None, "coco-17 or h36m-17: say which with --layout"),
        (npz("unknown.npz", keypoints=good), "halpe-26", "unknown joint layout 'halpe-26'"),
        (npz("names.npz", kpts=good), "h36m-17", "no array 'keypoints' in it, only kpts"),
        (npz("nobody.npz", keypoints=good[:0]), "h36m-17", "no person in it"),
        (npz("focal.npz", keypoints=good, K=-np.eye(3)), "h36m-17", "focal lengths in K must be positive"),
        (npz("maps.npz", keypoints=good, heatmaps=one[:, :16], boxes=one[0, :1, 0]), "h36m-17", "h, w"),
        (npz("boxes.npz", keypoints=good, heatmaps=one), "h36m-17", "need 'boxes'"),
        ("cut.npz", "h36m-17", "damaged or cut short"),
        ("rotten.npz", "h36m-17", "damaged or cut short"),
        ("bomb.npz", "h36m-17", "pickled objects, which are never read"),
        ("raw.npz", "h36m-17", "pickled|damaged"),
        (text("cut.json", '{"people": [{"keyp'), None, "not JSON, or cut short"),
        (text("none.json", '{"people": []}'), None, "no person in it"),
        (text("number.json", "3"), None, "no list of people"),
        (text("empty.json", '{"people": [{"id": 3}]}'), None, "person 0 has no list of 'keypoints'"),
        (text("five.json", '{"people": [{"keypoints": 5}]}'), None, "person 0 has no list of 'keypoints'"),
        (text("deep.json", "[" * 100_000), None, "not JSON, or cut short"),
        (text("two.json", json.dumps({"annotations": pair})), None, "holds several pictures"),
        (text("two-results.json", json.dumps(pair)), None, "holds several pictures"),
        (text("list.json", f'{{"layout": ["coco-17"], "people": [{person}]}}'), None, "unknown joint layout"),
        (text("ragged.json", f'{{"people": [{person}, {{"keypoints": [1,2,1]}}]}}'), None, "different"),
        (text("text.json", '{"people": [{"keypoints": ["a", "b", "c"]}]}'), None, "regular array of numbers"),
        (text("size.json", f'{{"size": [0, 5], "people": [{person}]}}'), "h36m-17", "width, height"),
        (text("keypoints.pkl", "x"), None, "keypoints come as .json or .npz, not .pkl"),
        ("absent.json", None, "does not exist"),
    ]  # fmt: skip


def test_each_bad_file_has_its_own_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, layout, message in bad_files(tmp_path):
        with pytest.raises(UserError, match=message) as caught:
            read_keypoints(tmp_path / name, layout)
        assert name in str(caught.value) and "\n" not in str(caught.value), name
    assert not (tmp_path / "RAN").exists()


def test_intrinsics_from_each_source():
    K, source = intrinsics((640, 480))
    assert source == "default" and K.tolist() == [[800, 0, 320], [0, 800, 240], [0, 0, 1]]
    K, source = intrinsics((640, 480), 1000.0)
    assert source == "flag" and K[0, 0] == K[1, 1] == 1000
    picture = Image.new("RGB", (640, 480))
    assert intrinsics(picture.size, None, picture)[1] == "default"
    picture.getexif().get_ifd(0x8769)[0xA405] = 28
    K, source = intrinsics(picture.size, None, picture)
    assert source == "exif" and K[0, 0].item() == pytest.approx(28 / 43.27 * 800)
    assert intrinsics(picture.size, 700.0, picture)[1] == "flag"


@pytest.mark.parametrize(("film", "source"), [(1, "default"), (5, "exif"), (999, "exif"), (65535, "default")])
def test_lenses_that_nobody_makes_are_not_believed(film, source):
    picture = Image.new("RGB", (640, 480))
    picture.getexif().get_ifd(0x8769)[0xA405] = film
    assert intrinsics(picture.size, None, picture)[1] == source


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_intrinsics_from_a_photo_taken_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by the camera
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.new("RGB", (640, 480)).save(tmp_path / f"a{suffix}", exif=exif)
    picture = load(tmp_path / f"a{suffix}")
    K, source = intrinsics(picture.size, None, picture)
    assert picture.size == (480, 640) and source == "exif"
    assert K[0, 0].item() == pytest.approx(28 / 43.27 * 800) and K[:2, 2].tolist() == [240, 320]


def test_intrinsics_from_the_sensor():
    picture = Image.new("RGB", (640, 480))
    # 5 mm behind a sensor of 640 px on 6.4 mm, resized to half its pixels.
    tags = picture.getexif().get_ifd(0x8769)
    tags |= {0x920A: 5.0, 0xA20E: 2000.0, 0xA210: 3, 0xA002: 1280, 0xA003: 960}
    K, source = intrinsics(picture.size, None, picture)
    assert source == "exif" and K[0, 0].item() == pytest.approx(500)
    tags[0x920A] = "wide"
    assert intrinsics(picture.size, None, picture)[1] == "default"


@pytest.mark.parametrize("block", [b"by an editor", b"MM\0*\0\0\0\x08\0\x02\xff", b"II*\0\xff\xff\xff\xff"])
def test_damaged_exif_tells_nothing(block, recwarn):
    picture = Image.new("RGB", (640, 480))
    picture.info["exif"] = b"Exif\0\0" + block
    assert intrinsics(picture.size, None, picture)[1] == "default"
    assert not recwarn.list


@pytest.mark.parametrize("focal", [-5.0, 0.0, math.nan, math.inf])
def test_impossible_focal_lengths(focal):
    with pytest.raises(UserError, match="focal length must be positive"):
        intrinsics((640, 480), focal)


def test_layouts_named_here_exist():
    assert set(COUNTS) <= set(SKELETONS) and all(len(SKELETONS[n]) == c for n, c in COUNTS.items())
