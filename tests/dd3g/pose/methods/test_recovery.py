"""Recovery of people: plans, guidance, the gate, and what comes out."""

from dataclasses import replace

import pytest
import torch
from stand_ins.made_up_people import detection
from stand_ins.seen_people import network, normal, people, turned_motion
from torch import nn

from dd3g.diffusion import Step, descent, invert, refine, sample
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.methods import recovery
from dd3g.pose.methods.fitting import PosePrior, fit_body
from dd3g.pose.methods.recovery import recover_people
from dd3g.pose.methods.recovery_energies import MultiView, matrices, state
from dd3g.pose.methods.refinement import (
    PUBLISHED,
    PUBLISHED_VIDEO,
    PUBLISHED_VIEWS,
    WEIGHT,
    RecoveryPlan,
    _restart,
    _Watch,
    imagine,
    recover,
)
from dd3g.pose.networks.prior import schedule
from dd3g.pose.networks.rotation_denoiser import STATE, Condition, RotationDenoiser


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


@pytest.mark.parametrize("wrong", [{"camera": "sloved"}, {"tau": 50, "step": 3}])
def test_plans_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="sloved|3"):
        RecoveryPlan(**wrong)


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


def test_a_weight_of_nearly_nothing_is_no_rest():
    rotations, evidence, condition = people(1)
    model = Counted(state(rotations))
    start = rotations @ axis_angle_to_matrix(0.2 * normal(1, 24, 3, seed=9))
    plan = RecoveryPlan(rounds=2, camera="given", rate=None)
    recover(model, start, evidence, condition, plan, weight=1e-9)
    assert model.calls == 2 * 2 * 25


def test_restarts_are_rotations():
    rotations, _, condition = people(2)
    believed = state(rotations)
    model = Counted(1.5 * believed, width=1e-4)  # axes that are too long
    found = _restart(model, torch.zeros(2, STATE), condition, 100, torch.Generator().manual_seed(0))
    assert torch.allclose(found, believed, atol=1e-4)


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


def test_everyone_of_a_video_has_one_body(monkeypatch):
    """Hypotheses of different frames would not belong together."""

    def briefly(denoiser, start, evidence, condition, plan, **options):
        plan = replace(plan, rounds=1, restarts=())
        return recover(denoiser, start, evidence, condition, plan, **options)

    monkeypatch.setattr(recovery, "recover", briefly)
    for count, times, m in ((2, torch.tensor([0.0, 0.04]), 1), (1, torch.zeros(1), 1), (2, None, 3)):
        seen = [detection(0.1 * i) for i in range(count)]
        found = recovery.lift_people(seen, 3, 0, times, {RotationDenoiser: network()})
        assert [tuple(one.hypotheses.poses.shape) for one in found] == [(1, m, 17, 3)] * count


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
