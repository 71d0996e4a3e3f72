from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dd3g.pose.hypotheses import Hypotheses


def hypotheses(b=3, m=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Hypotheses(torch.randn(b, m, 17, 3, generator=g), torch.rand(b, m, generator=g))


def test_single_answers_against_loops():
    h = hypotheses()
    for i in range(3):
        poses = h.poses[i]
        torch.testing.assert_close(h.mean()[i], sum(poses) / 7)
        assert torch.equal(h.best()[i], poses[min(range(7), key=lambda k: h.energy[i, k])])
        distance = [sum((poses[k] - poses[n]).norm(dim=-1).mean() for n in range(7)) for k in range(7)]
        assert torch.equal(h.medoid()[i], poses[min(range(7), key=lambda k: distance[k])])


def test_the_recommended_answer_is_never_worse_than_the_hypotheses_are_on_average():
    h = hypotheses()
    truth = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(1))
    pose, expected = h.recommended()
    assert pose.shape == (3, 17, 3) and expected.shape == (3,)
    own = (pose - truth).norm(dim=-1).mean(-1)
    assert (own <= (h.poses - truth[:, None]).norm(dim=-1).mean((1, 2))).all()


@pytest.mark.parametrize("m", [2, 5, 50])
def test_expected_error_is_right_when_the_truth_is_one_more_draw(m):
    g = torch.Generator().manual_seed(2)
    draws = torch.randn(4000, m + 1, 17, 3, generator=g)
    pose, expected = Hypotheses(draws[:, 1:], torch.zeros(4000, m)).recommended()
    error = (pose - draws[:, 0]).norm(dim=-1).mean()
    assert abs(expected.mean() / error - 1) < 0.01


def test_advice_is_the_recommended_answer_and_follows_people_but_not_other_counts():
    h = hypotheses()
    advised = replace(h, advised=torch.randn(3, 17, 3), expected=torch.tensor([0.1, 0.2, 0.3]))
    for found, rows in ((advised, [0, 1, 2]), (advised[1:], [1, 2]), (advised.to(torch.float64), [0, 1, 2])):
        pose, expected = found.recommended()
        assert torch.equal(pose.float(), advised.advised[rows])
        assert torch.equal(expected.float(), advised.expected[rows])
    # With fewer hypotheses the advice would have been another.
    torch.testing.assert_close(advised.first(3).recommended()[0], h.poses[:, :3].mean(1))
    joined = Hypotheses.joined([advised[:1], advised[1:]])
    assert torch.equal(joined.poses, h.poses) and joined.translation is None and joined.advised is None
    with pytest.raises(ValueError, match="advised must be"):
        replace(h, advised=torch.zeros(2, 17, 3))


def test_one_hypothesis_does_not_know_its_error():
    pose, expected = hypotheses(m=1).recommended()
    assert torch.equal(pose, hypotheses(m=1).poses[:, 0]) and expected.isnan().all()


def test_slices_keep_everything_together():
    h = hypotheses()
    h = Hypotheses(h.poses, h.energy, torch.arange(63.0).reshape(3, 7, 3))
    assert torch.equal(h.first(2).translation, h.translation[:, :2]) and h.first(2).energy.shape == (3, 2)
    assert torch.equal(h[1:].poses, h.poses[1:]) and len(h[[0, 2]]) == 2


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="energy must be"):
        Hypotheses(torch.zeros(2, 5, 17, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="translation must be"):
        Hypotheses(torch.zeros(2, 5, 17, 3), torch.zeros(2, 5), torch.zeros(2, 3))
