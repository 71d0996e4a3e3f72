import math
from dataclasses import replace

import pytest
import torch

from dd3g.pose.body.geometry import project
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.detection.people import heatmaps_from_keypoints
from dd3g.pose.methods.guided_energies import (
    BoneLength,
    HeatmapNLL,
    Keypoint2D,
    Known3D,
    Smooth,
    bone_lengths,
    keypoint_noise,
)

K = torch.tensor([[900.0, 0, 480], [0, 950.0, 520], [0, 0, 1]])
B, M = 2, 3
ROOT = torch.tensor([[0.2, -0.1, 4.0], [-0.3, 0.2, 5.0]])


def _poses(n: int = B * M, seed: int = 0) -> torch.Tensor:
    poses = 0.3 * torch.randn(n, 17, 3, generator=torch.Generator().manual_seed(seed))
    return poses - poses[:, :1]


def _keypoints(noise: float = 8.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return project(_poses()[::M] + ROOT[:, None], K) + noise * torch.randn(B, 17, 2, generator=g)


CONFIDENCE = torch.linspace(0.0, 1.0, 17).expand(B, 17)


def test_keypoint_energy_equals_a_loop():
    spread, sigma = torch.linspace(0.0, 0.04, 17), torch.tensor([4.0, 6.0])
    keypoints, poses = _keypoints(), _poses()
    energy = Keypoint2D(keypoints=keypoints, confidence=CONFIDENCE, K=K, sigma=sigma, translation=ROOT).at(
        spread
    )(poses)
    for n in range(B * M):
        b, total = n // M, 0.0
        for j in range(17):
            if j == 0:
                continue  # not seen
            width = (sigma[b] / CONFIDENCE[b, j]) ** 2 + (900 * spread[j] / ROOT[b, 2]) ** 2
            x, y, z = (poses[n, j] + ROOT[b]).tolist()
            dx, dy = 900 * x / z + 480 - keypoints[b, j, 0], 950 * y / z + 520 - keypoints[b, j, 1]
            q = (dx**2 + dy**2) / width
            total += q / (2 + 2 * q / 400)
        assert float(energy[n]) == pytest.approx(float(total), rel=1e-4)


def test_an_outlier_pulls_less_than_a_near_miss_and_without_a_limit_it_is_least_squares():
    pose = _poses(1).requires_grad_()
    truth = project(pose.detach() + ROOT[:1], K)
    pulls = {}
    for away in (10.0, 1000.0):
        keypoints = truth.clone()
        keypoints[0, 5, 0] += away
        for outlier in (20.0, 1e6):
            energy = Keypoint2D(
                keypoints=keypoints, confidence=torch.ones(1, 17), K=K, translation=ROOT[:1], outlier=outlier
            )
            (gradient,) = torch.autograd.grad(energy(pose).sum(), pose)
            pulls[away, outlier] = float(gradient[0, 5].norm())
    assert pulls[1000.0, 20.0] < 0.02 * pulls[10.0, 20.0]
    assert pulls[1000.0, 1e6] == pytest.approx(100 * pulls[10.0, 1e6], rel=1e-4)


def test_translation_is_solved_per_pose_or_taken_as_given():
    poses = _poses()
    keypoints = project(poses + ROOT.repeat_interleave(M, 0)[:, None], K)[::M]
    energy = Keypoint2D(keypoints=keypoints, confidence=torch.ones(B, 17), K=K)
    solved = energy.solve(poses)
    assert torch.allclose(solved[::M], ROOT, atol=1e-3)
    assert not torch.allclose(solved[1::M], ROOT, atol=1e-2)  # another pose, another place
    assert torch.equal(replace(energy, translation=ROOT).solve(poses), ROOT.repeat_interleave(M, 0))
    reach = (poses[:, :, None, :2] - poses[:, None, :, :2]).square().sum(-1).mean(0)
    usual = replace(energy, reach=reach, slack=1.0).solve(poses)
    assert torch.allclose(usual[::M, 2], usual[1::M, 2])  # by people's size alone, not the pose's
    assert not torch.allclose(replace(energy, reach=reach, slack=9.0).solve(poses), usual, atol=1e-2)
    assert torch.equal(replace(energy, reach=reach, translation=ROOT).solve(poses)[::M], ROOT)
    assert torch.equal(replace(energy, translation=solved).solve(poses), solved)


def test_heatmaps_of_keypoints_act_like_keypoints():
    poses, boxes = _poses(seed=3).mul(0.3), torch.tensor([[100.0, 50, 900, 850], [80.0, 20, 980, 920]])
    keypoints = project(_poses()[::M].mul(0.3) + ROOT[:, None], K)
    cell = (boxes[:, 2] - boxes[:, 0]) / 64
    maps = 7 * heatmaps_from_keypoints(keypoints, boxes, 64, 1.5)
    shared = {"confidence": torch.ones(B, 17), "K": K, "translation": ROOT}
    spread = 0.3  # so wide that floors do not matter
    heat = HeatmapNLL(heatmaps=maps, boxes=boxes, **shared).at(spread)
    points = Keypoint2D(keypoints=keypoints, sigma=cell * math.sqrt(1.5**2 + 1), **shared).at(spread)
    poses.requires_grad_()
    (a,) = torch.autograd.grad(heat(poses).sum(), poses)
    (b,) = torch.autograd.grad(points(poses).sum(), poses)
    assert torch.allclose(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))
    assert torch.allclose(heat.keypoints, keypoints, atol=1.0)


def test_heatmap_energy_equals_a_loop_over_cells():
    g = torch.Generator().manual_seed(4)
    maps = torch.rand(1, 17, 5, 7, generator=g)
    maps[0, 3] = 0  # says nothing
    box = torch.tensor([[300.0, 350, 650, 700]])  # cells of 50 by 70 pixels
    pose = _poses(1)
    confidence = torch.ones(1, 17)
    energy = HeatmapNLL(heatmaps=maps, boxes=box, confidence=confidence, K=K, translation=ROOT[:1], sigma=0.8)
    total = 0.0
    for j in range(17):
        if j == 3:
            continue
        x, y = project(pose[:, j : j + 1] + ROOT[:1, None], K)[0, 0].tolist()
        value = 0.0
        for row in range(5):
            for column in range(7):
                dx, dy = (x - 300) / 50 - (column + 0.5), (y - 350) / 70 - (row + 0.5)
                value += float(maps[0, j, row, column] / maps[0, j].sum()) * math.exp(
                    -(dx**2 + dy**2) / (2 * 0.64)
                )
        weight = maps[0, j].square() / maps[0, j].square().sum()
        dx = (x - 300) / 50 - float((weight.sum(0) * (torch.arange(7) + 0.5)).sum())
        dy = (y - 350) / 70 - float((weight.sum(1) * (torch.arange(5) + 0.5)).sum())
        q = (dx**2 + dy**2) / 0.64
        total -= math.log(value + 1e-3 * math.exp(-q / (2 + 2 * q / 400)))
    assert float(energy(pose)) == pytest.approx(total, rel=1e-4)


def test_keypoint_noise_follows_the_size_of_what_was_seen():
    keypoints = torch.zeros(2, 17, 2)
    keypoints[0, 3], keypoints[0, 4] = torch.tensor([100.0, 50.0]), torch.tensor([300.0, 650.0])
    confidence = torch.zeros(2, 17)
    confidence[0, [3, 4]] = 0.5
    assert keypoint_noise(keypoints, confidence).tolist() == pytest.approx([6.0, 1.0])


def test_known_joints_count_alone_and_any_shift_is_free_without_the_root():
    points, mask = _poses(B, seed=5), torch.zeros(B, 17)
    mask[0, [0, 3, 5]] = 1
    mask[1, [3, 5, 9]] = 1
    poses = _poses()
    energy = Known3D(points=points, mask=mask, sigma=0.1).at(0.2)(poses)
    away = poses[1, [0, 3, 5]] - points[0, [0, 3, 5]]
    assert float(energy[1]) == pytest.approx(float(away.square().sum()) / (2 * 0.05), rel=1e-5)
    away = poses[4, [3, 5, 9]] - points[1, [3, 5, 9]]
    away = away - away.mean(0)
    assert float(energy[4]) == pytest.approx(float(away.square().sum()) / (2 * 0.05), rel=1e-5)
    shifted = Known3D(points=points + 3.0, mask=mask, sigma=0.1).at(0.2)(poses)
    assert torch.allclose(shifted[M:], energy[M:], rtol=1e-3) and (shifted[:M] > energy[:M] + 10).all()


def test_bone_lengths_and_their_energy():
    poses = _poses()
    lengths = bone_lengths(poses)
    for i, (parent, child) in enumerate(H36M_17.bones):
        assert torch.equal(lengths[:, i], (poses[:, child] - poses[:, parent]).norm(dim=-1))
    wanted = lengths[::M] + 0.02
    wanted[1, 4:] = float("nan")
    poses.requires_grad_()
    energy = BoneLength(lengths=wanted, sigma=0.01)(poses)
    assert float(energy[0].detach()) == pytest.approx(16 * 2.0, rel=1e-3)
    assert float(energy[M].detach()) == pytest.approx(4 * 2.0, rel=1e-3)
    (gradient,) = torch.autograd.grad(energy.sum(), poses)
    assert gradient.isfinite().all()
    # While joints are uncertain, each bone counts by its farther end.
    spread = torch.linspace(0.0, 0.16, 17)
    vague = BoneLength(lengths=wanted, sigma=0.01).at(spread)(poses.detach())
    told = sum(0.02**2 / (2 * (0.01**2 + (0.01 * child) ** 2)) for _, child in H36M_17.bones)
    assert float(vague[0]) == pytest.approx(told, rel=1e-3)


def test_smoothness_couples_frames_of_one_hypothesis():
    poses = _poses(4 * M).unflatten(0, (4, M))
    energy = Smooth(frames=4, sigma=0.1)(poses.flatten(0, 1)).unflatten(0, (4, M))
    total = sum((poses[i + 1] - poses[i]).square().sum((-1, -2)) for i in range(3)) / (2 * 0.01)
    assert torch.allclose(energy.sum(0), total)
    assert float(Smooth(frames=4)(poses[:1].repeat(4, 1, 1, 1).flatten(0, 1)).abs().max()) == 0


def test_frames_that_move_at_once_do_not_overshoot():
    # Frames to and fro by turns are what a step of covariance times gradient overshoots most.
    zigzag = torch.tensor([1.0, -1.0]).repeat(4)[:, None, None].expand(8, 17, 3).clone().requires_grad_()
    energy = Smooth(frames=8, sigma=0.01).at(0.3)(zigzag)
    (gradient,) = torch.autograd.grad(energy.sum(), zigzag)
    moved = zigzag - 0.3**2 * gradient
    assert moved.abs().max() <= 0.6 and moved[2:6].abs().max() < 0.05


def test_weights_and_sums_compose():
    points, mask, poses = _poses(B, seed=5), torch.ones(B, 17), _poses()
    a, b = Known3D(points=points, mask=mask, sigma=1.0), BoneLength(lengths=torch.full((B, 16), 0.3))
    assert torch.allclose((0.5 * a + b)(poses), 0.5 * a(poses) + b(poses))
