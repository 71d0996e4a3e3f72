"""Public data sets of poses, written here in their published layouts and read back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from stand_ins.made_up_people import hp_points, seen

from dd3g.errors import UserError
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.data.mpi3dhp import TO_H36M, load_3dhp_npz, load_3dhp_pair, load_3dhp_test
from dd3g.pose.data.recording import fit_intrinsics, intrinsics
from dd3g.pose.data.scorehmr import full_frame_translation, load_annotations, load_predictions, load_tracks
from dd3g.pose.data.threedpw import load_3dpw

RNG = np.random.default_rng(0)


def test_3dhp_test_set(tmp_path):
    h5py = pytest.importorskip("h5py")
    points = hp_points(6)
    K = intrinsics(1683.6, 1672.3, 939.9, 560.2)
    folder = tmp_path / "TS5"
    folder.mkdir()
    with h5py.File(folder / "annot_data.mat", "w") as file:
        file["annot3"], file["univ_annot3"] = points[:, None].astype(float), points[:, None] * 1.1
        file["annot2"] = seen(points, K)[:, None].astype(float)
        file["valid_frame"] = np.array([[1], [0], [1], [1], [1], [0]], dtype=float)
        file["activity_annotation"] = np.array([[1], [1], [2], [1], [2], [2]], dtype=float)
    found = load_3dhp_test(tmp_path)
    assert [(r.action, r.frames.tolist()) for r in found] == [("activity 1", [0, 3]), ("activity 2", [2, 4])]
    r = found[0]
    assert (r.subject, r.size) == ("TS5", (1920, 1080)) and torch.equal(r.K, K)
    # pelvis is joint 14, the right ankle 10, the head's top 0, the head 16
    house = torch.from_numpy(points) / 1000
    torch.testing.assert_close(r.root, house[[0, 3], 14])
    for joint, theirs in {3: 10, 10: 0, 9: 16, 8: 1, 11: 5}.items():
        torch.testing.assert_close(r.pose[:, joint] + r.root, house[[0, 3], theirs])
    torch.testing.assert_close(project(r.pose + r.root[:, None], r.K), r.keypoints, atol=1e-2, rtol=0)
    universal = load_3dhp_test(tmp_path, universal=True)[0]
    torch.testing.assert_close(universal.pose, 1.1 * r.pose)
    with h5py.File(folder / "annot_data.mat", "a") as file:
        del file["valid_frame"]
    with pytest.raises(UserError, match="no valid_frame; it has activity_annotation, annot2"):
        load_3dhp_test(tmp_path)
    (folder / "annot_data.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(UserError, match="not a MATLAB 7.3 file"):
        load_3dhp_test(tmp_path)
    with pytest.raises(UserError, match="TS1/annot_data.mat"):
        load_3dhp_test(folder)


@pytest.mark.parametrize("relative", [True, False])
def test_3dhp_npz_pair(tmp_path, relative):
    points = hp_points(30)
    K = intrinsics(1497.7, 1497.1, 1024.7, 1052.0)
    stored = points.copy()
    if relative:
        others = [j for j in range(17) if j != 14]
        stored[:, others] -= stored[:, 14:15]
    train = {"S1 Seq1": [{"0": {"data_3d": stored, "data_2d": seen(points, K)}}]}
    outdoor = intrinsics(1683.6, 1672.3, 939.9, 560.2)
    valid = np.arange(30) % 3 > 0
    test = {"TS6": {"data_3d": stored, "data_2d": seen(points, outdoor), "valid": valid}}
    np.savez(tmp_path / "data_train_3dhp.npz", data=np.array(train, dtype=object))
    np.savez(tmp_path / "data_test_3dhp.npz", data=np.array(test, dtype=object))
    (r,) = load_3dhp_npz(tmp_path / "data_train_3dhp.npz")
    assert (r.subject, r.action, r.camera, r.size) == ("S1", "Seq1", "0", (2048, 2048))
    torch.testing.assert_close(r.K, K, atol=0.05, rtol=0)
    torch.testing.assert_close(
        r.pose + r.root[:, None], torch.from_numpy(points[:, list(TO_H36M)]) / 1000, atol=1e-5, rtol=0
    )
    (r,) = load_3dhp_npz(tmp_path / "data_test_3dhp.npz")
    assert len(r) == 20 and r.size == (1920, 1080) and r.frames[:3].tolist() == [1, 2, 4]
    torch.testing.assert_close(project(r.pose + r.root[:, None], r.K), r.keypoints, atol=1e-2, rtol=0)
    del test["TS6"]["valid"]
    np.savez(tmp_path / "data_test_3dhp.npz", data=np.array(test, dtype=object))
    with pytest.raises(UserError, match="TS6 has no 'valid'; it has 'data_3d', 'data_2d'"):
        load_3dhp_npz(tmp_path / "data_test_3dhp.npz")


def pair(folder, poses, keypoints):
    """PRPose's layout."""
    np.savez(folder / "data_3d_3dhp.npz", positions_3d=np.array(poses, dtype=object))
    np.savez(folder / "data_2d_3dhp_gt.npz", positions_2d=np.array(keypoints, dtype=object))
    return folder / "data_3d_3dhp.npz", folder / "data_2d_3dhp_gt.npz"


def test_3dhp_pair(tmp_path):
    house = [hp_points(n)[:, list(TO_H36M)] / 1000 for n in (4, 5, 30, 20)]
    lenses = [
        intrinsics(1503.75, 1501.30, 1015.23, 1038.68),  # TS2
        intrinsics(1683.6, 1672.3, 939.9, 560.2),  # TS6
        intrinsics(1497.7, 1497.1, 1024.7, 1052.0),
        intrinsics(1494.2, 1494.0, 1030.0, 1050.1),
    ]
    flat = [seen(p, K) for p, K in zip(house, lenses, strict=True)]
    longer = np.concatenate([flat[1], flat[1][:1]])
    poses = {"TS2": {"Seq1": [house[0]]}, "TS6": {"Seq1": [house[1]]}, "S1": {"Seq2": house[2:]}}
    keypoints = {"TS2": {"Seq1": [flat[0]]}, "TS6": {"Seq1": [longer]}, "S1": {"Seq2": flat[2:]}}
    paths = pair(tmp_path, poses, keypoints)
    first, second = load_3dhp_pair(*paths, subjects=("TS2", "TS6"))
    assert (first.subject, first.action, first.camera, first.size) == ("TS2", "Seq1", "0", (2048, 2048))
    assert len(second) == 5 and second.size == (1920, 1080) and torch.equal(second.K, lenses[1])
    torch.testing.assert_close(first.pose + first.root[:, None], torch.from_numpy(house[0]))
    assert (first.pose[:, 0] == 0).all()
    np.testing.assert_array_equal(second.keypoints, flat[1])
    cameras = load_3dhp_pair(*paths, subjects=("S1",))
    assert [r.camera for r in cameras] == ["0", "1"]
    torch.testing.assert_close(cameras[1].K, lenses[3], atol=0.1, rtol=0)

    with pytest.raises(UserError, match="data_3d_3dhp.npz, positions_3d has no 'TS1'"):
        load_3dhp_pair(*paths)
    with pytest.raises(UserError, match="data_2d_3dhp_gt.npz, TS2 has no 'Seq1'; it has 'Seq9'"):
        load_3dhp_pair(*pair(tmp_path, poses, keypoints | {"TS2": {"Seq9": [flat[0]]}}), subjects=("TS2",))
    with pytest.raises(UserError, match="TS2, Seq1, camera 0 has 3 frames for 4 poses"):
        load_3dhp_pair(
            *pair(tmp_path, poses, keypoints | {"TS2": {"Seq1": [flat[0][:3]]}}), subjects=("TS2",)
        )
    with pytest.raises(UserError, match="S1, Seq2 has 1 cameras for 2 of poses"):
        load_3dhp_pair(*pair(tmp_path, poses, keypoints | {"S1": {"Seq2": flat[2:3]}}), subjects=("S1",))
    with pytest.raises(UserError, match=r"TS2, Seq1, camera 0 must have the shape \(N, 17, 3\)"):
        load_3dhp_pair(*pair(tmp_path, {"TS2": {"Seq1": [house[0][:, :16]]}}, keypoints), subjects=("TS2",))
    relative = {"S1": {"Seq2": [p - p[:, :1] for p in house[2:]]}}
    with pytest.raises(UserError, match="S1, Seq2, camera 0: the pelvis has no depth"):
        load_3dhp_pair(*pair(tmp_path, relative, keypoints), subjects=("S1",))
    np.savez(paths[1], data=1)
    with pytest.raises(UserError, match="data_2d_3dhp_gt.npz has no 'positions_2d'; it has data"):
        load_3dhp_pair(*paths, subjects=("TS2",))


def test_intrinsics_are_found_again():
    K = intrinsics(1500.0, 1490.0, 1020.0, 1040.0)
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0, 0, 5.0])
    torch.testing.assert_close(fit_intrinsics(points, project(points, K)), K, atol=1e-2, rtol=0)


def sequence(n=4):
    """3DPW's layout, two people."""
    R = axis_angle_to_matrix(torch.tensor([np.pi, 0.1, 0.0])).numpy()
    cam = np.tile(np.eye(4), (n, 1, 1))
    cam[:, :3, :3], cam[:, :3, 3] = R, [0.1, 0.2, 4.0]
    people = range(2)
    return {
        "sequence": "downtown_walking_00",
        "poses": [RNG.normal(size=(n, 72)) for _ in people],
        "betas": [RNG.normal(size=300) for _ in people],
        "trans": [RNG.normal(size=(n, 3)) for _ in people],
        "jointPositions": [RNG.normal(size=(n, 72)) * 0.3 for _ in people],
        "poses2d": [np.abs(RNG.normal(size=(n, 3, 18))) + 0.1 for _ in people],
        "img_frame_ids": np.arange(n) * 2,
        "cam_poses": cam,
        "cam_intrinsics": np.array([[1961.9, 0, 540.0], [0, 1969.2, 960.0], [0, 0, 1]]),
        "campose_valid": [np.array([1, 0, 1, 1]), np.ones(4)],
        "genders": ["m", "f"],
        "texture_maps": [],
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_3dpw(tmp_path, protocol):
    data = sequence()
    (tmp_path / "downtown_walking_00.pkl").write_bytes(pickle.dumps(data, protocol))
    first, second = load_3dpw(tmp_path)
    assert first.frames.tolist() == [0, 4, 6] and len(second) == 4 and first.size == (1080, 1920)
    assert first.subject == "downtown_walking_00-0" and first.action == "downtown_walking_00"
    R, t = data["cam_poses"][0, :3, :3], data["cam_poses"][0, :3, 3]
    joints = data["jointPositions"][0].reshape(4, 24, 3)[2] @ R.T + t
    for house, smpl in {0: 0, 1: 2, 6: 7, 8: 12, 13: 20}.items():
        np.testing.assert_allclose((first.pose[1, house] + first.root[1]).numpy(), joints[smpl], atol=1e-5)
    # OpenPose's fifth point is the right wrist, H36M's last joint.
    np.testing.assert_allclose(first.keypoints[0, 16], data["poses2d"][0][0, :2, 4], rtol=1e-6)
    np.testing.assert_allclose(first.confidence[0, 16], data["poses2d"][0][0, 2, 4], rtol=1e-6)
    turn = axis_angle_to_matrix(first.rotations[0, 0]).double()
    expected = R @ axis_angle_to_matrix(torch.tensor(data["poses"][0][0, :3])).numpy()
    np.testing.assert_allclose(turn.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(first.rotations[0, 1:].flatten(), data["poses"][0][0, 3:], rtol=1e-5)


@pytest.mark.parametrize("key", ["campose_valid", "jointPositions", "cam_intrinsics"])
def test_3dpw_names_what_is_missing(tmp_path, key):
    data = sequence()
    del data[key]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(UserError, match=f"a.pkl has no '{key}'"):
        load_3dpw(tmp_path / "a.pkl")
    with pytest.raises(UserError, match="no .pkl"):
        load_3dpw(_empty(tmp_path))


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def annotation(n=3):
    return {
        "imgname": np.array([f"img/{i}.jpg" for i in range(n)]),
        "center": RNG.normal(size=(n, 2)) + 500,
        "scale": np.array([[200.0, 300.0]] * n),
        "body_pose": RNG.normal(size=(n, 72)),
        "has_body_pose": np.array([1.0, 0.0, 1.0]),
        "betas": RNG.normal(size=(n, 10)),
        "has_betas": np.ones(n),
        "body_keypoints_2d": RNG.normal(size=(n, 25, 3)),
        "extra_keypoints_2d": RNG.normal(size=(n, 19, 3)),
        "body_keypoints_3d": np.ones((n, 25, 4)),
    }


def test_scorehmr_annotations(tmp_path):
    data = annotation()
    np.savez(tmp_path / "3dpw_test.npz", **data)
    found = load_annotations(tmp_path / "3dpw_test.npz")
    assert len(found) == 3 and found.imgname[1] == "img/1.jpg" and found.scale.tolist() == [300.0] * 3
    assert found.has_rotations.tolist() == [True, False, True] and found.keypoints_2d.shape == (3, 44, 3)
    np.testing.assert_allclose(found.keypoints_2d[:, 25:], data["extra_keypoints_2d"], rtol=1e-6)
    confidence = found.keypoints_3d[0, :, 3].tolist()
    assert confidence == [1.0] + [0.0] * 14 + [1.0] * 10 + [0.0] * 19  # limbs distrusted, extra missing
    expected = axis_angle_to_matrix(torch.tensor(data["body_pose"][0, 3:6]).float())
    torch.testing.assert_close(found.rotations[0, 1], expected)
    del data["center"]
    np.savez(tmp_path / "3dpw_test.npz", **data)
    with pytest.raises(UserError, match="3dpw_test.npz has no 'center'"):
        load_annotations(tmp_path / "3dpw_test.npz")


def test_scorehmr_tracks(tmp_path):
    (tmp_path / "3dpw_test_video.pkl").write_bytes(pickle.dumps([annotation(2 + 1), annotation()]))
    found = load_tracks(tmp_path / "3dpw_test_video.pkl")
    assert len(found) == 2 and len(found[0]) == 3
    broken = annotation()
    broken["betas"] = broken["betas"][:, :9]
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([annotation(), broken]))
    with pytest.raises(UserError, match=r"track 1, betas must have the shape \(3, 10\), but has \(3, 9\)"):
        load_tracks(tmp_path / "b.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"imgname": 1}))
    with pytest.raises(UserError, match="list of tracks, not dict"):
        load_tracks(tmp_path / "b.pkl")


def test_scorehmr_predictions(tmp_path):
    arrays = {
        "pred_pose": np.tile(np.eye(3), (2, 24, 1, 1)),
        "pred_betas": np.zeros((2, 10)),
        "pred_cam": np.array([[0.9, 0.1, -0.2]] * 2),
    }
    np.savez(tmp_path / "hmr2.npz", **arrays, pred_cam_t=np.ones((2, 3)))
    plain = load_predictions(tmp_path / "hmr2.npz")
    assert plain.pose_features is None and plain.translation.shape == (2, 3) and len(plain) == 2
    features = RNG.normal(size=(2, 128, 24))
    np.savez(tmp_path / "pare.npz", **arrays, pose_feats=features, cam_shape_feats=np.zeros((2, 64, 24)))
    pare = load_predictions(tmp_path / "pare.npz")
    assert pare.pose_features.shape == (2, 3072) and pare.shape_features.shape == (2, 1536)
    np.testing.assert_allclose(pare.pose_features[1, 24:48], features[1, 1], rtol=1e-6)
    del arrays["pred_cam"]
    np.savez(tmp_path / "hmr2.npz", **arrays)
    with pytest.raises(UserError, match="no 'pred_cam'"):
        load_predictions(tmp_path / "hmr2.npz")


def test_crop_camera_to_full_picture():
    found = full_frame_translation(
        torch.tensor([[0.8, 0.1, -0.2]]), torch.tensor([[700.0, 300.0]]), torch.tensor([250.0]),
        torch.tensor([[1000.0, 800.0]]), 5000.0,
    )  # fmt: skip
    expected = [0.1 + 2 * (700 - 500) / 200, -0.2 + 2 * (300 - 400) / 200, 2 * 5000 / 200]
    torch.testing.assert_close(found, torch.tensor([expected]))
