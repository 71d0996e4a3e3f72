from functools import partial

import pytest
import torch

from dd3g.diffusion import sample
from dd3g.pose.body.geometry import project
from dd3g.pose.methods import guided
from dd3g.pose.methods.guided import complete, generate, levels, sample_poses
from dd3g.pose.methods.guided_energies import Known3D, bone_lengths
from dd3g.pose.networks.prior import Prior, PriorConfig

lift = partial(guided.lift, steps=100, repeats=1, rho=1.0)  # the posterior as derived

K = torch.tensor([[1000.0, 0, 500], [0, 1000.0, 500], [0, 0, 1]])
ROOT = torch.tensor([[0.1, -0.2, 4.0], [0.3, 0.1, 5.0]])


@pytest.fixture(scope="module")
def gaussian() -> Prior:
    """Untrained, a prior is exact for independent coordinates of 0.25 m around its mean."""
    prior = Prior(PriorConfig(width=64, time_width=32, blocks=1)).eval()
    prior.mean.copy_(0.4 * torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
    return prior


@pytest.fixture(scope="module")
def crooked(gaussian: Prior) -> Prior:
    """A prior whose network has something to say."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        prior = Prior(gaussian.config).eval()
        torch.nn.init.normal_(prior.leave.weight, std=0.05)
    prior.mean.copy_(gaussian.mean)
    return prior


def _seen(prior: Prior, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    truth = prior.decode(torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(seed)))
    return truth, project(truth + ROOT[:, None], K)


def test_plans_end_clean_and_are_denser_there():
    plan = levels(100)
    assert plan[0][0] == 999 and plan[-1][1] == -1 and all(t > u for t, u in plan)
    assert 0.45 < sum(t < 250 for t, _ in plan) / len(plan) < 0.55
    assert levels(4, power=1) == [(999, 749), (749, 500), (500, 250), (250, -1)]
    with pytest.raises(ValueError, match="1..1000"):
        levels(0)


def test_generation_is_plain_sampling(crooked):
    poses = generate(crooked, 6, seed=4, eta=0.0, steps=20)
    noise = torch.randn(6, 16, 3, generator=torch.Generator().manual_seed(4))
    plain = sample(crooked, crooked.schedule, noise, levels(20)).x0
    assert torch.equal(poses, crooked.decode(plain))
    assert torch.equal(poses, generate(crooked, 6, seed=4, eta=0.0, steps=20))
    assert not torch.equal(poses, generate(crooked, 6, seed=5, eta=0.0, steps=20))


@pytest.mark.parametrize("mode", ["detached", "through"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_guidance_off_is_the_prior_bit_for_bit(crooked, mode, eta):
    _, keypoints = _seen(crooked)
    free = sample_poses(crooked, 2, 4, eta=eta, steps=20, seed=1)
    off = lift(crooked, keypoints, torch.ones(2, 17), K, 4, rho=0.0, mode=mode, eta=eta, steps=20, seed=1)
    assert torch.equal(off.poses, free.poses)
    blind = lift(crooked, keypoints, torch.zeros(2, 17), K, 4, mode=mode, eta=eta, steps=20, seed=1)
    assert torch.allclose(blind.poses, free.poses, atol=1e-6)
    assert free.translation is None and (free.energy == 0).all()


@pytest.mark.parametrize("mode", ["detached", "through"])
@pytest.mark.slow
def test_samples_follow_the_exact_posterior_of_a_gaussian(gaussian, mode):
    points, mask = torch.zeros(1, 17, 3), torch.zeros(1, 17)
    points[0, 5], mask[0, [0, 5]] = torch.tensor([0.3, -0.2, 0.5]), 1
    sigma, width = 0.2, 0.25
    drawn = sample_poses(
        gaussian, 1, 4000, [Known3D(points=points, mask=mask, sigma=sigma)], mode=mode, steps=100
    ).poses[0]
    gain = width**2 / (width**2 + sigma**2)
    mean = gaussian.mean[4] + gain * (points[0, 5] - gaussian.mean[4])
    assert torch.allclose(drawn[:, 5].mean(0), mean, atol=0.02)
    assert torch.allclose(drawn[:, 5].std(0), torch.full((3,), width * (1 - gain) ** 0.5), rtol=0.1)
    others = [j for j in range(1, 17) if j != 5]
    assert torch.allclose(drawn[:, others].mean(0), gaussian.mean[[j - 1 for j in others]], atol=0.025)
    assert torch.allclose(drawn[:, others].std(0), torch.tensor(width), rtol=0.08)


def test_rho_is_for_pictures_alone(gaussian):
    known = Known3D(points=torch.ones(1, 17, 3), mask=torch.ones(1, 17), sigma=0.2)
    weak, strong = (sample_poses(gaussian, 1, 3, [known], steps=10, rho=rho).poses for rho in (1.0, 3.0))
    assert torch.equal(weak, strong)


def test_repeats_cost_calls_and_keep_the_posterior(gaussian):
    points, mask = torch.zeros(1, 17, 3), torch.zeros(1, 17)
    mask[0, [0, 5]] = 1
    calls = []
    drawn = sample_poses(
        gaussian, 1, 1000, [Known3D(points=points, mask=mask, sigma=0.25)],
        steps=30, repeats=3, record=lambda step: calls.append((step.t, step.u)),
    ).poses[0]  # fmt: skip
    assert calls == [move for move in levels(30) for _ in range(3)]
    assert torch.allclose(drawn[:, 5].mean(0), gaussian.mean[4] / 2, atol=0.03)
    assert torch.allclose(drawn[:, 5].std(0), torch.full((3,), 0.25 * 0.5**0.5), rtol=0.15)


@pytest.mark.parametrize("mode", ["detached", "through"])
def test_hypotheses_agree_in_the_picture_and_differ_in_depth(gaussian, mode):
    truth, keypoints = _seen(gaussian)
    found = lift(
        gaussian, keypoints, torch.ones(2, 17), K, 12, translation=ROOT, mode=mode, seed=2, sigma=3.0
    )
    points = project(found.poses + found.translation[:, :, None], K)
    miss = (points - keypoints[:, None]).norm(dim=-1)
    assert float(miss.mean()) < 12  # of a person 250 pixels wide
    free = sample_poses(gaussian, 2, 12, seed=2).poses
    before = (project(free + ROOT[:, None, None], K) - keypoints[:, None]).norm(dim=-1)
    assert float(miss.mean()) < 0.2 * float(before.mean())
    spread = found.poses.std(1)[:, 1:].mean((0, 1))
    assert spread[2] > 3 * spread[:2].max()
    assert found.energy.shape == (2, 12) and found.translation.shape == (2, 12, 3)


def test_reprojection_error_falls_with_guidance(gaussian):
    _, keypoints = _seen(gaussian)
    misses = []
    for rho in (0.0, 0.1, 0.3, 1.0):
        steps = []
        found = lift(
            gaussian, keypoints, torch.ones(2, 17), K, 16, translation=ROOT, rho=rho, record=steps.append
        )
        assert len(steps) == len(levels(100)) and steps[0].energy.shape == (32,)
        points = project(found.poses + found.translation[:, :, None], K)
        misses.append(float((points - keypoints[:, None]).norm(dim=-1).mean()))
    assert misses == sorted(misses, reverse=True) and misses[-1] < 0.1 * misses[0]


def test_nearly_pure_noise_is_not_followed_through_the_network(crooked):
    known = Known3D(points=_seen(crooked)[0], mask=torch.ones(2, 17))
    steps = {"detached": [], "through": []}
    for mode, found in steps.items():
        sample_poses(crooked, 2, 2, [known], mode=mode, steps=20, record=found.append)
    pairs = list(zip(*steps.values(), strict=True))
    early = [torch.equal(a.x0, b.x0) for a, b in pairs if a.t >= 800]
    later = next(not torch.equal(a.x0, b.x0) for a, b in pairs if a.t < 800)
    assert early == [True] * 3 and later  # 999, 902 and 809


def test_an_unknown_root_is_found(gaussian):
    _, keypoints = _seen(gaussian)
    found = lift(gaussian, keypoints, torch.ones(2, 17), K, 10)
    points = project(found.poses + found.translation[:, :, None], K)
    assert float((points - keypoints[:, None]).norm(dim=-1).mean()) < 12
    assert float((found.translation.mean(1)[:, :2] - ROOT[:, :2]).abs().max()) < 0.25
    assert (found.translation[..., 2] > 1).all()


def test_heatmaps_serve_as_well(gaussian):
    from dd3g.pose.detection.people import heatmaps_from_keypoints

    _, keypoints = _seen(gaussian)
    low, high = keypoints.amin(1) - 40, keypoints.amax(1) + 40
    boxes = torch.cat([low, high], -1)
    found = lift(
        gaussian, torch.zeros(2, 17, 2), torch.ones(2, 17), K, 8,
        heatmaps=heatmaps_from_keypoints(keypoints, boxes), boxes=boxes,
    )  # fmt: skip
    points = project(found.poses + found.translation[:, :, None], K)
    assert float((points - keypoints[:, None]).norm(dim=-1).mean()) < 25  # the maps are 21 pixels wide
    with pytest.raises(ValueError, match="boxes"):
        lift(gaussian, keypoints, torch.ones(2, 17), K, heatmaps=torch.ones(2, 17, 4, 4))


def test_completion_keeps_what_is_known(gaussian):
    truth, keypoints = _seen(gaussian)
    known = torch.zeros(2, 17)
    known[0, [0, 1, 2, 3, 11]] = 1
    known[1, [4, 5, 8, 9]] = 1
    found = complete(gaussian, truth + torch.tensor([0.0, 3.0, 1.0]), known, 10).poses
    seen = known[0] > 0
    assert float((found[0][:, seen] - truth[0, seen]).norm(dim=-1).max()) < 0.05
    seen = known[1] > 0  # without the root, up to a shift
    away = found[1][:, seen] - truth[1, seen]
    assert float((away - away.mean(1, keepdim=True)).norm(dim=-1).max()) < 0.05
    assert float(found[0][:, 12:].std(0).mean()) > 0.1
    flat = complete(gaussian, keypoints, known, 5, K=K, translation=ROOT)
    points = project(flat.poses + flat.translation[:, :, None], K)
    assert (
        float((points - keypoints[:, None]).norm(dim=-1)[:, :][known[:, None].expand(-1, 5, -1) > 0].max())
        < 40
    )
    assert bone_lengths(found).isfinite().all()


def test_completion_does_not_look_at_what_is_unknown(gaussian):
    truth, keypoints = _seen(gaussian)
    known = torch.zeros(2, 17)
    known[:, 5:12] = 1
    for joints, camera in ((truth, None), (keypoints, K)):
        holes = torch.where(known[..., None] > 0, joints, torch.nan)
        whole, torn = (complete(gaussian, j, known, 2, K=camera, steps=10) for j in (joints, holes))
        assert torch.equal(whole.poses, torn.poses) and whole.poses.isfinite().all()
    for joints, mask, message in (
        (keypoints, known, "pixels with K"),
        (truth[0], known[0], "must be \\(B, 17, 3\\)"),
        (truth[:, :16], known[:, :16], "must be \\(B, 17, 3\\)"),
        (truth, known[:, :16], "known must be \\(2, 17\\), got \\(2, 16\\)"),
        (torch.full_like(truth, torch.nan), known, "finite where known"),
    ):
        with pytest.raises(ValueError, match=message):
            complete(gaussian, joints, mask)


def test_people_in_one_batch_do_not_touch_each_other(crooked):
    _, keypoints = _seen(crooked)
    both = lift(crooked, keypoints, torch.ones(2, 17), K, 3, steps=20, eta=0.0)
    first = lift(crooked, keypoints[:1], torch.ones(1, 17), K, 3, steps=20, eta=0.0)
    assert torch.allclose(both.poses[:1], first.poses, atol=1e-4)


def test_completion_refuses_millimetres():
    joints = torch.randn(1, 17, 3) * 300
    with pytest.raises(ValueError, match="m apart: give metres, not millimetres"):
        complete(Prior(), joints, torch.ones(1, 17))
