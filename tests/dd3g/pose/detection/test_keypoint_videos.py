"""Frames of a video in every detector's file: who is in which, and frames that a file leaves out."""

import numpy as np
import pytest
import torch
from stand_ins.detector_files import (
    ANNOTATION,
    META,
    NAMES,
    OPENPOSE_25,
    POINTS,
    WANTED,
    alphapose,
    flat,
    instance,
    openpose,
    rows,
    write,
)

from dd3g.errors import UserError
from dd3g.pose.detection.reading import read_file, read_frames, read_keypoints

pytestmark = pytest.mark.usefixtures("reading")


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


def test_frames_in_npz_may_have_tracks(tmp_path):
    frames = np.stack([np.stack([POINTS, POINTS + 20])] * 3)
    np.savez(tmp_path / "a.npz", keypoints=frames, layout="coco-17", tracks=[[4, 9], [9, 4], [4, 9]])
    content = read_file(tmp_path / "a.npz")
    assert content.video and [p.track for p in content.people(content.pictures[1])] == [9, 4]
