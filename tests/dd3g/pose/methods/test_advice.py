"""The one answer: its size, its independence of others, and that it beats the lifter on people of neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.geometry import project, solve_translation
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.data.motion import load_cmu
from dd3g.pose.data.synthesis import synthesise
from dd3g.pose.hypotheses import Hypotheses
from dd3g.pose.methods import guided
from dd3g.pose.methods.advice import advise, grown, sized
from dd3g.pose.methods.guided_energies import Keypoint2D, keypoint_noise
from dd3g.pose.methods.recovery import recover_people
from dd3g.pose.methods.registry import METHODS
from dd3g.pose.methods.restoration import restore
from dd3g.pose.metrics import mpjpe, pa_mpjpe
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.prior import Prior
from tests.stand_ins.made_up_people import STANDING

K = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]])


def people(count=3, m=4):
    """Standing people, each turned a little more, 4 m away, with noisy hypotheses."""
    g = torch.Generator().manual_seed(3)
    angle = torch.arange(count) * 0.4
    turn = torch.zeros(count, 3, 3)
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = angle.sin(), -angle.sin(), 1
    poses = STANDING @ turn.transpose(1, 2)
    seen = project(poses + torch.tensor([0.0, 0, 4]), K)
    noisy = poses[:, None] + 0.05 * torch.randn(count, m, 17, 3, generator=g)
    return Hypotheses(noisy - noisy[:, :, :1], torch.zeros(count, m)), seen, torch.ones(count, 17)


def test_grown_people_are_as_tall_and_as_long_as_the_shipped_body():
    # Its card: the mean of bodies aged 15 and up; the sum is of 16 bones.
    assert grown().height == pytest.approx(1.763, abs=0.002)
    assert grown().bones == pytest.approx(4.326, abs=0.002)
    assert bone_lengths(sized(STANDING, 3.0)).sum() == pytest.approx(3.0, abs=1e-5)


def test_the_answer_has_the_size_of_a_grown_person_or_the_one_named():
    h, seen, c = people()
    found = advise(h, seen, c, K, 1000.0)
    assert torch.equal(found.poses, h.poses)
    torch.testing.assert_close(bone_lengths(found.advised).sum(-1), torch.full((3,), grown().bones))
    child = advise(h, seen, c, K, 1000.0, height=1.1)
    torch.testing.assert_close(child.advised, found.advised * (1.1 / grown().height))
    torch.testing.assert_close(child.expected, found.expected * (1.1 / grown().height))
    with pytest.raises(UserError, match="nobody is 175 m tall: give the height in metres, 0.4 to 2.8"):
        advise(h, seen, c, K, 1000.0, height=175)


def test_a_persons_answer_depends_on_nobody_else():
    h, seen, c = people()
    together = advise(h, seen, c, K, 1000.0)
    for i in range(3):
        alone = advise(h[i : i + 1], seen[i : i + 1], c[i : i + 1], K, 1000.0)
        torch.testing.assert_close(alone.advised[0], together.advised[i], atol=1e-5, rtol=0)


def test_where_no_hypothesis_is_near_the_answer_is_the_lifters():
    h, seen, c = people()
    wild = Hypotheses(h.poses[:, :1].flip(-1), h.energy[:, :1])  # x and z exchanged
    own = restore(GraphLifter.shipped(), None, seen, c, K.expand(3, 3, 3), 1000.0, 1, alpha=0.0)
    lost, alone = (advise(x, seen, c, K, 1000.0) for x in (wild, own))
    torch.testing.assert_close(lost.advised, alone.advised, atol=2e-3, rtol=0)
    torch.testing.assert_close(lost.expected, alone.expected, atol=2e-3, rtol=0)


def test_hidden_joints_may_lie_anywhere():
    h, seen, c = people()
    c[:, 13] = 0
    lost = seen.clone()
    lost[:, 13] = torch.nan
    found = advise(h, lost, c, K, 1000.0).advised
    torch.testing.assert_close(found, advise(h, seen, c, K, 1000.0).advised)


def test_polishing_brings_poses_to_their_keypoints_and_repairs_them():
    h, seen, c = people(2)
    evidence = Keypoint2D(keypoints=seen, confidence=c, K=K, sigma=keypoint_noise(seen, c))
    start = h.poses[:, 0]
    with torch.no_grad():
        found = guided.polish(Prior.shipped(), start, evidence)
    assert found.shape == (2, guided.COPIES, 17, 3) and found[:, :, 0].abs().max() == 0

    def off(poses):
        T = solve_translation(poses, seen, c, K.expand(2, 3, 3))
        return (project(poses + T[:, None], K) - seen).norm(dim=-1).mean()

    assert off(found.mean(1)) < 0.5 * off(start)
    left, right = [3, 4, 5], [0, 1, 2]  # hips, thighs, shins as bones

    def uneven(poses):
        b = bone_lengths(poses)
        return (b[..., left] - b[..., right]).abs().mean()

    assert uneven(found.mean(1)) < uneven(start)


@pytest.fixture(scope="module")
def strangers():
    """So many frames of the test people, as `tools.evaluate_pose cmu --limit` sees them."""
    path = Path(os.environ.get("DD3G_DATA", "data")) / "motion" / "cmu_mocap_30fps.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    motion = load_cmu(path, "test")

    def views(count):
        return synthesise(motion, torch.arange(count) * len(motion) // count, 0, bones=0.0, mirror=False)

    return views


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("method", list(METHODS))
def test_the_answer_of_every_method_beats_the_lifter(strangers, method, m):
    v = strangers(48 if m == 1 else 24)
    seen = v.keypoints, v.confidence, v.K
    with torch.no_grad():
        alone = restore(GraphLifter.shipped(), None, *seen, 1000.0, 1, alpha=0.0).poses[:, 0]
        if method == "guided":
            h = guided.lift(Prior.shipped(), *seen, m)
        elif method == "restoration":
            h = restore(GraphLifter.shipped(), Difficulty.shipped(), *seen, 1000.0, m)
        else:
            h = recover_people(*seen, v.size, m=m).hypotheses(m)
    found = advise(h, *seen, 1000.0)
    pose, expected = found.recommended()
    error = mpjpe(pose, v.pose).mean()
    assert error < 98 and error < mpjpe(alone, v.pose).mean() - 3
    assert pa_mpjpe(pose, v.pose).mean() < pa_mpjpe(alone, v.pose).mean() - 3
    length = bone_lengths(pose).sum(-1) / bone_lengths(v.pose).sum(-1)
    assert abs(length.mean() - 1) < 0.03
    depth = solve_translation(pose, *seen)[:, 2] / v.root[:, 2]
    assert abs(depth.mean() - 1) < 0.05
    assert abs(1000 * expected.mean() / error - 1) < 0.15
