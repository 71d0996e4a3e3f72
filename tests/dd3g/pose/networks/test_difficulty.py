import json

import pytest
import torch
from stand_ins.small_motion import small_motion

from dd3g.errors import UserError
from dd3g.pose.networks.difficulty import (
    Difficulty,
    DifficultyConfig,
    relative_errors,
    shown,
)
from dd3g.pose.networks.lifter import Plain
from dd3g.pose.training import train_difficulty


@pytest.mark.parametrize(("network", "count"), [("graph", 1_099_100), ("mlp", 12_049)])
def test_the_published_sizes(network, count):
    difficulty = Difficulty(DifficultyConfig(network))
    assert sum(p.numel() for p in difficulty.parameters()) == count
    assert difficulty(torch.zeros(3, 17, 2)).shape == (3, 17)


def test_the_perceptron_is_one_residual_stage():
    torch.manual_seed(0)
    net = Difficulty().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(4, 17, 2)

    def layer(h, linear, norm):
        h = h @ linear.weight.T + linear.bias
        h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        return h.clamp(min=0)

    p = net.network
    h = layer(x.reshape(4, 34), p.enter[0], p.enter[1])
    h = h + layer(layer(h, p.stage[0], p.stage[1]), p.stage[4], p.stage[5])
    assert torch.allclose(net(x), h @ p.leave.weight.T + p.leave.bias, atol=1e-5)


def test_relative_errors_have_mean_1():
    g = torch.Generator().manual_seed(0)
    poses, lifted = torch.randn(5, 17, 3, generator=g), torch.randn(5, 17, 3, generator=g)
    d = torch.stack(
        [
            torch.stack([(lifted[n, j] - poses[n, j] + poses[n, 0]).norm() for j in range(17)])
            for n in range(5)
        ]
    )
    assert torch.allclose(relative_errors(lifted, poses), d / d.mean())
    assert float(relative_errors(lifted, poses).mean()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(relative_errors(lifted, poses, 0.5), 2 * d)


def test_keypoints_that_are_not_trusted_lie_far_away():
    x, confidence = torch.rand(1, 17, 2), torch.ones(1, 17)
    confidence[0, 3], confidence[0, 4], x[0, 3] = 0.0, 0.4, torch.nan
    hidden = shown(x, confidence)
    assert (hidden[0, 3:5] == -2).all() and torch.equal(hidden[0, 5:], x[0, 5:])


@pytest.mark.slow
def test_training_finds_the_hard_joints(tmp_path):
    def function(x):  # a lifter that knows nothing: the far joints are those where it errs most
        return torch.zeros(len(x), 17, 3)

    options = {"lifter": Plain(function), "steps": 200, "batch": 64, "learning_rate": 1e-2, "tuning": 8}
    net = train_difficulty(small_motion(), tmp_path, **options)
    standing = torch.rand(1, 17, 2)
    s = net(standing)[0]
    assert s[3] > 1.2 and s[6] > 1.2 and s[10] > 1.0 > s[1] and s[0] < 0.5
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    assert torch.allclose(Difficulty.from_pretrained(tmp_path)(standing), net(standing), atol=1e-2)


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"kind": "pose-difficulty", "network": "tree"}))
    with pytest.raises(UserError, match="graph.*mlp"):
        Difficulty.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "pose-lifter"}))
    with pytest.raises(UserError, match="pose-lifter"):
        Difficulty.from_pretrained(tmp_path)
