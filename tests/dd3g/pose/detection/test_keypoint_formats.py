"""Every detector's file in its exact layout: the same person comes out of each, at the same pixels."""

import json

import numpy as np
import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17, HALPE_26, to_h36m
from dd3g.pose.detection import long_json
from dd3g.pose.detection.keypoint_files import read_file
from dd3g.pose.detection.people import detect
from dd3g.pose.detection.reading import read_frames, read_keypoints

RNG = np.random.default_rng(4)
POINTS = RNG.uniform(100, 500, (17, 2)).round(1)  # COCO-17
SCORES = RNG.uniform(0.5, 1, 17).round(3)
WANTED, SEEN = (
    to_h36m(torch.tensor(POINTS).float(), torch.tensor(SCORES).float(), "coco-17")
)  # fmt: skip
BODY = range(17)
NAMES = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle",
]  # fmt: skip
# COCO-17 joints of OpenPose's 18 and 25.
OPENPOSE_18 = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
OPENPOSE_25 = [0, None, 6, 8, 10, 5, 7, 9, None, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, *[None] * 6]


@pytest.fixture(autouse=True, params=["whole", "in parts"])
def reading(request, monkeypatch):
    """Every file is also read as if it were too long for the memory."""
    if request.param == "in parts":
        for name, value in {"SMALL": 0, "MANY": 1, "FIELDS": 12, "CHUNK": 5}.items():
            monkeypatch.setattr(long_json, name, value)


def rows(order=BODY, shift=0.0):
    """Rows of x, y, confidence; joints that COCO lacks lie between its first two of the body."""
    middle = [POINTS[11:13].mean(0), SCORES[11:13].min()]
    found = [
        [*(POINTS[j] if j is not None else middle[0]), SCORES[j] if j is not None else middle[1]]
        for j in order
    ]
    return [[x + shift, y, c] for x, y, c in found]


def flat(values):
    return [float(v) for row in values for v in row]


def instance(shift=0.0, **beside):
    """As MMPose writes one."""
    return {
        "keypoints": [[x, y] for x, y, _ in rows(shift=shift)],
        "keypoint_scores": SCORES.tolist(),
        "bbox": [[90.0, 95.0, 510.0, 505.0]],
        "bbox_score": 0.75,
        **beside,
    }


def alphapose(image, order=BODY, shift=0.0, **beside):
    return {
        "image_id": image, "category_id": 1, "keypoints": flat(rows(order, shift)), "score": 2.95,
        "box": [90.0, 95.0, 420.0, 410.0], **beside,
    }  # fmt: skip


def openpose(order, **beside):
    empty = {f"{part}_keypoints_2d": [] for part in ("face", "hand_left", "hand_right")}
    return {"person_id": [-1], "pose_keypoints_2d": flat(rows(order)), **empty, **beside}


HALPE = [*BODY, None, None, None, *[None] * 6]
META = {
    "dataset_name": "coco",
    "num_keypoints": 17,
    "keypoint_id2name": {str(i): n for i, n in enumerate(NAMES)},
}
TURNED = META | {"keypoint_id2name": {str(i): n for i, n in enumerate(NAMES[::-1])}}
IMAGE = {"id": 397133, "file_name": "val2017/000000397133.jpg", "width": 640, "height": 427}
ANNOTATION = {
    "image_id": 397133, "id": 200887, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "area": 27789.1,
    "bbox": [90.0, 95.0, 420.0, 410.0], "keypoints": flat([[*p, 2] for p in POINTS]),
}  # fmt: skip
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


def write(path, data):
    path.write_text(json.dumps(data))
    return path


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
    with pytest.raises(UserError, match="px of the picture's corner: give pixels, not shares"):
        read_keypoints(write(tmp_path / "a.json", data))
    centred = [instance(keypoints=(2 * POINTS / 600 - 1).tolist())]
    with pytest.raises(UserError, match="give pixels"):
        read_keypoints(write(tmp_path / "b.json", centred))


def test_a_camera_in_other_units_is_refused(tmp_path):
    for K in ([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]], [[900, 0, 90_000], [0, 900, 240], [0, 0, 1]]):
        data = {"layout": "coco-17", "size": [640, 480], "K": K, "people": [{"keypoints": POINTS.tolist()}]}
        with pytest.raises(UserError, match="none of a picture of 640 x 480 pixels"):
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


def videopose(path, frames):
    metadata = {
        "layout_name": "coco", "num_joints": 17, "keypoints_symmetry": [[1, 3], [2, 4]],
        "video_metadata": {"clip": {"w": 640, "h": 480}},
    }  # fmt: skip
    views = {"clip": {"custom": [np.asarray(frames, np.float32)]}}
    np.savez_compressed(path, positions_2d=views, metadata=metadata)
    return path


def test_videos_of_every_detector(tmp_path):
    shifts = [0.0, 3.0, 6.0]
    folder = tmp_path / "openpose"
    folder.mkdir()
    for i, shift in enumerate(shifts):
        person = openpose(OPENPOSE_25, pose_keypoints_2d=flat(rows(OPENPOSE_25, shift)))
        people = [] if i == 1 else [person]  # nobody was found in the second frame
        write(folder / f"clip_{i:012d}_keypoints.json", {"version": 1.3, "people": people})
    files = {
        "openpose": folder,
        "mmpose": write(
            tmp_path / "mmpose.json",
            [{"frame_id": i, "instances": [instance(s)] if i != 1 else []} for i, s in enumerate(shifts)],
        ),
        "mmpose demo": write(
            tmp_path / "demo.json",
            {
                "meta_info": META,
                "instance_info": [
                    {"frame_id": i + 1, "instances": [instance(s, track_id=5)] if i != 1 else []}
                    for i, s in enumerate(shifts)
                ],
            },
        ),
        "alphapose": write(
            tmp_path / "alphapose-results.json",
            [alphapose(f"{i}.jpg", shift=s, idx=5) for i, s in enumerate(shifts) if i != 1],
        ),
        "vitpose": write(
            tmp_path / "vitpose.json",
            {
                "keypoints": [
                    {"5": [[y, x, c] for x, y, c in rows(shift=s)]} if i != 1 else {}
                    for i, s in enumerate(shifts)
                ],
                "skeleton": {str(i): name for i, name in enumerate(NAMES)},
            },
        ),
    }
    for name, path in files.items():
        found = read_frames(path, "clip")
        assert [k is not None for k in found] == [True, False, True], name
        assert found[2] is not None
        torch.testing.assert_close(
            found[2].points[0, 2], WANTED[2] + torch.tensor([6.0, 0]), atol=1e-3, rtol=0
        )
        assert found[2].tracks == ((None,) if name in ("openpose", "mmpose") else (5,)), name
    found = read_frames(videopose(tmp_path / "data_2d_custom_clip.npz", [POINTS, POINTS + [6.0, 0]]), "clip")
    assert found[1] is not None and found[1].size == (640, 480) and found[1].tracks == (0,)
    torch.testing.assert_close(found[1].points[0], WANTED + torch.tensor([6.0, 0]), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="frames of a video: give it with --keypoints"):
        read_keypoints(files["mmpose"])
    with pytest.raises(UserError, match="has no dance_000000000000_keypoints.json"):
        read_frames(folder, "dance")


def frame(i, **beside):
    return {"frame_id": i, "instances": [instance(float(i), **beside)]}


LEFT_OUT = {
    "mmpose, out of order": [frame(i) for i in (4, 0, 1)],
    "mmpose, numbers as texts": [frame(str(i)) for i in (0, 4, 1)],
    "mmpose, frames without people": [
        *map(frame, (0, 1, 4)), {"frame_id": 2}, {"frame_id": 3, "instances": None}
    ],
    "mmpose inferencer": [
        {"predictions": [frame(i)["instances"] if i in (0, 1, 4) else []]} for i in range(5)
    ],
    "alphapose": [alphapose(f"{i}.jpg", shift=float(i)) for i in (4, 1, 0)],
    "alphapose, frames as pictures": [alphapose(f"f_{i:05d}.jpg", shift=float(i)) for i in (0, 1, 4)],
    "coco results": [alphapose(i, shift=float(i)) for i in (0, 1, 4)],
    "coco data set": {
        "images": [{"id": 70 + i, "file_name": f"{i:06d}.jpg"} for i in range(5)],
        "annotations": [
            ANNOTATION | {"image_id": 70 + i, "keypoints": flat([[x + i, y, 2] for x, y in POINTS])}
            for i in (4, 0, 1)
        ],
    },
    "people by frame": {str(i): frame(i)["instances"] if i in (0, 1, 4) else [] for i in range(5)},
    "ours": {
        "layout": "coco-17",
        "frames": [{"index": i, "people": [{"keypoints": rows(shift=float(i))}]} for i in (0, 1, 4)],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_frames_that_a_file_leaves_out_keep_their_time(tmp_path, name):
    found = read_frames(write(tmp_path / "a.json", LEFT_OUT[name]), "clip")
    assert [k is not None for k in found] == [True, True, False, False, True]
    for i in (0, 1, 4):
        wanted = WANTED[2] + torch.tensor([float(i), 0])
        torch.testing.assert_close(found[i].points[0, 2], wanted, atol=1e-3, rtol=0)


def test_tracks_may_have_names(tmp_path):
    def tracks(name, names):
        frames = [
            {"frame_id": i, "instances": [instance(track_id=t) for t in row]} for i, row in enumerate(names)
        ]
        return [k.tracks for k in read_frames(write(tmp_path / name, frames), "clip")]

    assert tracks("a.json", [["7", "12"], ["12", "7"]]) == [(7, 12), (12, 7)]
    assert tracks("b.json", [["ann", "bob"], ["bob"], ["carl", 3]]) == [("ann", "bob"), ("bob",), ("carl", 3)]
    assert tracks("c.json", [["-1", -1], ["", None]]) == [(None, None), (None, None)]


def test_folders_of_frames_that_were_taken_apart(tmp_path):
    for i in (1, 4):
        person = openpose(OPENPOSE_25, pose_keypoints_2d=flat(rows(OPENPOSE_25, float(i))))
        write(tmp_path / f"frame_{i:04d}_keypoints.json", {"people": [person]})
    found = read_frames(tmp_path, "clip")
    assert [k is not None for k in found] == [True, False, False, True]
    (tmp_path / "frame_0003_keypoints.json").write_text("")
    with pytest.raises(UserError, match="frame_0003_keypoints.json: not JSON, or cut short"):
        list(read_frames(tmp_path, "clip"))


def test_videopose_files_of_several_videos(tmp_path):
    lost = np.full((17, 2), np.nan)
    metadata = {"layout_name": "coco", "num_joints": 17, "video_metadata": {"clip.mp4": {"w": 640, "h": 480}}}
    views = {
        name: {"custom": [np.asarray(frames, np.float32)]}
        for name, frames in {"clip.mp4": [POINTS, lost, POINTS + 4], "dance.mp4": [POINTS + 9]}.items()
    }
    np.savez_compressed(tmp_path / "a.npz", positions_2d=views, metadata=metadata)
    found = read_frames(tmp_path / "a.npz", "clip")
    assert [k is not None for k in found] == [True, False, True] and found[2].size == (640, 480)
    torch.testing.assert_close(found[2].points[0], WANTED + 4, atol=1e-3, rtol=0)
    torch.testing.assert_close(read_frames(tmp_path / "a.npz", "dance")[0].points[0], WANTED + 9)
    with pytest.raises(UserError, match="several videos, none of which is walk: clip, dance"):
        read_frames(tmp_path / "a.npz", "walk")


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


def yolo(size, shift=0.0, after="", confident=True):
    """A line as Ultralytics' save_txt writes it."""
    shares = [(x / size[0], y / size[1], c)[: 3 if confident else 2] for x, y, c in rows(shift=shift)]
    numbers = [0, 0.5, 0.5, 0.6, 0.9, *(v for row in shares for v in row)]
    return " ".join(f"{v:.6g}" for v in numbers) + after + "\n"


@pytest.mark.parametrize(
    ("after", "score", "track"),
    [("", None, None), (" 0.91", 0.91, None), (" 3", None, 3), (" 0.91 1", 0.91, 1)],
)
@pytest.mark.parametrize("confident", [True, False])
def test_shares_of_the_picture_in_yolos_texts(tmp_path, after, score, track, confident):
    path, size = tmp_path / "demo.txt", (640, 480)
    path.write_text(yolo(size, after=after, confident=confident) + "\n" + yolo(size, 9.0, after))
    read = read_keypoints(path, size=size)
    assert read.size == size and read.tracks == (track, track)
    assert (read.scores is None) == (score is None)
    torch.testing.assert_close(read.points[0], WANTED, atol=2e-3, rtol=0)
    want = SEEN if confident else torch.ones(17)
    torch.testing.assert_close(read.confidence[0], want, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="shares of the picture: give --size"):
        read_keypoints(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no person"),
        ("\ufffd notes", "line 1 has something else than numbers"),
        ("0 0.5 0.5 0.6 0.9", "line 1 has 5 numbers: .* 39 or 56"),
        (yolo((1, 1)), "must be shares of the picture"),
    ],
)
def test_texts_that_are_not_yolos_are_refused(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_keypoints(tmp_path / "a.txt", size=(640, 480))


def test_a_folder_of_yolos_texts_is_a_video_that_begins_at_one(tmp_path):
    size = (640, 480)
    for number, shift in ((1, 0.0), (3, 6.0)):  # nobody in the second: no file
        (tmp_path / f"clip_{number}.txt").write_text(yolo(size, shift, " 5"))
    found = read_frames(tmp_path, "clip", size=size)
    assert [k is not None for k in found] == [True, False, True]
    assert found[2] is not None and found[2].tracks == (5,)
    torch.testing.assert_close(found[2].points[0], WANTED + torch.tensor([6.0, 0]), atol=2e-3, rtol=0)


def test_heatmaps_alone_are_refused_with_what_is_missing(tmp_path):
    np.savez(tmp_path / "a.npz", heatmaps=np.ones((1, 17, 4, 4)), boxes=np.ones((1, 4)))
    with pytest.raises(UserError, match="no array 'keypoints' in it, only .*heatmaps alone do not do"):
        read_keypoints(tmp_path / "a.npz")


def test_frames_in_npz_may_have_tracks(tmp_path):
    frames = np.stack([np.stack([POINTS, POINTS + 20])] * 3)
    np.savez(tmp_path / "a.npz", keypoints=frames, layout="coco-17", tracks=[[4, 9], [9, 4], [4, 9]])
    content = read_file(tmp_path / "a.npz")
    assert content.video and [p.track for p in content.people(content.pictures[1])] == [9, 4]


@pytest.mark.parametrize(
    ("points", "size", "message"),
    [
        (POINTS, (64, 48), r"far outside of a picture of 64 x 48 pixels"),
        (100 * POINTS, (640, 480), r"far outside of a picture of 640 x 480 pixels"),
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
    with pytest.raises(UserError, match="of 35 is none of a picture of 640 x 480 pixels: .* not in milli"):
        detect(None, keypoints, 35.0, size=(640, 480))


def test_coefficients_of_no_lens_are_refused_and_zeros_do_nothing(tmp_path):
    K = [[600.0, 0, 320], [0, 610, 240], [0, 0, 1]]
    data = {"layout": "COCO-17", "size": [640, 480], "people": [{"keypoints": POINTS.tolist()}]}
    flat_K = [v for row in K for v in row]
    read = read_keypoints(write(tmp_path / "a.json", data | {"K": flat_K, "distortion": [0] * 14}))
    torch.testing.assert_close(read.points[0], WANTED, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="coefficients of no lens that shows these keypoints"):
        read_keypoints(write(tmp_path / "b.json", data | {"K": K, "distortion": [-5, 0, 0, 0]}))
    with pytest.raises(UserError, match="must be 4 to 8 numbers"):
        read_keypoints(write(tmp_path / "c.json", data | {"K": K, "distortion": [0.0] * 11 + [0.1]}))
