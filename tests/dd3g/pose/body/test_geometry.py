from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dd3g.pose.body.geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    procrustes,
    project,
    rotation_6d_to_matrix,
    solve_translation,
    translation_by_size,
    unproject,
)

K = torch.tensor([[1100.0, 0.0, 510.0], [0.0, 1150.0, 490.0], [0.0, 0.0, 1.0]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_projection_is_the_matrix_product():
    points = random(4, 17, 3) + torch.tensor([0.0, 0.0, 6.0])
    skewed = K.double().clone()
    skewed[0, 1] = 3.0
    homogeneous = points @ skewed.T
    pixels = project(points, skewed)
    torch.testing.assert_close(pixels, homogeneous[..., :2] / homogeneous[..., 2:])
    torch.testing.assert_close(unproject(pixels, skewed), points[..., :2] / points[..., 2:])


def test_one_camera_a_person_or_one_for_all():
    points = random(4, 5, 17, 3) + torch.tensor([0.0, 0.0, 6.0])
    one = project(points, K.double())
    torch.testing.assert_close(one, project(points, K.double().expand(4, 5, 3, 3)))
    torch.testing.assert_close(one, project(points, K.double().expand(4, 1, 3, 3)))


def twin_procrustes(a, b):
    """One pose, as in the textbook."""
    ma, mb = a.mean(0), b.mean(0)
    u, s, vt = np.linalg.svd((b - mb).T @ (a - ma))
    d = np.diag([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    R = u @ d @ vt
    scale = np.trace(np.diag(s) @ d) / ((a - ma) ** 2).sum()
    return scale * (a - ma) @ R.T + mb


def test_procrustes_against_its_twin():
    a, b = random(3, 4, 17, 3), random(3, 4, 17, 3, seed=1)
    b[0] = a[0] * torch.tensor([-1.0, 1.0, 1.0])  # a reflection must not be used
    aligned = procrustes(a, b)
    for i in range(3):
        for k in range(4):
            expected = twin_procrustes(a[i, k].numpy(), b[i, k].numpy())
            np.testing.assert_allclose(aligned[i, k].numpy(), expected, atol=1e-10)
    assert (aligned[0] - b[0]).norm(dim=-1).mean() > 0.3


def test_procrustes_undoes_a_similarity():
    a = random(5, 17, 3)
    R = axis_angle_to_matrix(random(5, 3, seed=1))
    b = 0.7 * a @ R.transpose(-1, -2) + random(5, 1, 3, seed=2)
    torch.testing.assert_close(procrustes(a, b), b)
    torch.testing.assert_close(procrustes(a.float(), b.float()), b.float(), atol=1e-5, rtol=0)


def test_procrustes_of_flat_and_of_coinciding_points_is_finite():
    flat = random(17, 3) * torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(procrustes(flat, flat), flat)
    assert torch.equal(procrustes(torch.zeros(17, 3), torch.zeros(17, 3)), torch.zeros(17, 3))


def test_translation_from_exact_keypoints():
    pose, T = 0.4 * random(6, 17, 3), random(6, 3, seed=1) * 0.5 + torch.tensor([0.0, 0.0, 5.0])
    keypoints = project(pose + T[:, None], K.double())
    confidence = torch.ones(6, 17, dtype=torch.float64)
    confidence[:, 3] = 0
    keypoints[:, 3] = 1e4  # nobody looks there
    found = solve_translation(pose, keypoints, confidence, K.double())
    torch.testing.assert_close(found, T, atol=1e-8, rtol=0)
    single = solve_translation(pose.float(), keypoints.float(), confidence.float(), K)
    torch.testing.assert_close(single, T.float(), atol=1e-4, rtol=0)


def test_translation_is_the_weighted_least_squares_of_the_rows():
    pose, keypoints = 0.4 * random(17, 3), 500 + 80 * random(17, 2, seed=1)
    confidence = random(17, seed=2).abs()
    u, v = unproject(keypoints, K.double()).T
    rows, right = [], []
    for j in range(17):
        c, (x, y, z) = confidence[j], pose[j]
        rows += [c * torch.stack([-torch.ones(()), torch.zeros(()), u[j]])]
        rows += [c * torch.stack([torch.zeros(()), -torch.ones(()), v[j]])]
        right += [c * (x - z * u[j]), c * (y - z * v[j])]
    expected = torch.linalg.lstsq(torch.stack(rows), torch.stack(right)[:, None]).solution[:, 0]
    expected = expected if expected[2] > 0 else -expected
    torch.testing.assert_close(solve_translation(pose, keypoints, confidence, K.double()), expected)


def test_translation_without_any_confidence_is_in_front():
    T = solve_translation(torch.zeros(2, 17, 3), torch.zeros(2, 17, 2), torch.zeros(2, 17), K)
    torch.testing.assert_close(T, torch.tensor([[0.0, 0.0, 4.0]]).expand(2, 3))


def test_a_translation_behind_the_camera_is_mirrored():
    pose, T = 0.4 * random(6, 17, 3), random(6, 3, seed=1) * 0.5 - torch.tensor([0.0, 0.0, 5.0])
    pixels = (pose + T[:, None]) @ K.double().T
    ones = torch.ones(6, 17, dtype=torch.float64)
    found = solve_translation(pose, pixels[..., :2] / pixels[..., 2:], ones, K.double())
    torch.testing.assert_close(found, -T, atol=1e-8, rtol=0)


def test_translation_has_gradients():
    pose, keypoints = 0.4 * random(1, 4, 3), 500 + 80 * random(1, 4, 2, seed=1)
    ones = torch.ones(1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, k: solve_translation(p, k, ones, K.double()),
        (pose.requires_grad_(), keypoints.requires_grad_()),
    )


def by_size(pose, keypoints, confidence, K, reach, slack):
    """One person, joint by joint."""
    seen = [j for j in range(len(pose)) if confidence[j] > 0]
    w = {j: float(confidence[j]) ** 2 for j in seen}
    total = sum(w.values())
    rays = {j: torch.linalg.solve(K, torch.cat([keypoints[j], torch.ones(1).to(K)]))[:2] for j in seen}

    def spread(points):
        middle = sum(w[j] * points[j] for j in seen) / total
        return sum(w[j] * float((points[j] - middle).square().sum()) for j in seen) / total

    usual = sum(w[i] * w[j] * float(reach[i, j]) for i in seen for j in seen) / total**2 / 2
    usual = math.sqrt(usual / spread(rays))
    depth = math.sqrt(spread({j: pose[j, :2] for j in seen}) / spread(rays))
    depth -= sum(w[j] * float(pose[j, 2]) for j in seen) / total
    depth = min(max(depth, usual / slack), usual * slack)
    across = sum(w[j] * (rays[j] * (pose[j, 2] + depth) - pose[j, :2]) for j in seen) / total
    return torch.tensor([*across.tolist(), depth])


def test_translation_by_size():
    pose = 0.4 * random(6, 17, 3)
    pose[:, 0] = 0
    T = torch.tensor([0.3, -0.4, 4.0], dtype=torch.float64)
    keypoints = project(pose + T, K.double()) + 20 * random(6, 17, 2, seed=1)
    confidence = random(6, 17, seed=2).abs()
    confidence[confidence < 0.3] = 0
    keypoints[confidence == 0] = torch.nan
    reach = (pose[:, :, None, :2] - pose[:, None, :, :2]).square().sum(-1).mean(0)
    for slack in (1.0, 1.1, 50.0):
        found = translation_by_size(pose, keypoints, confidence, K.double(), reach, slack)
        for b in range(6):
            expected = by_size(pose[b], keypoints[b], confidence[b], K.double(), reach, slack)
            torch.testing.assert_close(found[b].float(), expected.float(), atol=1e-4, rtol=1e-4)
    # A flat person is where it was, whatever else people are like within reason.
    flat = pose * torch.tensor([1.0, 1.0, 0.0])
    found = translation_by_size(
        flat, project(flat + T, K.double()), torch.ones(6, 17), K.double(), reach, 2.0
    )
    torch.testing.assert_close(found, T.expand(6, 3), atol=1e-4, rtol=0)
    # A pose that is not the one in the picture is not drawn near for that.
    other = pose.roll(1, 0)
    ones = torch.ones(6, 17)
    by_fit = solve_translation(other, project(pose + T, K.double()), ones, K.double())
    found = translation_by_size(other, project(pose + T, K.double()), ones, K.double(), reach, 9.0)
    assert by_fit[:, 2].abs().max() < 2 and found[:, 2].min() > 2.5


def test_one_joint_has_no_size():
    pose, reach = 0.4 * random(2, 17, 3), torch.ones(17, 17)
    keypoints, confidence = 500 + 100 * random(2, 17, 2), torch.zeros(2, 17)
    confidence[1, 5] = 1
    found = translation_by_size(pose, keypoints, confidence, K.double(), reach, 1.2)
    torch.testing.assert_close(found, solve_translation(pose, keypoints, confidence, K.double()))


def test_rotations_round_trip():
    v = random(200, 3)
    angles = torch.linspace(0, math.pi - 1e-6, 200, dtype=torch.float64)
    v = v / v.norm(dim=-1, keepdim=True) * angles[:, None]
    R = axis_angle_to_matrix(v)
    torch.testing.assert_close(R, torch.linalg.matrix_exp(cross_matrix(v)))
    torch.testing.assert_close(matrix_to_axis_angle(R), v, atol=1e-7, rtol=0)
    x = matrix_to_rotation_6d(R)
    assert torch.equal(x[:, :3], R[:, :, 0]) and torch.equal(x[:, 3:], R[:, :, 1])
    torch.testing.assert_close(rotation_6d_to_matrix(x), R)
    torch.testing.assert_close(rotation_6d_to_matrix(3 * x), R)


def cross_matrix(v):
    W = torch.zeros(len(v), 3, 3, dtype=v.dtype)
    W[:, 2, 1], W[:, 0, 2], W[:, 1, 0] = v.T
    return W - W.transpose(-1, -2)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, -0.8)])
def test_half_turns(axis):
    v = math.pi * torch.tensor(axis, dtype=torch.float64)
    found = matrix_to_axis_angle(axis_angle_to_matrix(v))
    assert min((found - v).norm(), (found + v).norm()) < 1e-6


def test_zero_rotation_has_a_gradient():
    v = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    axis_angle_to_matrix(v)[:, 2, 1].sum().backward()
    torch.testing.assert_close(v.grad, torch.tensor([[1.0, 0, 0]] * 2, dtype=torch.float64))
    assert torch.equal(matrix_to_axis_angle(torch.eye(3)), torch.zeros(3))
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (random(2, 3).requires_grad_(),))
