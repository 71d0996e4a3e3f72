import math
from dataclasses import replace

import pytest
import torch
from stand_ins.small_motion import small_motion
from torch import nn

from dd3g.diffusion import Step, descent, guide, invert, predict, refine, sample
from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.body.skeletons import SMPL_24
from dd3g.pose.data.synthesis import posed
from dd3g.pose.methods.fitting import PosePrior, fit_body
from dd3g.pose.methods.recovery import recover_people
from dd3g.pose.methods.recovery_energies import (
    Balanced,
    BodyKeypoints,
    MultiView,
    SmoothRotations,
    curvatures,
    matrices,
    state,
)
from dd3g.pose.methods.refinement import (
    PUBLISHED,
    PUBLISHED_VIDEO,
    PUBLISHED_VIEWS,
    WEIGHT,
    RecoveryPlan,
    _Watch,
    imagine,
    recover,
)
from dd3g.pose.networks.rotation_denoiser import (
    KEYPOINT_FEATURES,
    STATE,
    Condition,
    RotationConfig,
    RotationDenoiser,
    keypoint_condition,
    look_at,
    schedule,
)
from dd3g.pose.training import train_recovery


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    torch.manual_seed(seed)
    return RotationDenoiser(RotationConfig(condition=16, hidden=32)).eval()


class Counted(nn.Module):
    """A denoiser that believes everybody stands in one pose, and counts its calls."""

    prediction = "eps"

    def __init__(self, believed=None, width=0.3):
        super().__init__()
        self.believed, self.width, self.calls = believed, width, 0

    def forward(self, x_t, t, condition):
        self.calls += 1
        ab = schedule().ab(t).to(x_t)[:, None]
        mean = torch.zeros_like(x_t) if self.believed is None else self.believed
        # The exact noise of a Gaussian around the mean.
        return (1 - ab).sqrt() * (x_t - ab.sqrt() * mean) / (1 - ab + ab * self.width**2)


def people(count=4, seed=0, angle=0.25):
    """Rotations, evidence without noise, and its condition, of people three metres away."""
    rotations = axis_angle_to_matrix(angle * normal(count, 24, 3, seed=seed))
    rotations[:, 0] = axis_angle_to_matrix(torch.tensor([math.pi, 0, 0])) @ rotations[:, 0]
    betas = 0.5 * normal(count, 10, seed=seed + 1)
    K = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]]).expand(count, 3, 3)
    points = default_body().points(rotations, betas)
    keypoints = project(points + torch.tensor([0.0, 0, 3]), K)
    confidence = torch.ones(count, 17)
    evidence = BodyKeypoints(default_body(), betas, keypoints, confidence, K, 1000.0)
    return rotations, evidence, keypoint_condition(keypoints, confidence, K)


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


def test_inversion_then_sampling_returns_the_rotations():
    rotations, _, condition = people(3)
    x, plan = state(rotations), descent(50, 2)
    model = Counted(x + 0.2)
    noisy = invert(model, schedule(), x, plan, condition)
    assert (noisy - x).abs().max() > 1e-3
    assert (sample(model, schedule(), noisy, plan, condition).x - x).abs().max() < 1e-3
    # Random weights turn faster with the level than trained ones.
    noisy = invert(network(), schedule(), x, plan, condition)
    assert (sample(network(), schedule(), noisy, plan, condition).x - x).abs().mean() < 1e-3


def test_the_published_plans_are_as_published():
    still = [p for p in (PUBLISHED, PUBLISHED_VIDEO, PUBLISHED_VIEWS) if p.restarts == () and p.rate is None]
    assert [(p.tau, p.step, p.rounds, p.tolerance) for p in still] == [
        (50, 2, 10, 1e-5),
        (50, 2, 10, 0),
        (100, 10, 2, 0),
    ]
    assert PUBLISHED.camera == PUBLISHED_VIDEO.camera == "adam" and WEIGHT == 0.003


@pytest.mark.parametrize("plan,calls", [(PUBLISHED, 500), (PUBLISHED_VIEWS, 40)])
def test_network_calls_of_the_published_plans(plan, calls):
    rotations, evidence, condition = people(2)
    model = Counted()
    views = plan is PUBLISHED_VIEWS
    recover(
        model, rotations, evidence, condition, replace(plan, tolerance=0),
        together=MultiView(2) if views else None, weight=0 if views else 0.003,
    )  # fmt: skip
    assert model.calls == calls


def test_the_camera_follows_adam_and_the_sample_sees_it_before_the_step():
    rotations, evidence, condition = people(2)
    model, far = Counted(state(rotations)), torch.tensor([[0.3, 0, 3.4], [-0.2, 0.1, 2.7]])
    plan = RecoveryPlan(camera="adam", rounds=2, tolerance=0, rate=None)
    found = recover(model, rotations, evidence, condition, plan, translation=far, gate=False)
    moving = far.clone().requires_grad_()
    side = torch.optim.Adam([moving], 1e-2)
    x = state(rotations)
    for _ in range(2):
        seen = 0.003 * replace(evidence, translation=moving)
        ended = refine(model, schedule(), x, descent(50, 2), condition, seen, rounds=1, auxiliary=side)
        x = ended.x
    assert torch.allclose(found.translation, moving.detach(), atol=1e-6)
    assert (found.translation - torch.tensor([0.0, 0, 3])).norm() < 0.5 * (
        far - torch.tensor([0.0, 0, 3])
    ).norm()


def test_a_person_at_rest_stays_while_others_move_on():
    rotations, evidence, condition = people(3)
    start = rotations.clone()
    start[1:] = start[1:] @ axis_angle_to_matrix(0.2 * normal(2, 24, 3, seed=9))
    model = Counted(state(rotations))
    whole = recover(model, start, evidence, condition, RecoveryPlan(rounds=3, tolerance=1e-5), gate=False)
    never = recover(model, start, evidence, condition, RecoveryPlan(rounds=3, tolerance=0), gate=False)
    assert torch.allclose(whole.rotations[1:], never.rotations[1:], atol=0.02)
    early = Counted(state(rotations[:1]))
    alone = replace(
        evidence, betas=evidence.betas[:1], keypoints=evidence.keypoints[:1],
        confidence=evidence.confidence[:1], K=evidence.K[:1],
    )  # fmt: skip
    recover(early, start[:1], alone, Condition(condition.features[:1]), RecoveryPlan())
    assert early.calls == 50  # nothing to gain: one round instead of ten


def test_rest_is_told_by_the_energy_itself_as_published():
    """|L - L'| < tolerance * max(L, L', 1): of the energy in squared pixels, not of .003 times it."""
    watch = _Watch(1, 1e-2, None, unit=0.003)
    x = torch.zeros(1, STATE)
    for energy, done in ((100.0, False), (98.5, False), (97.9, True)):
        watch(Step(2, 0, x, x, x, torch.tensor([0.003 * energy])))
        assert watch.done.item() is done


def test_recovery_goes_towards_the_keypoints():
    rotations, evidence, condition = people(6, angle=0.15)
    start = rotations @ axis_angle_to_matrix(0.15 * normal(6, 24, 3, seed=9))
    model = Counted(state(rotations), width=0.15)
    found = recover(model, start, evidence, condition, RecoveryPlan(rounds=4))
    truth = default_body().points(rotations, evidence.betas)
    before = (default_body().points(start, evidence.betas) - truth).norm(dim=-1).mean()
    assert not found.kept.any() and (found.energy < 0.5 * found.start_energy).all()
    assert (found.poses - truth).norm(dim=-1).mean() < 0.8 * before
    assert found.hypotheses(3).poses.shape == (2, 3, 17, 3)


def test_the_gate_keeps_a_start_that_cannot_be_bettered():
    rotations, evidence, condition = people(3)
    wrong = Counted(state(torch.eye(3).expand(3, 24, 3, 3)), width=0.01)
    found = recover(wrong, rotations, evidence, condition, RecoveryPlan(restarts=(500,), rounds=1))
    assert found.kept.all() and torch.allclose(found.rotations, rotations, atol=1e-5)
    assert torch.equal(found.energy, found.start_energy)
    open_gate = recover(
        wrong, rotations, evidence, condition, RecoveryPlan(restarts=(500,), rounds=1), gate=False
    )
    assert (open_gate.energy > open_gate.start_energy).all() and not open_gate.kept.any()


def test_the_gate_compares_bodies_and_not_cameras():
    rotations, evidence, condition = people(8)
    start = rotations @ axis_angle_to_matrix(0.15 * normal(8, 24, 3, seed=9))
    # Without guidance a body changes little, for better or worse; its camera stands where nobody is.
    plan = RecoveryPlan(4, 2, 1, tolerance=0, camera="given", rate=None)
    options = {"translation": torch.tensor([0.5, 0.0, 4.0]).expand(8, 3), "weight": 0.0}
    found = recover(network(), start, evidence, condition, plan, **options)
    free = recover(network(), start, evidence, condition, plan, gate=False, **options)
    worse = evidence(state(free.rotations)) >= evidence(state(start))
    assert 0 < worse.sum() < 8 and torch.equal(found.kept, worse)
    assert (found.energy <= found.start_energy).all()


def test_without_any_confidence_the_start_stays():
    rotations, evidence, condition = people(2)
    evidence = replace(evidence, confidence=torch.zeros(2, 17))
    found = recover(network(), rotations, evidence, condition, RecoveryPlan(rounds=1))
    assert found.kept.all() and found.poses.isfinite().all() and found.translation.isfinite().all()


def test_views_come_together():
    rotations, evidence, condition = people(2)
    start = torch.cat([rotations[:1], rotations[:1]]) @ axis_angle_to_matrix(0.15 * normal(2, 24, 3, seed=2))
    found = recover(
        Counted(), start, evidence, condition, PUBLISHED_VIEWS, together=MultiView(2), weight=0, gate=False
    )
    apart = [(r[0, 1:] - r[1, 1:]).norm() for r in (start, found.rotations)]
    assert apart[1] < 0.5 * apart[0]


def test_people_from_keypoints_alone():
    _, evidence, _ = people(2)
    arguments = (evidence.keypoints, evidence.confidence, evidence.K, (1000, 1000))
    plan = RecoveryPlan(20, 10, 1)
    found = recover_people(*arguments, m=3, seed=4, denoiser=network(), plan=plan)
    again = recover_people(*arguments, m=3, seed=4, denoiser=network(), plan=plan)
    assert torch.equal(found.poses, again.poses) and found.poses.shape == (6, 17, 3)
    assert (found.poses[0] - found.poses[1]).abs().max() > 1e-3
    R = found.rotations
    assert torch.allclose(R @ R.transpose(-1, -2), torch.eye(3).expand_as(R), atol=1e-4)
    coco = default_body().points(matrices(normal(1, STATE)), torch.zeros(1, 10), "coco-17")
    keypoints = project(coco + torch.tensor([0.0, 0, 3]), evidence.K[:1])
    one = recover_people(
        keypoints,
        torch.ones(1, 17),
        evidence.K[0],
        (1000, 1000),
        layout="coco-17",
        denoiser=network(),
        plan=plan,
    )
    assert one.poses.shape == (1, 17, 3)


def test_imagined_starts_make_19_calls():
    model = Counted(state(torch.eye(3).expand(5, 24, 3, 3)), width=0.1)
    found = imagine(model, Condition(torch.zeros(5, 1)), 5, torch.Generator().manual_seed(0))
    assert model.calls == 19
    assert (found - torch.eye(3)).abs().mean() < 0.1
    believed = state(torch.eye(3).expand(1, 24, 3, 3)).clone()
    believed[:, :3] = torch.tensor([3.0, 1.0, 0.0])  # predictions are clipped to -1 .. 1
    found = imagine(Counted(believed, width=0.01), Condition(torch.zeros(1, 1)), 1)
    assert torch.allclose(found[0, 0, :, 0], torch.tensor([1.0, 1.0, 0.0]) / 2**0.5, atol=0.01)


def test_fitting_follows_the_keypoints():
    rotations, evidence, _ = people(3, angle=0.15)
    start = rotations @ axis_angle_to_matrix(0.2 * normal(3, 24, 3, seed=9))
    motion = turned_motion(64)
    found = fit_body(start, evidence, PosePrior.from_motion(motion), prior_weight=0.1, steps=60)
    assert (found.energy < 0.2 * found.start_energy).all() and not found.kept.any()
    assert torch.equal(found.betas, evidence.betas)
    stuck = fit_body(rotations, evidence, None, camera_steps=0, steps=1, learning_rate=0.5)
    assert stuck.kept.all() and torch.allclose(stuck.rotations, rotations)


def turned_motion(frames):
    rotations = 0.3 * normal(frames, 24, 3)
    return replace(small_motion(frames), rotations=rotations, rotations_valid=torch.arange(frames) % 2 == 0)


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
