"""BlazePose: its geometry against plain loops, and what it finds in real photos."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dd3g.errors import UserError
from dd3g.models import model_path
from dd3g.pose.body.skeletons import BLAZEPOSE_33
from dd3g.pose.detection import blazepose as detector
from dd3g.pose.detection.blazepose import Region, anchors, find_people, overlap, suppress

PHOTOS = Path(os.environ.get("DD3G_DATA", "data")) / "photos"


def photo(name: str) -> Image.Image:
    if not (PHOTOS / name).is_file():
        pytest.skip(f"{PHOTOS / name} is not there")
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'pose'")
    if None in (model_path("pose_detection"), model_path("pose_landmark_full")):
        pytest.skip("dd3g models fetch pose_detection pose_landmark_full")
    return Image.open(PHOTOS / name).convert("RGB")


def test_anchors_by_hand():
    a = anchors()
    assert a.shape == (2254, 2)
    np.testing.assert_allclose(a[0], a[1])
    np.testing.assert_allclose(a[2], [1.5 / 28, 0.5 / 28])
    np.testing.assert_allclose(a[2 * 28], [0.5 / 28, 1.5 / 28])
    np.testing.assert_allclose(a[2 * 28 * 28], [0.5 / 14, 0.5 / 14])
    np.testing.assert_allclose(a[-6:], np.full((6, 2), 6.5 / 7))


def test_region_maps_its_corners():
    up = Region.of(np.array([100.0, 50.0]), np.array([100.0, 10.0]))
    assert up.side == 100 and up.angle == 0
    np.testing.assert_allclose(up.matrix(10) @ [0, 0, 1], [50, 0])
    np.testing.assert_allclose(up.matrix(10) @ [10, 5, 1], [150, 50])
    # Someone lying with the head to the right: the top of the square is on the right.
    right = Region.of(np.array([100.0, 50.0]), np.array([140.0, 50.0]))
    np.testing.assert_allclose(right.matrix(10) @ [5, 0, 1], [150, 50], atol=1e-9)


def test_overlap_counts_cells():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1) + 0.5
    for _ in range(20):
        corners = rng.integers(0, 20, (2, 2, 2))
        boxes = np.concatenate([corners.min(1), corners.max(1) + 1], 1).astype(float)
        a, b = (((grid >= box[:2]) & (grid <= box[2:])).all(-1) for box in boxes)
        assert overlap(*boxes) == pytest.approx((a & b).sum() / (a | b).sum())


def test_suppress_blends_one_person_and_keeps_another():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], float)
    values, scores = suppress(boxes, np.array([0.6, 0.9, 0.7]), np.array([[0.0], [10.0], [5.0]]))
    np.testing.assert_allclose(scores, [0.9, 0.7])
    np.testing.assert_allclose(values, [[6.0], [5.0]])
    assert suppress(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)))[0].shape == (0, 4)


def test_crop_is_the_region_and_black_outside():
    y, x = np.mgrid[:120, :200]
    picture = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    crop = detector._crop(picture, Region(np.array([100.0, 60.0]), 40.0, 0.0), 40)[0]
    np.testing.assert_allclose(crop, np.asarray(picture)[40:80, 80:120], atol=1)
    half = detector._crop(picture, Region(np.array([100.0, 60.0]), 80.0, 0.0), 40)[0]
    np.testing.assert_allclose(half[10, 10], [60 + 20.5, 20 + 20.5, 255 - 80.5], atol=1)
    assert (detector._crop(picture, Region(np.array([0.0, 0.0]), 80.0, 0.0), 40)[0, :19] == 0).all()


@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0])
def test_upright_heatmaps_peak_at_the_same_place(angle):
    maps = np.zeros((2, 64, 64))
    maps[0, 20, 41] = maps[1, 30, 12] = 1
    region = Region(np.array([300.0, 200.0]), 128.0, angle)
    turned, square = detector._upright(maps, region)
    for peak, cell in zip(turned, ((41, 20), (12, 30)), strict=True):
        want = region.matrix(64) @ [*cell, 1]
        rows, columns = np.mgrid[:64, :64] + 0.5
        found = np.array([(peak * columns).sum(), (peak * rows).sum()]) / peak.sum()
        at = square[:2] + found * (square[2:] - square[:2]) / 64
        np.testing.assert_allclose(at, want, atol=1.5)


def test_finds_both_soccer_players_where_they_are():
    picture = photo("pifpaf_soccer.jpg")
    people = find_people(picture)
    assert len(people) == 2
    front = people[0]
    seen = {name: front.keypoints[i] for i, name in enumerate(BLAZEPOSE_33.joints)}
    for name, at in {"nose": (758, 108), "l_wrist": (912, 345), "l_ankle": (924, 682)}.items():
        np.testing.assert_allclose(seen[name], at, atol=20, err_msg=name)
    assert front.confidence.mean() > 0.85 and front.heatmaps.shape == (33, 64, 64)
    rows, columns = np.divmod(front.heatmaps.reshape(33, -1).argmax(1), 64)
    cell = (front.square[2] - front.square[0]) / 64
    at = front.square[:2] + (np.stack([columns, rows], 1) + 0.5) * cell
    assert np.median(np.linalg.norm(at - front.keypoints, axis=1)) < 1.5 * cell


def test_enlarged_picture_gives_enlarged_keypoints():
    picture = photo("pifpaf_soccer.jpg")
    large = picture.resize((2400, 1600), Image.Resampling.BICUBIC)
    small, big = find_people(picture, tiles=False), find_people(large, tiles=False)
    assert len(small) == len(big) and big[0].size == (2400, 1600)
    assert np.median(np.abs(big[0].keypoints / 2 - small[0].keypoints)) < 6


def test_a_person_whose_head_leaves_the_picture_is_followed():
    picture = photo("pifpaf_soccer.jpg")
    frames = [picture.crop((0, top, 1200, top + 600)) for top in (0, 40, 80, 120, 150)]
    people = find_people(frames[0], tiles=False)
    assert len(people) == 2
    for frame in frames[1:]:
        people = find_people(frame, tiles=False, before=[p.region for p in people])
    assert len(people) == 2 > len(find_people(frames[-1], tiles=False))
    lost = people[1].keypoints[BLAZEPOSE_33.joints.index("l_ankle")]
    np.testing.assert_allclose(lost, (397, 540 - 150), atol=25)
    # What is followed into a picture without anybody is let go, and sizes do not matter.
    assert find_people(Image.new("RGB", (1200, 600), "green"), False, [p.region for p in people]) == []
    large = frames[-1].resize((3000, 1500), Image.Resampling.BICUBIC)
    again = find_people(large, False, [p.region.scaled(2.5) for p in people])
    assert np.median(np.abs(again[1].keypoints / 2.5 - people[1].keypoints)) < 6


@pytest.mark.parametrize("name", ["skimage_chelsea.jpg", "skimage_coffee.jpg", "skimage_rocket.jpg"])
def test_no_person_in_pictures_without(name):
    assert find_people(photo(name)) == []


def test_small_people_need_the_windows():
    picture = photo("pifpaf_surf_000000081988.jpg")
    assert len(find_people(picture, tiles=False)) < len(find_people(picture)) == 4


def test_invented_limbs_have_no_confidence():
    (astronaut,) = find_people(photo("skimage_astronaut.jpg"))
    outside = ((astronaut.keypoints < 0) | (astronaut.keypoints > 512)).any(1)
    assert outside[[25, 26, 27, 28]].all() and (astronaut.confidence[outside] == 0).all()
    assert astronaut.confidence[[0, 11, 12]].min() > 0.9


def test_missing_runtime_names_the_extra(monkeypatch):
    monkeypatch.setattr(detector, "require_model", lambda name: Path("x.tflite"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    detector._network.cache_clear()
    with pytest.raises(UserError, match=r"dd3g\[pose\]"):
        find_people(Image.new("RGB", (64, 64)))


def test_missing_network_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path))
    detector._network.cache_clear()
    with pytest.raises(UserError, match="dd3g models fetch pose_detection"):
        find_people(Image.new("RGB", (64, 64)))
