"""Every detector's file in its exact layout: the same person comes out of each, at the same pixels."""

import json

import numpy as np
import pytest
import torch
from stand_ins.detector_files import (
    ANNOTATION,
    BODY,
    META,
    NAMES,
    OPENPOSE_18,
    OPENPOSE_25,
    POINTS,
    SCORES,
    SEEN,
    WANTED,
    alphapose,
    flat,
    instance,
    openpose,
    rows,
    write,
)

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import HALPE_26, to_h36m
from dd3g.pose.detection.reading import read_frames, read_keypoints

pytestmark = pytest.mark.usefixtures("reading")
HALPE = [*BODY, None, None, None, *[None] * 6]
TURNED = META | {"keypoint_id2name": {str(i): n for i, n in enumerate(NAMES[::-1])}}
IMAGE = {"id": 397133, "file_name": "val2017/000000397133.jpg", "width": 640, "height": 427}
PERSON = [{"id": 1, "name": "person", "supercategory": "person", "keypoints": NAMES, "skeleton": [[16, 14]]}]
ONE_PICTURE = {
    "openpose-25": {"version": 1.3, "people": [openpose(OPENPOSE_25)]},
    "openpose-18": {"version": 1.2, "people": [openpose(OPENPOSE_18)]},
    "openpose with an empty person": {
        "version": 1.3, "people": [openpose(OPENPOSE_25, pose_keypoints_2d=[]), openpose(OPENPOSE_25)],
    },
    "mmpose image": [instance()],
    "mmpose demo": {"meta_info": META, "instance_info": [instance()]},
    "mmpose demo, joints in another order": {
        "meta_info": TURNED,
        "instance_info": [
            instance(keypoints=POINTS[::-1].tolist(), keypoint_scores=SCORES[::-1].tolist())
        ],
    },
    "alphapose": [alphapose("demo.jpg")],
    "alphapose halpe-26": [alphapose("demo.jpg", HALPE, idx=[0.0])],
    "alphapose halpe-136": [alphapose("demo.jpg", [*HALPE, *[None] * 110])],
    "coco results": [{"image_id": 785, "category_id": 1, "keypoints": flat(rows()), "score": 0.96}],
    "wholebody results": [
        {"image_id": 785, "category_id": 1, "keypoints": flat(rows([*BODY, *[None] * 116])), "score": 0.9}
    ],
    "ultralytics": [
        {
            "name": "person", "class": 0, "confidence": 0.91,
            "box": {"x1": 90.0, "y1": 95.0, "x2": 510.0, "y2": 505.0},
            "keypoints": {"x": POINTS[:, 0].tolist(), "y": POINTS[:, 1].tolist(), "visible": SCORES.tolist()},
        }
    ],
    "ultralytics, keypoints alone": [
        {"keypoints": {"x": POINTS[:, 0].tolist(), "y": POINTS[:, 1].tolist(), "visible": SCORES.tolist()}}
    ],
    "vitpose": {
        "keypoints": [{"0": [[y, x, c] for x, y, c in rows()]}],
        "skeleton": {str(i): name for i, name in enumerate(NAMES)},
    },
    "mmpose, one person": instance(),
    "mmpose, one more axis": [instance(keypoints=[POINTS.tolist()], keypoint_scores=[SCORES.tolist()])],
    "mmpose inferencer": {"predictions": [[instance()]], "visualization": []},
    "mmpose frame": {"frame_id": 3, "instances": [instance()]},
    "openpose, one person": openpose(OPENPOSE_25),
    "openpose 1.0": {"version": 1.0, "people": [{"pose_keypoints": flat(rows(OPENPOSE_18))}]},
    "alphapose, openpose's form": {"people": [{"pose_keypoints_2d": flat(rows(OPENPOSE_18))}]},
    "alphapose, openpose's joints": {
        "demo.jpg": {"version": "0.3", "bodies": [{"joints": flat(rows(OPENPOSE_18))}]}
    },
    "detectron2": {"pred_keypoints": [rows()], "scores": [0.9], "pred_boxes": [[90, 95, 510, 505]]},
    "detectron2 instances": {"instances": {"pred_keypoints": [rows()], "scores": [0.9]}},
    "rtmlib": {"keypoints": [POINTS.tolist()], "scores": [SCORES.tolist()]},
    "ultralytics with a box alone": [
        {"name": "dog", "class": 16, "confidence": 0.9, "box": {"x1": 1.0, "y1": 1.0, "x2": 9.0, "y2": 9.0}},
        {"keypoints": {"x": POINTS[:, 0].tolist(), "y": POINTS[:, 1].tolist(), "visible": SCORES.tolist()}},
    ],
    "vitpose without names": {"keypoints": [{"0": [[y, x, c] for x, y, c in rows()]}], "skeleton": None},
    "transformers": [
        {"keypoints": POINTS.tolist(), "scores": SCORES.tolist(), "labels": list(BODY),
         "bbox": [90, 95, 510, 505]}
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_PICTURE)
def test_a_picture_of_every_detector(tmp_path, name):
    read = read_keypoints(write(tmp_path / "demo.json", ONE_PICTURE[name]))
    known = (
        list(range(17))
        if "openpose" not in name and "halpe" not in name
        else [*range(1, 7), 9, *range(11, 17)]
    )
    torch.testing.assert_close(read.points[0, known], WANTED[known], atol=1e-3, rtol=0)
    torch.testing.assert_close(read.confidence[0, known], SEEN[known], atol=1e-5, rtol=0)
    assert len(read.points) == 1


def test_missed_joints_are_nan_null_or_zero(tmp_path):
    """Without confidences; where all of them are null there are none either."""
    for missed in ([None, None], [float("nan")] * 2, [0, 0]):
        points = [*POINTS[:9].tolist(), missed, *POINTS[10:].tolist()]  # the left wrist
        for beside in ({}, {"keypoint_scores": [None] * 17}):
            person = {"keypoints": points, "bbox": [90, 95, 420, 410], **beside}
            read = read_keypoints(write(tmp_path / "a.json", [person]))
            assert read.confidence[0].tolist() == [float(j != 13) for j in range(17)], missed


def test_only_people_of_a_data_set_are_read(tmp_path):
    crowd = {"image_id": 397133, "id": 3, "category_id": 1, "iscrowd": 1, "segmentation": {}}
    hand = {"image_id": 397133, "id": 4, "category_id": 9, "keypoints": [5, 5, 2] * 2}
    data = {
        "images": [IMAGE],
        "annotations": [crowd, hand, ANNOTATION],
        "categories": [{"id": 9, "name": "hand", "keypoints": ["wrist", "thumb"]}, *PERSON],
    }
    read = read_keypoints(write(tmp_path / "a.json", data))
    assert len(read.points) == 1 and read.size == (640, 427)
    torch.testing.assert_close(read.points[0], WANTED, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="has no joint nose.*, only wrist, thumb: use a model of COCO's"):
        read_keypoints(write(tmp_path / "b.json", data | {"annotations": [hand]}))


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([instance()]), "utf-8-sig")
    assert len(read_keypoints(tmp_path / "a.json").points) == 1


def test_halpes_head_is_the_crown():
    points = torch.arange(52.0).reshape(1, 26, 2) + 10
    found, _ = to_h36m(points, None, "halpe-26")
    assert torch.equal(found[0, 10], points[0, HALPE_26.joints.index("head")])
    assert torch.equal(found[0, 0], points[0, HALPE_26.joints.index("hip")])


def test_scores_of_people_are_read(tmp_path):
    for name, score in (
        ("mmpose image", 0.75),
        ("coco results", 0.96),
        ("ultralytics", 0.91),
        ("alphapose", 1.0),
    ):
        read = read_keypoints(write(tmp_path / "a.json", ONE_PICTURE[name]))
        assert read.scores.tolist() == pytest.approx([score]), name


def test_each_person_has_their_own_confidences(tmp_path):
    people = [{"keypoints": POINTS.tolist(), "confidence": [0.4] * 17}, {"keypoints": POINTS.tolist()}]
    read = read_keypoints(write(tmp_path / "a.json", {"layout": "coco-17", "people": people}))
    assert read.confidence[0, 1] == pytest.approx(0.4) and read.confidence[1, 1] == 1


def test_a_coco_data_set_has_the_people_and_the_size_of_each_picture(tmp_path):
    other = {"id": 8, "file_name": "ski.jpg", "width": 320, "height": 240}
    people = [ANNOTATION, ANNOTATION | {"id": 3}, ANNOTATION | {"image_id": 8}]
    data = {"info": {}, "images": [IMAGE, other], "annotations": people, "categories": PERSON}
    path = write(tmp_path / "person_keypoints_val2017.json", data)
    read = read_keypoints(path, picture="000000397133")
    assert read.size == (640, 427) and len(read.points) == 2
    torch.testing.assert_close(read.points[0], WANTED, atol=1e-3, rtol=0)
    assert read_keypoints(path, picture="ski").size == (320, 240)
    with pytest.raises(UserError, match="none of which is dog: 000000397133, ski"):
        read_keypoints(path, picture="dog")
    single = data | {"images": [IMAGE], "annotations": [ANNOTATION]}
    assert read_keypoints(write(tmp_path / "one.json", single)).size == (640, 427)


def test_rows_of_an_array_are_people_of_a_picture_or_frames_of_a_video(tmp_path):
    np.savez(tmp_path / "a.npz", keypoints=np.stack([POINTS, POINTS + 4]), layout="coco-17")
    assert len(read_keypoints(tmp_path / "a.npz").points) == 2
    found = read_frames(tmp_path / "a.npz", "clip")
    assert [k.tracks for k in found] == [(0,), (0,)]
    torch.testing.assert_close(found[1].points[0], WANTED + 4, atol=1e-3, rtol=0)


def test_numbers_of_coco_results_are_those_of_its_pictures(tmp_path):
    entries = [
        {"image_id": i, "category_id": 1, "keypoints": flat(rows(shift=float(i))), "score": 0.9}
        for i in (785, 139)
    ]
    path = write(tmp_path / "results.json", entries)
    read = read_keypoints(path, picture="000000000139")
    torch.testing.assert_close(read.points[0], WANTED + torch.tensor([139.0, 0]), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="none of which is 000000001390"):
        read_keypoints(path, picture="000000001390")


def test_heatmaps_alone_are_refused_with_what_is_missing(tmp_path):
    np.savez(tmp_path / "a.npz", heatmaps=np.ones((1, 17, 4, 4)), boxes=np.ones((1, 4)))
    with pytest.raises(UserError, match="no array 'keypoints' in it, only .*heatmaps alone are not enough"):
        read_keypoints(tmp_path / "a.npz")
