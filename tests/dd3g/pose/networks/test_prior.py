import json
from dataclasses import replace

import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.data.motion import Motion
from dd3g.pose.networks.prior import Prior, PriorConfig, deepened, denoising_loss, measure_spread
from dd3g.pose.training import train_prior

SMALL = PriorConfig(width=64, time_width=32, blocks=1)


def _motion(n: int = 40) -> Motion:
    g = torch.Generator().manual_seed(0)
    joints = 0.3 * torch.randn(1, 17, 3, generator=g) + 0.02 * torch.randn(n, 17, 3, generator=g)
    return Motion(
        joints - joints[:, :1], torch.zeros(n, 3), torch.zeros(n, dtype=torch.int64), ["walk"], ["1"]
    )


def test_states_and_poses_convert_both_ways():
    prior = Prior(SMALL)
    prior.mean.copy_(torch.randn(16, 3))
    poses = torch.randn(5, 17, 3)
    back = prior.decode(prior.encode(poses))
    assert torch.allclose(back, poses - poses[:, :1], atol=1e-6)
    assert prior.encode(poses).shape == (5, 16, 3) and (back[:, 0] == 0).all()


def test_the_schedule_is_the_cosine_one():
    ab = Prior(SMALL).schedule.alpha_bar
    for t, value in {0: 0.9999587, 2: 0.9998616, 50: 0.9917247, 100: 0.9715757, 500: 0.4922852}.items():
        assert float(ab[t]) == pytest.approx(value, abs=1e-6)


def test_untrained_it_is_the_exact_denoiser_of_a_gaussian():
    prior, g = Prior(SMALL), torch.Generator().manual_seed(0)
    poses = prior.decode(torch.randn(4000, 16, 3, generator=g))
    # v = alpha eps - sigma x0 has variance 1 and nothing of it can be known.
    assert float(denoising_loss(prior, poses, g).detach()) == pytest.approx(1.0, abs=0.02)
    spread = measure_spread(prior, poses, g, every=100)
    assert torch.allclose(spread, prior.spread, atol=0.01)


def test_a_batch_has_a_level_of_every_slice():
    prior, seen = Prior(SMALL), []
    prior.register_forward_pre_hook(lambda _, words: seen.append(words[1]))
    for seed in range(3):
        denoising_loss(prior, torch.randn(50, 17, 3), torch.Generator().manual_seed(seed))
        assert torch.equal(seen[-1] // 20, torch.arange(50)) and len(set((seen[-1] % 20).tolist())) > 10


@pytest.mark.slow
def test_training_learns_resumes_and_saves(tmp_path):
    motion = _motion()
    options = {"steps": 60, "batch": 64, "config": SMALL, "learning_rate": 3e-3}
    prior = train_prior(motion, tmp_path / "whole", **options)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] < 1 for line in lines if "loss" in line)
    train_prior(motion, tmp_path / "whole", resume=True, **options)  # nothing left to do
    loaded = Prior.from_pretrained(tmp_path / "whole")
    for a, b in zip(prior.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)
    assert not loaded.training
    assert (prior.spread > 0).all() and (prior.spread[0] < prior.spread[-1]).all()


def test_a_deeper_prior_begins_as_the_same_function_and_trains(tmp_path):
    torch.manual_seed(0)
    shallow = Prior(SMALL).eval()
    torch.nn.init.normal_(shallow.leave.weight)
    shallow.mean.copy_(torch.randn(16, 3))
    deep = deepened(shallow, replace(SMALL, blocks=3))
    x, t = torch.randn(3, 16, 3), torch.tensor([0, 500, 999])
    assert torch.equal(deep(x, t), shallow(x, t)) and torch.equal(deep.mean, shallow.mean)
    deep(x, t).square().sum().backward()
    assert all(block.norm[1].weight.grad.abs().max() > 0 for block in deep.blocks[1:])
    for other in (replace(SMALL, width=128), replace(SMALL, groups=16)):
        with pytest.raises(UserError, match="only blocks can be added"):
            deepened(shallow, other)
    with pytest.raises(UserError, match="only blocks can be added"):
        deepened(deep, SMALL)


def test_levels_in_one_batch_are_independent_of_each_other():
    torch.manual_seed(0)
    prior = Prior(SMALL)
    torch.nn.init.normal_(prior.leave.weight)
    x, t = torch.randn(3, 16, 3), torch.tensor([0, 500, 999])
    both = prior(x, t)
    for i in range(3):
        assert torch.allclose(both[i], prior(x[i : i + 1], t[i : i + 1])[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(prior(x, t.flip(0)), both, atol=1e-3)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        Prior.from_pretrained(tmp_path)
    Prior(SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 65}))
    with pytest.raises(UserError, match="width 65 must be"):
        Prior.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"kind": "generator"}))
    with pytest.raises(UserError, match="not a dd3g pose-prior"):
        Prior.from_pretrained(tmp_path)
