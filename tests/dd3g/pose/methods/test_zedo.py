import math

import pytest
import torch

from dd3g.pose.body.geometry import axis_angle_to_matrix, project, solve_translation
from dd3g.pose.methods.zedo import _level, foot, place, zedo
from dd3g.pose.networks.prior import Prior, PriorConfig

K = torch.tensor([[1000.0, 0, 500], [0, 1000.0, 500], [0, 0, 1]])
ROOT = torch.tensor([[0.1, -0.2, 4.0]])


def _pose(seed: int = 0) -> torch.Tensor:
    pose = 0.3 * torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(seed))
    return pose - pose[:, :1]


def test_foot_is_the_nearest_point_of_the_ray():
    ray, point = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 0.7, 3.0])
    along = torch.linspace(0, 6, 60_001)[:, None] * ray
    nearest = along[(along - point).norm(dim=-1).argmin()]
    assert torch.allclose(foot(point, ray), nearest, atol=2e-4)


def test_placing_finds_turn_and_distance():
    pose = _pose()
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.5, 0.0]))
    keypoints = project(pose + ROOT[:, None], K)
    found, T = place(pose @ turn.T, keypoints, torch.ones(1, 17), K[None])
    assert torch.allclose(found, pose, atol=0.05)
    assert float(T[0, 2]) == pytest.approx(4.0, abs=0.15)


def test_levels_have_the_noise_of_the_sub_vp_equation():
    schedule = Prior(PriorConfig(width=64)).schedule
    # std / alpha at time 0.1 is 0.1095
    level = _level(schedule, 0.1)
    ab = float(schedule.alpha_bar[level])
    assert math.sqrt((1 - ab) / ab) == pytest.approx(0.1095, rel=0.02)
    assert _level(schedule, 0.01) == 0


def test_the_root_is_held_for_a_fifth_of_the_way_and_then_solved_for(monkeypatch):
    found = []

    def solve(*arguments):
        found.append(solve_translation(*arguments))
        return found[-1]

    monkeypatch.setattr("dd3g.pose.methods.zedo.solve_translation", solve)
    prior = Prior(PriorConfig(width=64, time_width=16, blocks=1)).eval()
    keypoints = project(_pose() + ROOT[:, None], K)
    zedo(prior, keypoints, torch.ones(1, 17), K, 2, iterations=10, fit_iterations=1)
    assert len(found) == 8 and found[0].shape == (2, 3)


def test_joints_end_on_their_rays_and_hypotheses_keep_their_own_depth():
    prior = Prior(PriorConfig(width=64, time_width=16, blocks=1)).eval()
    pose = _pose()
    keypoints = project(pose + ROOT[:, None], K)
    confidence = torch.ones(1, 17)
    found = zedo(prior, keypoints, confidence, K, 6, iterations=100, fit_iterations=100)
    points = project(found.poses + found.translation[:, :, None], K)
    assert float((points - keypoints[:, None]).norm(dim=-1).mean()) < 5
    assert float(found.poses[..., 2].std(1).mean()) > 0.05
    again = zedo(prior, keypoints, confidence, K, 6, iterations=100, fit_iterations=100)
    assert torch.equal(found.poses, again.poses)


def test_unseen_joints_do_not_move_to_their_keypoints():
    prior = Prior(PriorConfig(width=64, time_width=16, blocks=1)).eval()
    pose = _pose()
    keypoints = project(pose + ROOT[:, None], K)
    confidence = torch.ones(1, 17)
    confidence[0, 13] = 0
    moved = keypoints.clone()
    moved[0, 13] = 1e4
    options = {"iterations": 50, "fit_iterations": 50, "starts": _pose(1)}
    a = zedo(prior, keypoints, confidence, K, 1, **options)
    b = zedo(prior, moved, confidence, K, 1, **options)
    assert torch.allclose(a.poses, b.poses, atol=1e-5)
