"""Keypoints, confidences, cameras and lenses in other units than ours, or of another picture."""

import numpy as np
import pytest
import torch
from stand_ins.detector_files import POINTS, SCORES, WANTED, instance, write

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.detection.keypoints import Keypoints, TooFewJointsError
from dd3g.pose.detection.people import detect
from dd3g.pose.detection.reading import read_keypoints

pytestmark = pytest.mark.usefixtures("reading")


@pytest.mark.parametrize("scale", [100.0, -1.0])
def test_confidences_out_of_range_are_refused(tmp_path, scale):
    data = [instance(keypoint_scores=(scale * SCORES).tolist())]
    with pytest.raises(UserError, match=r"confidences must lie in 0\.\.1, one is -?\d"):
        read_keypoints(write(tmp_path / "a.json", data))
    # RTMPose goes over 1 by a little.
    slightly = [instance(keypoint_scores=[1.05] * 17)]
    assert read_keypoints(write(tmp_path / "b.json", slightly)).confidence.max() == 1


@pytest.mark.parametrize("score", [91, 230.0, -0.5])
def test_scores_of_people_out_of_range_are_refused(tmp_path, score):
    with pytest.raises(UserError, match=rf"scores of people must lie in 0\.\.1, one is {score:g}"):
        read_keypoints(write(tmp_path / "a.json", [instance(), instance(bbox_score=score)]))


def test_one_person_in_other_units_is_left_out(tmp_path):
    """They would stand 2 km away."""
    people = [instance(), instance(keypoints=(POINTS / 600).tolist())]
    read = read_keypoints(write(tmp_path / "a.json", people))
    torch.testing.assert_close(read.points, WANTED[None], atol=1e-3, rtol=0)
    assert read.warnings == ("person 1 is 0.55 px large, and is left out: give everyone in pixels",)


@pytest.mark.parametrize("scale", [1 / 600, 1 / 1000])
def test_units_that_are_no_pixels_are_refused(tmp_path, scale):
    data = [instance(keypoints=(POINTS * scale).tolist())]
    with pytest.raises(UserError, match="px of the picture's corner: give pixels, not fractions"):
        read_keypoints(write(tmp_path / "a.json", data))
    centred = [instance(keypoints=(2 * POINTS / 600 - 1).tolist())]
    with pytest.raises(UserError, match="give pixels"):
        read_keypoints(write(tmp_path / "b.json", centred))


def test_a_camera_in_other_units_is_refused(tmp_path):
    for K in ([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]], [[900, 0, 90_000], [0, 900, 240], [0, 0, 1]]):
        data = {"layout": "coco-17", "size": [640, 480], "K": K, "people": [{"keypoints": POINTS.tolist()}]}
        with pytest.raises(UserError, match="does not fit a picture of 640 x 480 pixels"):
            detect(None, read_keypoints(write(tmp_path / "a.json", data)))


def test_unsure_joints_count_as_not_seen(tmp_path):
    scores = SCORES.copy()
    scores[[9, 10]] = [0.29, 0.31]
    keypoints = read_keypoints(write(tmp_path / "a.json", [instance(keypoint_scores=scores.tolist())]))
    left, right = (COCO_17.joints.index(f"{side}_wrist") for side in "lr")
    assert keypoints.confidence[0, 13] == pytest.approx(scores[left])
    (one,) = detect(None, keypoints, size=(640, 480))
    assert one.confidence[13] == 0 and one.confidence[16] == pytest.approx(scores[right])
    (one,) = detect(None, keypoints, size=(640, 480), threshold=0.1)
    assert one.confidence[13] == pytest.approx(0.29)
    with pytest.raises(UserError, match="nobody has 4 joints with a confidence of 1 or more: lower --conf"):
        detect(None, keypoints, size=(640, 480), threshold=1.0)
    with pytest.raises(UserError, match="give --size WIDTHxHEIGHT"):
        detect(None, keypoints)


def lens(points, K, k1, k2, p1, p2, k3):
    """OpenCV's model, as its documentation has it."""
    x, y = (points[:, 0] - K[0][2]) / K[0][0], (points[:, 1] - K[1][2]) / K[1][1]
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return np.stack([u * K[0][0] + K[0][2], v * K[1][1] + K[1][2]], 1)


def test_the_lens_is_taken_out(tmp_path):
    K, coefficients = [[600.0, 0, 320], [0, 610, 240], [0, 0, 1]], [-0.2, 0.05, 0.001, -0.002, 0.01]
    bent = lens(POINTS, K, *coefficients)
    assert np.abs(bent - POINTS).max() > 5
    data = {"layout": "coco-17", "size": [640, 480], "K": K, "distortion": coefficients}
    data["people"] = [{"keypoints": bent.tolist()}]
    read = read_keypoints(write(tmp_path / "a.json", data))
    torch.testing.assert_close(read.points[0], WANTED, atol=0.05, rtol=0)
    np.savez(tmp_path / "a.npz", keypoints=bent, layout="coco-17", K=K, distortion=coefficients)
    torch.testing.assert_close(read_keypoints(tmp_path / "a.npz").points[0], WANTED, atol=0.05, rtol=0)
    with pytest.raises(UserError, match="must be 4 to 8 numbers"):
        read_keypoints(write(tmp_path / "b.json", data | {"distortion": [0.1]}))
    del data["K"]
    with pytest.raises(UserError, match="'distortion' needs 'K'"):
        read_keypoints(write(tmp_path / "c.json", data))


@pytest.mark.parametrize(
    ("points", "size", "message"),
    [
        (POINTS, (64, 48), r"far outside a picture of 64 x 48 pixels"),
        (100 * POINTS, (640, 480), r"far outside a picture of 640 x 480 pixels"),
        (POINTS + 90_000, (640, 480), r"lie about \(9\d+, 9\d+\), far outside"),
    ],
)
def test_keypoints_of_another_picture_are_refused(tmp_path, points, size, message):
    keypoints = read_keypoints(write(tmp_path / "a.json", [instance(keypoints=points.tolist())]))
    with pytest.raises(UserError, match=message):
        detect(None, keypoints, size=size)


def test_people_half_out_of_the_picture_are_not_refused(tmp_path):
    for shift in (-500, 400):
        keypoints = read_keypoints(write(tmp_path / "a.json", [instance(float(shift))]))
        assert len(detect(None, keypoints, size=(640, 480))) == 1


def test_a_person_of_no_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="all joints of a person lie at one point"):
        read_keypoints(write(tmp_path / "a.json", [instance(keypoints=[[300, 200]] * 17)]))


def test_a_focal_length_in_millimetres_is_refused(tmp_path):
    keypoints = read_keypoints(write(tmp_path / "a.json", [instance()]))
    with pytest.raises(UserError, match="of 35 does not fit a picture of 640 x 480 pixels: .* not in milli"):
        detect(None, keypoints, 35.0, size=(640, 480))


def test_coefficients_of_no_lens_are_refused_and_zeros_do_nothing(tmp_path):
    K = [[600.0, 0, 320], [0, 610, 240], [0, 0, 1]]
    data = {"layout": "COCO-17", "size": [640, 480], "people": [{"keypoints": POINTS.tolist()}]}
    flat_K = [v for row in K for v in row]
    read = read_keypoints(write(tmp_path / "a.json", data | {"K": flat_K, "distortion": [0] * 14}))
    torch.testing.assert_close(read.points[0], WANTED, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="describes no lens that could show these keypoints"):
        read_keypoints(write(tmp_path / "b.json", data | {"K": K, "distortion": [-5, 0, 0, 0]}))
    with pytest.raises(UserError, match="must be 4 to 8 numbers"):
        read_keypoints(write(tmp_path / "c.json", data | {"K": K, "distortion": [0.0] * 11 + [0.1]}))


def test_keypoints_made_in_python():
    """Of numpy's doubles, with joints that are missing, and people of whom nothing is seen."""
    points = torch.from_numpy(WANTED.numpy().astype(float))[None].repeat(2, 1, 1)
    confidence = torch.ones(2, 17, dtype=torch.float64)
    confidence[1] = 0
    confidence[0, 3], points[0, 3] = 0, torch.nan
    (found,) = detect(None, Keypoints(points, confidence, (640, 480)))
    assert found.keypoints.dtype == torch.float32 and found.keypoints.isfinite().all()
    with pytest.raises(UserError, match="a joint is not a number of pixels: give it confidence 0"):
        detect(None, Keypoints(points, torch.ones(2, 17), (640, 480)))
    for nobody in (slice(1, 2), slice(0, 0)):
        with pytest.raises(TooFewJointsError):
            detect(None, Keypoints(points[nobody], confidence[nobody], (640, 480)))
