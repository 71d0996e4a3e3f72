"""Keypoint files of other detectors, each kind of bad one, and intrinsics."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.keypoint_files import bad_files, some

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import SKELETONS, to_h36m
from dd3g.pose.detection.camera import intrinsics
from dd3g.pose.detection.people import load
from dd3g.pose.detection.reading import read_keypoints

COUNTS = {"coco-17": 17, "openpose-25": 25, "h36m-17": 17, "blazepose-33": 33}


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
