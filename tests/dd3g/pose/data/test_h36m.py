"""Human3.6M, written here in the layouts it is passed around in and read back."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from stand_ins.made_up_people import hp_points, seen

from dd3g.errors import UserError
from dd3g.pose.body.geometry import project
from dd3g.pose.data.h36m import CAMERAS, KEPT, load_h36m, load_h36m_items, read_frame_list
from dd3g.pose.data.recording import intrinsics

RNG = np.random.default_rng(0)


def by_hand(point, station):
    """World to camera with a rotation matrix from the quaternion."""
    w, x, y, z = station["orientation"]
    R = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    return R.T @ (point - np.array(station["translation"]) / 1000)


def distort(point, lens):
    """Pinhole and lens, one point, OpenCV's formula."""
    x, y = point[:2] / point[2]
    k1, k2, k3 = lens["radial_distortion"]
    p1, p2 = lens["tangential_distortion"]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    (fx, fy), (cx, cy) = lens["focal_length"], lens["center"]
    return fx * u + cx, fy * v + cy


@pytest.fixture
def h36m(tmp_path):
    cameras = json.loads(CAMERAS.read_text())
    world, flat = {}, {}
    for subject in ("S9", "S11"):
        world[subject], flat[subject] = {}, {}
        for action in ("Directions", "Directions 1", "Eating"):
            points = (RNG.normal(size=(5, 32, 3)) * 0.3 + [0, 0, 1]).astype(np.float32)
            world[subject][action] = points
            longer = [*points, points[0]]
            flat[subject][action] = [
                np.float32([[distort(by_hand(p, station), lens) for p in f[list(KEPT)]] for f in longer])
                for lens, station in zip(cameras["intrinsics"], cameras["extrinsics"][subject], strict=True)
            ]  # fmt: skip
    sides = [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]
    metadata = {"layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": sides}
    np.savez_compressed(tmp_path / "data_3d_h36m.npz", positions_3d=np.array(world, dtype=object))
    np.savez_compressed(
        tmp_path / "data_2d_h36m_gt.npz",
        positions_2d=np.array(flat, dtype=object),
        metadata=np.array(metadata),
    )
    return tmp_path, world, flat, metadata


def test_h36m(h36m):
    folder, world, flat, _ = h36m
    paths = folder / "data_3d_h36m.npz", folder / "data_2d_h36m_gt.npz"
    found = load_h36m(*paths)
    assert len(found) == 2 * 3 * 4 and {r.action for r in found} == {"Directions", "Eating"}
    cameras = json.loads(CAMERAS.read_text())
    r = found[4 * 3 + 4 + 2]  # S11, Directions 1, third camera
    assert (r.subject, r.camera, r.size, len(r)) == ("S11", "58860488", (1000, 1000), 5)
    points = world["S11"]["Directions 1"][:, list(KEPT)]
    expected = [[by_hand(p, cameras["extrinsics"]["S11"][2]) for p in f] for f in points]
    torch.testing.assert_close(
        r.pose + r.root[:, None], torch.tensor(np.array(expected)).float(), atol=1e-5, rtol=0
    )
    assert (r.pose[:, 0] == 0).all() and (r.root[:, 2] > 2).all()
    # The pinhole camera sees the undistorted keypoints.
    assert (project(r.pose + r.root[:, None], r.K) - r.keypoints).abs().max() < 0.05
    raw = load_h36m(*paths, undistort=False)[18]
    np.testing.assert_array_equal(raw.keypoints.numpy(), flat["S11"]["Directions 1"][2][:5])
    assert (raw.keypoints - r.keypoints).abs().max() > 0.2


def test_h36m_subsets(h36m):
    paths = h36m[0] / "data_3d_h36m.npz", h36m[0] / "data_2d_h36m_gt.npz"
    kept = load_h36m(*paths, subjects=("S11",), skip_broken=True)
    assert len(kept) == 11  # without Directions by the first camera
    assert sum(r.camera == "54138969" and r.action == "Directions" for r in kept) == 1


def test_h36m_listed_frames(h36m, tmp_path):
    paths = h36m[0] / "data_3d_h36m.npz", h36m[0] / "data_2d_h36m_gt.npz"
    text = tmp_path / "framelist_h36m_hard_subset.txt"
    lines = (
        "/S9/Directions 1.58860488/2.jpg\n/S9/Directions 1.58860488/5.jpg\n/S11/WalkingDog.55011271/4.jpg\n"
    )
    text.write_text(lines + "/S11/Eating.54138969/1.jpg\n")
    listed = read_frame_list(text)
    assert listed[("S11", "WalkDog", "55011271")] == [3]
    found = load_h36m(*paths, listed=listed)  # these files have no dog
    assert [(r.subject, r.action, r.camera, r.frames.tolist()) for r in found] == [
        ("S9", "Directions", "58860488", [1, 4]),
        ("S11", "Eating", "54138969", [0]),
    ]
    whole = load_h36m(*paths, subjects=("S9",))
    assert torch.equal(found[0].pose, whole[4 + 2].pose[[1, 4]])
    text.write_text("/S9/Directions.54138969/6.jpg\n")
    with pytest.raises(UserError, match="frame 5 of S9, Directions by 54138969, which has 5"):
        load_h36m(*paths, listed=read_frame_list(text))
    text.write_text("\n/S9/Directions.54138969/1.jpg\nS9 Directions 3\n")
    with pytest.raises(UserError, match="subset.txt, line 3: 'S9 Directions 3' is not"):
        read_frame_list(text)
    with pytest.raises(UserError, match="cannot read the list"):
        read_frame_list(tmp_path / "none.txt")


def items(n=7):
    """GFPose's layout: a list of single poses, pixels and depth in one array."""
    K = intrinsics(1145.0, 1143.8, 512.5, 515.5)
    points = hp_points(n)
    image = np.concatenate([seen(points, K), points[:, :, 2:] * 0.2], -1)
    camera = {
        "fx": np.float64(1145.0),
        "fy": np.array([1143.8]),
        "cx": 512.5,
        "cy": 515.5,
        "name": "54138969",
    }
    return [
        {"joint_3d_image": i, "joint_3d_camera": p, "camera_param": camera, "box": np.zeros(4),
         "root_depth": p[0, 2], "action": 2 + k % 2}
        for k, (i, p) in enumerate(zip(image, points, strict=True))
    ]  # fmt: skip


def test_h36m_items(tmp_path):
    poses, dets = tmp_path / "h36m_test.pkl", tmp_path / "h36m_sh_dt_ft.pkl"
    found = items()
    poses.write_bytes(pickle.dumps(found))
    detected = RNG.normal(size=(7, 17, 3)) * 100 + 500
    dets.write_bytes(pickle.dumps({"test": {"joint3d_image": detected}, "train": {}}))
    first, second = load_h36m_items(poses, every=3)  # items 0, 3 and 6, actions 2, 3, 2
    assert (first.action, first.frames.tolist()) == ("action 2", [0, 6])
    assert (second.action, second.frames.tolist()) == ("action 3", [3])
    expected = torch.tensor(found[6]["joint_3d_camera"]) / 1000
    torch.testing.assert_close(first.pose[1] + first.root[1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        project(first.pose + first.root[:, None], first.K), first.keypoints, atol=1e-2, rtol=0
    )
    first, _ = load_h36m_items(poses, dets, every=3)
    np.testing.assert_allclose(first.keypoints[1], detected[6, :, :2], rtol=1e-5)
    dets.write_bytes(pickle.dumps({"test": {"joint3d_image": detected[:5]}}))
    with pytest.raises(UserError, match="has 5 poses, .*has 7"):
        load_h36m_items(poses, dets)
    dets.write_bytes(pickle.dumps({"train": {}}))
    with pytest.raises(UserError, match="h36m_sh_dt_ft.pkl has no 'test'; it has 'train'"):
        load_h36m_items(poses, dets)
    del found[3]["joint_3d_camera"]
    poses.write_bytes(pickle.dumps(found))
    with pytest.raises(UserError, match="h36m_test.pkl, item 3 has no 'joint_3d_camera'"):
        load_h36m_items(poses, every=3)
    poses.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="must be a list of poses, not dict"):
        load_h36m_items(poses)


def test_h36m_names_what_is_missing(h36m):
    folder, world, flat, metadata = h36m
    poses, keypoints = folder / "data_3d_h36m.npz", folder / "data_2d_h36m_gt.npz"
    with pytest.raises(UserError, match="no 'S5'; it has 'S9', 'S11'"):
        load_h36m(poses, keypoints, subjects=("S5",))

    def rewritten(**changes):
        arrays = {"positions_2d": flat, "metadata": metadata} | changes
        np.savez(keypoints, **{k: np.array(v, dtype=object) for k, v in arrays.items() if v})

    rewritten(metadata=None)
    with pytest.raises(UserError, match="no 'metadata'"):
        load_h36m(poses, keypoints)
    rewritten(metadata={"num_joints": 16})
    with pytest.raises(UserError, match="16 joints"):
        load_h36m(poses, keypoints)
    rewritten(positions_2d=flat | {"S11": {"Eating": flat["S11"]["Eating"]}})
    with pytest.raises(UserError, match="S11 has no 'Directions'"):
        load_h36m(poses, keypoints)
    rewritten(positions_2d=flat | {"S9": {a: [v[:3] for v in views] for a, views in flat["S9"].items()}})
    with pytest.raises(UserError, match="3 frames for 5 poses"):
        load_h36m(poses, keypoints)
    rewritten(positions_2d=flat | {"S9": {a: views[:3] for a, views in flat["S9"].items()}})
    with pytest.raises(UserError, match="3 cameras"):
        load_h36m(poses, keypoints)
