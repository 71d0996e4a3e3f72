"""The network over rotations: its size, its features, and what turning the camera does."""

import pytest
import torch
from stand_ins.seen_people import network, normal, people, turned_motion
from stand_ins.small_motion import small_motion

from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.data.synthesis import posed
from dd3g.pose.networks.rotation_denoiser import (
    KEYPOINT_FEATURES,
    STATE,
    Condition,
    RotationConfig,
    RotationDenoiser,
    keypoint_condition,
    look_at,
)
from dd3g.pose.training import train_recovery


def test_parameter_count_of_the_published_network():
    model = RotationDenoiser(RotationConfig("features", 3072, 1024))
    assert sum(p.numel() for p in model.parameters()) == 11_307_024
    out = model(normal(2, STATE), torch.tensor([3, 900]), Condition(normal(2, 128, 24)))
    assert out.shape == (2, STATE)


def test_turning_the_camera_turns_the_answer():
    model, x, t = network(), normal(3, STATE), torch.tensor([5, 300, 900])
    features, turn = normal(3, KEYPOINT_FEATURES), axis_angle_to_matrix(normal(3, 3))
    view = axis_angle_to_matrix(normal(3, 3, seed=4))
    turned = x.clone()
    turned[:, :3] = (turn @ x[:, :3, None])[..., 0]
    turned[:, 3:6] = (turn @ x[:, 3:6, None])[..., 0]
    here = model(x, t, Condition(features, view))
    there = model(turned, t, Condition(features, view @ turn.transpose(1, 2)))
    assert torch.allclose(there[:, 6:], here[:, 6:], atol=1e-5)
    assert torch.allclose(there[:, :3], (turn @ here[:, :3, None])[..., 0], atol=1e-5)
    assert torch.allclose(there[:, 3:6], (turn @ here[:, 3:6, None])[..., 0], atol=1e-5)


def test_features_do_not_depend_on_the_camera():
    rotations, evidence, condition = people(3)
    # Another focal length, principal point and picture size show the same rays.
    A = torch.tensor([[0.5, 0, 40], [0, 0.7, -30], [0, 0, 1]])
    keypoints = evidence.keypoints @ A[:2, :2].T + A[:2, 2]
    other = keypoint_condition(keypoints, evidence.confidence, A @ evidence.K)
    assert torch.allclose(other.features, condition.features, atol=1e-4)
    # A camera that looks aside sees the person elsewhere; features stay up to a roll about the optical axis.
    aside = axis_angle_to_matrix(torch.tensor([0.0, 0.3, 0.0]))
    points = (default_body().points(rotations, evidence.betas) + torch.tensor([0.0, 0, 3])) @ aside.T
    moved = keypoint_condition(project(points, evidence.K), evidence.confidence, evidence.K)
    assert torch.allclose(moved.features, condition.features, atol=0.02)
    assert torch.allclose(moved.view @ aside, condition.view, atol=0.02)


def test_a_missing_keypoint_is_not_looked_at():
    _, evidence, _ = people(2)
    confidence = evidence.confidence.clone()
    confidence[:, 5] = 0
    spoiled = evidence.keypoints.clone()
    spoiled[:, 5] = float("nan")
    a = keypoint_condition(evidence.keypoints, confidence, evidence.K)
    b = keypoint_condition(spoiled, confidence, evidence.K)
    assert torch.equal(a.features, b.features) and torch.equal(a.view, b.view)
    nothing = keypoint_condition(spoiled, torch.zeros(2, 17), evidence.K)
    assert nothing.features.isfinite().all()
    assert torch.allclose(nothing.view, torch.eye(3).expand(2, 3, 3))


def test_looking_at_something_puts_it_on_the_axis():
    direction = normal(20, 3) * torch.tensor([1.0, 1, 0.1]) + torch.tensor([0.0, 0, 2])
    R = look_at(direction)
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3).expand(20, 3, 3), atol=1e-6)
    ahead = (R @ direction[..., None])[..., 0]
    assert torch.allclose(ahead[:, :2], torch.zeros(20, 2), atol=1e-5) and (ahead[:, 2] > 0).all()


def test_posed_motion_wears_the_body():
    motion, rows = turned_motion(8), torch.tensor([5, 1])
    betas = normal(2, 10)
    frames = posed(motion, rows, default_body(), betas)
    expected = default_body().points(axis_angle_to_matrix(motion.rotations[rows]), betas)
    assert torch.equal(frames.joints, expected) and len(frames) == 2


def test_training_again_gives_the_same_network_and_its_folder_loads(tmp_path):
    config = RotationConfig(condition=8, hidden=16, blocks=1)
    whole = train_recovery(turned_motion(8), tmp_path / "a", config=config, steps=6, batch=4)
    train_recovery(turned_motion(8), tmp_path / "b", config=config, steps=6, batch=4)
    again = RotationDenoiser.from_pretrained(tmp_path / "b")
    assert again.config == config
    for name, value in whole.state_dict().items():
        assert torch.allclose(again.state_dict()[name], value, atol=1e-3), name
    with pytest.raises(UserError, match="no joint|has none"):
        train_recovery(small_motion(8), tmp_path / "c", config=config, steps=1)
    with pytest.raises(UserError, match="cannot be made from motion"):
        train_recovery(turned_motion(8), tmp_path / "d", config=RotationConfig("features", 8, 8), steps=1)
