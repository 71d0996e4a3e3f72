"""The same person, as the files of different detectors hold them."""

import json

import numpy as np
import torch

from dd3g.pose.body.skeletons import to_h36m

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


META = {
    "dataset_name": "coco",
    "num_keypoints": 17,
    "keypoint_id2name": {str(i): n for i, n in enumerate(NAMES)},
}
ANNOTATION = {
    "image_id": 397133, "id": 200887, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "area": 27789.1,
    "bbox": [90.0, 95.0, 420.0, 410.0], "keypoints": flat([[*p, 2] for p in POINTS]),
}  # fmt: skip


def write(path, data):
    path.write_text(json.dumps(data))
    return path
