from __future__ import annotations

import torch
from stand_ins.small_motion import STANDING

from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.body.skeletons import H36M_17, flip
from dd3g.pose.data import synthesis
from dd3g.pose.data.motion import Motion
from dd3g.pose.data.synthesis import Views, detect, normal, synthesise, uniform


def motion(frames=6):
    g = torch.Generator().manual_seed(0)
    joints = STANDING + 0.02 * torch.randn(frames, 17, 3, generator=g)
    joints[:, 0] = 0
    root = torch.randn(frames, 3, generator=g)
    return Motion(
        joints,
        root,
        torch.arange(frames) * 2 // frames,
        ["walk", "run"],
        ["1", "2"],
        0.1 * torch.randn(frames, 24, 3, generator=g),
        torch.ones(frames, dtype=torch.bool),
    )


def same(a: Views, b: Views, rows=slice(None)) -> bool:
    names = ("pose", "root", "K", "keypoints", "confidence", "rotations", "world_to_camera")
    return all(torch.equal(getattr(a, n)[rows], getattr(b, n)) for n in names)


def test_views_depend_on_seed_and_index_alone():
    indices = torch.arange(40)
    whole = synthesise(motion(), indices, 3)
    assert same(whole, synthesise(motion(), indices[13:29], 3), slice(13, 29))
    assert same(whole, synthesise(motion(), indices.flip(0), 3), torch.arange(39, -1, -1))
    assert not torch.equal(whole.pose, synthesise(motion(), indices, 4).pose)


def test_pinned_draws():
    found = uniform(1, 2, torch.tensor([3, 4]), 3)
    assert [[round(v, 6) for v in row] for row in found.tolist()] == PINNED
    far = uniform(0, 0, torch.arange(20_000), 10)
    assert 0 < far.min() and far.max() < 1
    assert abs(far.mean() - 0.5) < 0.003 and abs(far.std() - 12**-0.5) < 0.003
    assert torch.corrcoef(far.T).fill_diagonal_(0).abs().max() < 0.03
    assert abs(normal(0, 0, torch.arange(20_000), 10).std() - 1) < 0.005


PINNED = [[0.617157, 0.357661, 0.516622], [0.641944, 0.675096, 0.275979]]


def test_cameras_turn_the_body_and_bones_stay_in_range():
    m = motion()
    indices = torch.arange(600)
    v = synthesise(m, indices, 0, mirror=False)
    R = v.world_to_camera
    torch.testing.assert_close(R @ R.transpose(-1, -2), torch.eye(3).expand_as(R), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(600), atol=1e-5, rtol=0)
    plain = synthesise(m, indices, 0, mirror=False, bones=0)
    torch.testing.assert_close(plain.pose, m.joints[indices % 6] @ R.transpose(-1, -2))
    for parent, child in H36M_17.bones:
        true = (plain.pose[:, child] - plain.pose[:, parent]).norm(dim=-1)
        ratio = (v.pose[:, child] - v.pose[:, parent]).norm(dim=-1) / true
        assert 0.85**2 < ratio.min() < 0.8 and 1.2 < ratio.max() < 1.15**2
    ratios = [
        (v.pose[:, c] - v.pose[:, p]).norm(dim=-1) / (plain.pose[:, c] - plain.pose[:, p]).norm(dim=-1)
        for p, c in ((4, 5), (1, 2))
    ]
    torch.testing.assert_close(*ratios)


def test_people_are_in_the_picture_upright_and_seen_from_all_sides():
    v = synthesise(motion(), torch.arange(2000), 1)
    assert (v.root[:, 2] >= 2).all() and (v.pose[:, 10, 1] < v.pose[:, 0, 1]).all()
    inside = ((v.points > 0) & (v.points < 1000)).all(-1)
    assert inside.float().mean() > 0.97
    facing = torch.linalg.cross(v.pose[:, 4] - v.pose[:, 1], -v.pose[:, 8])[:, 2]
    assert 0.45 < (facing > 0).float().mean() < 0.55
    torch.testing.assert_close(v.points, project(v.pose + v.root[:, None], v.K))


def test_mirroring_halves_and_mirrors_rotations_alike():
    m, indices = motion(), torch.arange(400)
    v = synthesise(m, indices, 0, bones=0)
    world = v.pose @ v.world_to_camera  # R^T p
    plain = m.joints[indices % 6]
    mirrored = torch.isclose(world, flip(plain), atol=1e-5).all(-1).all(-1)
    straight = torch.isclose(world, plain, atol=1e-5).all(-1).all(-1)
    assert (mirrored ^ straight).all() and 0.4 < mirrored.float().mean() < 0.6
    S = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    left_hip, right_hip = (axis_angle_to_matrix(m.rotations[indices % 6, j]) for j in (1, 2))
    shown = axis_angle_to_matrix(v.rotations[:, 1])
    torch.testing.assert_close(shown[mirrored], (S @ right_hip @ S)[mirrored])
    torch.testing.assert_close(shown[straight], left_hip[straight])
    root = axis_angle_to_matrix(m.rotations[indices % 6, 0])
    expected = torch.where(mirrored[:, None, None], S @ root @ S, root)
    shown = axis_angle_to_matrix(v.rotations[:, 0])
    torch.testing.assert_close(shown, v.world_to_camera @ expected, atol=1e-5, rtol=0)


def test_views_of_one_instant_share_the_body():
    m, indices = motion(), torch.arange(50)
    a, b = (synthesise(m, indices, 0, view=k) for k in (0, 1))
    torch.testing.assert_close(a.pose @ a.world_to_camera, b.pose @ b.world_to_camera, atol=1e-5, rtol=0)
    assert torch.equal(a.rotations[:, 1:], b.rotations[:, 1:])
    assert (a.world_to_camera - b.world_to_camera).abs().amax((1, 2)).min() > 1e-3


def test_a_steady_camera_sees_the_clip_move():
    m = motion()
    v = synthesise(m, torch.arange(6), 0, steady=True, mirror=False)
    for rows in (slice(0, 3), slice(3, 6)):
        assert (v.K[rows] == v.K[rows][0]).all()
        assert (v.world_to_camera[rows] == v.world_to_camera[rows][0]).all()
        moved = (v.root[rows] - v.root[rows][0]) @ v.world_to_camera[rows][0]
        torch.testing.assert_close(moved, m.root[rows] - m.root[rows][0], atol=1e-5, rtol=0)
    assert not torch.equal(v.K[0], v.K[3]) and (v.root[:, 2] > 2).all()


def test_detector_noise_is_as_stated():
    points = torch.full((4000, 17, 2), 250.0)
    keypoints, confidence = detect(points, (500, 500), 0, torch.arange(4000))
    missing, guessed = confidence == 0, (confidence > 0) & (confidence < 0.6)
    seen = confidence >= 0.6
    assert abs(missing.float().mean() - 0.05) < 0.004 and abs(guessed.float().mean() - 0.05) < 0.004
    assert (keypoints[missing] == 0).all()
    assert abs((keypoints - points)[seen].std() - 2.5) < 0.03  # 5 px at 1000 px
    assert abs((keypoints - points)[guessed].std() - 20) < 1
    outside, confidence = detect(points - 251, (500, 500), 0, torch.arange(4000))
    assert (confidence == 0).all() and (outside == 0).all()
    exact, confidence = detect(points, (500, 500), 0, torch.arange(4000), sigma=0, occluded=0)
    assert torch.equal(exact, points) and (confidence >= 0.6).all()


def test_no_draw_is_0_or_1(monkeypatch):
    for bits in (0, -1):
        monkeypatch.setattr(synthesis, "_mix", lambda x, bits=bits: torch.full_like(x, bits))
        u = uniform(0, 1, torch.arange(3), 4)
        assert (u > 0).all() and (u < 1).all() and normal(0, 1, torch.arange(3), 4).isfinite().all()
