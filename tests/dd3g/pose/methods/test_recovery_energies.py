"""The energies of recovery against their formulas."""

from dataclasses import replace

import pytest
import torch
from stand_ins.seen_people import network, normal, people

from dd3g.diffusion import guide, predict
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.skeletons import SMPL_24
from dd3g.pose.methods.recovery_energies import (
    Balanced,
    MultiView,
    SmoothRotations,
    curvatures,
    state,
)
from dd3g.pose.networks.prior import schedule
from dd3g.pose.networks.rotation_denoiser import (
    STATE,
)


def test_robust_reprojection_is_the_formula():
    rotations, evidence, _ = people(2)
    keypoints = evidence.keypoints + 30 * normal(2, 17, 2, seed=5)
    confidence = torch.rand(2, 17, generator=torch.Generator().manual_seed(6))
    T = torch.tensor([[0.1, 0.0, 3.2], [0.0, 0.2, 2.9]])
    evidence = replace(evidence, keypoints=keypoints, confidence=confidence, translation=T, size=500.0)
    found = evidence(state(rotations))
    points = default_body().points(rotations, evidence.betas)
    for b in range(2):
        total = 0.0
        for j in range(17):
            X = points[b, j] + T[b]
            pixel = (1000 * X[0] / X[2] + 500, 1000 * X[1] / X[2] + 500)
            for axis in range(2):
                r = float(pixel[axis] - keypoints[b, j, axis])
                total += 4 * float(confidence[b, j]) ** 2 * 1e4 * r * r / (1e4 + r * r)
        assert found[b].item() == pytest.approx(total, rel=1e-3)


def test_balance_changes_the_gradient_and_not_the_energy():
    rotations, evidence, _ = people(2)
    x = (state(rotations) + 0.02 * normal(2, STATE)).requires_grad_()
    curvature = curvatures(evidence, torch.tensor([3.0, 3.0]))
    balanced = Balanced(evidence, curvature, 2.0)
    assert torch.equal(balanced(x), evidence(x))
    (plain,) = torch.autograd.grad(evidence(x).sum(), x)
    (even,) = torch.autograd.grad(balanced(x).sum(), x)
    assert torch.allclose(even, plain * (2 / curvature).repeat_interleave(6, 1), rtol=1e-4, atol=1e-6)
    joint = SMPL_24.joints.index
    # The hips carry everything, the elbow one point, the hand none.
    assert (curvature[:, 0] > 20 * curvature[:, joint("l_elbow")]).all()
    assert (curvature[:, joint("l_elbow")] > 5 * curvature[:, joint("l_hand")]).all()
    # Of a joint that no keypoint tells of, 5 pixels in 0.3 are known beforehand.
    assert torch.allclose(curvature[:, joint("l_hand")], torch.tensor(2 * 25 / 0.09))
    # Farther away, a person is smaller in the picture.
    far = curvatures(evidence, torch.tensor([6.0, 6.0]))
    assert torch.allclose(far[:, 0] / curvature[:, 0], torch.full((2,), 0.25), atol=0.01)


def test_two_views_cost_450_halves_of_their_distance_squared():
    x, d = normal(1, STATE), normal(1, STATE, seed=1)
    d[:, :6] = 0
    energy = MultiView(2)(torch.cat([x, x + d]))
    assert energy.sum().item() == pytest.approx(450 * d.square().sum().item() / 2, rel=1e-5)
    turned = x.clone()
    turned[:, :6] += 1  # the root is another one in every camera
    assert MultiView(2)(torch.cat([x, turned])).sum() == 0
    # People do not mix.
    two = MultiView(2)(torch.cat([x, x + d, 5 * x, 5 * x]))
    assert torch.allclose(two[:2], energy) and two[2:].abs().max() < 1e-6


def test_smoothness_is_30_times_the_squared_steps():
    x = normal(6, STATE)
    energy = SmoothRotations(3)(x)
    expected = sum((x[i] - x[i - 1]).square().sum() for i in (1, 2, 4, 5))
    assert energy.sum().item() == pytest.approx(30 * expected.item(), rel=1e-5)


def test_guidance_by_keypoints_is_the_closed_form_shift():
    rotations, evidence, condition = people(2)
    model, t, weight = network(), 50, 0.003
    evidence = replace(evidence, translation=torch.tensor([[0.0, 0, 3], [0.1, 0, 3]]))
    x = state(rotations) + 0.05 * normal(2, STATE, seed=3)
    eps, x0 = predict(model, schedule(), x, t, condition)
    leaf = x0.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(evidence(leaf).sum(), leaf)
    with torch.no_grad():
        _, shifted, _ = guide(
            schedule(), lambda y: predict(model, schedule(), y, t, condition), x, t, weight * evidence
        )
    ab = schedule().ab(t).item()
    assert (1 - ab) / ab == pytest.approx(0.00834, abs=1e-5)
    expected = -weight * (1 - ab) / ab * gradient
    assert torch.allclose(shifted - x0, expected, atol=1e-5 * expected.abs().max().item() + 1e-6)
