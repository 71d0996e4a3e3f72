import pytest
import torch
from stand_ins import made_up_people
from stand_ins.small_motion import small_motion
from torch import nn

from dd3g.pose import estimation
from dd3g.pose.body.geometry import procrustes, project
from dd3g.pose.body.skeletons import flip
from dd3g.pose.data.synthesis import synthesise
from dd3g.pose.methods import restoration
from dd3g.pose.methods.restoration import ALPHAS, GUESSED, best_alpha, restore
from dd3g.pose.networks import difficulty
from dd3g.pose.networks.difficulty import DifficultyConfig
from dd3g.pose.networks.lifter import FOCAL, GraphLifter, LifterConfig, Plain, lift, normalise
from tools.pose_methods import make_methods
from tools.pose_people import People


class Known(nn.Module):
    """A difficulty network that says what it is told."""

    def __init__(self, s):
        super().__init__()
        self.config = DifficultyConfig(alpha=0.02, fixed_alpha=0.01)
        self.s = torch.as_tensor(s, dtype=torch.float32)

    def forward(self, x):
        return self.s.expand(len(x), 17)


def views(count=3, **options):
    return synthesise(small_motion(), torch.arange(count), 0, **options)


def lifter():
    torch.manual_seed(0)
    return GraphLifter(LifterConfig(width=16, blocks=1)).eval()


def restored(v, f, difficulty=None, width=1000, **options):
    return restore(f, difficulty, v.keypoints, v.confidence, v.K, width, **options)


def test_without_noise_all_hypotheses_are_the_lifters_answer():
    v = views(occluded=0.0)
    h = restored(v, lifter(), Known(3.0), m=7, alpha=0.0)
    assert (h.poses == h.poses[:, :1]).all()
    alone = lift(lifter(), normalise(v.keypoints, v.K), v.confidence)
    assert torch.allclose(h.poses[:, 0], alone, atol=1e-6)
    noisy = restored(v, lifter(), Known(3.0), m=7)
    assert torch.allclose(noisy.poses[:, 0], alone, atol=1e-6) and (noisy.poses.std(1) > 0).any()
    assert torch.allclose(restored(v, lifter(), m=1).recommended()[0], alone, atol=1e-6)


class Spy:
    """Keeps what a lifter is shown."""

    def __init__(self, function=lambda x: torch.zeros(len(x), 17, 3)):
        self.function, self.seen = function, []

    def __call__(self, keypoints, confidence):
        self.seen.append((keypoints, confidence))
        return self.function(keypoints)


def test_noise_follows_the_difficulty_in_half_pictures(monkeypatch):
    v, spy, m = views(1, occluded=0.0), Spy(), 4000
    monkeypatch.setattr(restoration, "CHUNK", m)
    s = torch.ones(17)
    s[1], s[2], s[16] = 0.4, 2.5, 4.0
    restored(v, spy, Known(s), width=800, m=m, alpha=0.01)
    copies = spy.seen[0][0].unflatten(0, (2, m))
    noise = copies - copies[:, :1]
    pixels = noise * v.K[0, 0, 0] / FOCAL
    expected = 0.01 * 400 * s.clamp(min=1)
    assert (noise[:, 0] == 0).all()
    assert torch.allclose(pixels[:, 1:].std(1), expected[None, :, None].expand(2, 17, 2), rtol=0.06)
    flat = (pixels[:, 1:] / expected[:, None]).transpose(0, 1).flatten(1)  # (m - 1, 68)
    correlation = torch.corrcoef(flat.T) - torch.eye(68)
    assert correlation.abs().max() < 0.08  # between coordinates, joints and the two copies


def test_fixed_noise_is_difficulty_1_with_its_own_alpha():
    v = views()
    fixed = restored(v, lifter(), Known(3.0), m=5, fixed=True).poses
    assert torch.equal(fixed, restored(v, lifter(), Known(0.3), m=5, alpha=0.01).poses)
    assert torch.equal(fixed, restored(v, lifter(), None, m=5, alpha=0.01).poses)
    adaptive = restored(v, lifter(), Known(3.0), m=5).poses
    assert torch.allclose(adaptive, restored(v, lifter(), Known(2.0), m=5, alpha=0.03).poses, atol=1e-5)
    assert not torch.allclose(fixed, adaptive, atol=1e-3)


def test_the_best_alpha_is_the_one_of_the_lowest_error():
    v, errors = views(8), []
    for alpha in ALPHAS:
        h = restored(v, lifter(), Known(2.0), m=20, alpha=alpha)
        errors.append(sum(min(float(_aligned_error(p, t)) for p in ps) for ps, t in zip(h.poses, v.pose)))
    best = best_alpha(lifter(), Known(2.0), v, m=20)
    assert best == ALPHAS[errors.index(min(errors))]
    assert best_alpha(lifter(), Known(9.0), v, m=20, fixed=True) == best_alpha(lifter(), Known(1.0), v, m=20)


def _aligned_error(pose, truth):
    return (procrustes(pose, truth) - truth).norm(dim=-1).mean()


def test_missing_keypoints_are_guessed_from_the_first_answer():
    v = views(2, sigma=0.0, occluded=0.0)
    true = v.pose
    v.confidence[0, 13] = 0
    v.keypoints[0, 13] = torch.nan
    spy = Spy()
    spy.function = lambda x: torch.cat([true.repeat(len(x) // 4, 1, 1), flip(true).repeat(len(x) // 4, 1, 1)])
    h = restored(v, spy, m=1)
    (_, first), (x, trust) = spy.seen
    assert first[0, 13] == 0 and trust[0, 13] == pytest.approx(GUESSED)
    assert torch.allclose(x[:2], normalise(v.points, v.K), atol=1e-3)
    assert torch.allclose(h.poses[:, 0], true, atol=1e-5) and torch.allclose(
        h.translation[:, 0], v.root, atol=2e-3
    )
    assert h.energy.max() < 1e-3


def test_energy_is_the_weighted_squared_distance():
    v = views(2)
    h = restored(v, lifter(), m=3)
    for b in range(2):
        for k in range(3):
            points = project(h.poses[b, k] + h.translation[b, k], v.K[b])
            total = weight = 0.0
            for j in range(17):
                c = float(v.confidence[b, j]) ** 2
                total += c * float(((points[j] - v.keypoints[b, j]) / 5).square().sum())
                weight += c
            assert float(h.energy[b, k]) == pytest.approx(total / weight, rel=1e-3)


def test_each_person_may_have_a_width():
    v, noise, energy = views(2), [], []
    for width in (1000, torch.tensor([500.0, 1000.0])):
        spy = Spy()
        energy.append(restored(v, spy, Known(2.0), width=width, m=4).energy)
        copies = spy.seen[-1][0].unflatten(0, (2, 2, 4))
        noise.append(copies - copies[:, :, :1])
    ratio = torch.tensor([0.5, 1.0])
    assert torch.allclose(noise[1], noise[0] * ratio[:, None, None, None], atol=1e-5)
    assert torch.allclose(energy[1], energy[0] / ratio[:, None] ** 2, rtol=1e-4)


def test_noise_for_small_people_goes_by_what_they_extend():
    v, noise = views(2, occluded=0.0), []
    low, high = v.keypoints.amin(1), v.keypoints.amax(1)
    extent = (high - low).amax(1)
    for width in (4 * extent, 5000.0):
        spy = Spy()
        restored(v, spy, Known(2.0), width=width, m=4)
        noise.append(spy.seen[-1][0] - v.keypoints.mean())
    assert torch.allclose(noise[0], noise[1], atol=1e-4)
    v.keypoints[:, 3], v.confidence[:, 3] = 9e4, 0  # not seen, so not counted
    low, high = v.keypoints[:, [j for j in range(17) if j != 3]].aminmax(dim=1)
    energies = [
        restored(v, lifter(), m=2, alpha=0.0, width=w).energy for w in (4 * (high - low).amax(1), 1e6)
    ]
    assert torch.allclose(*energies)


def test_the_command_and_the_evaluation_draw_the_same(monkeypatch):
    known = Known(2.0)
    person = made_up_people.detection(0.3, 3.0)
    monkeypatch.setattr(GraphLifter, "shipped", lifter)
    monkeypatch.setattr(difficulty.Difficulty, "shipped", lambda: known)
    monkeypatch.setattr(GraphLifter, "from_pretrained", lambda folder: lifter())
    monkeypatch.setattr(difficulty.Difficulty, "from_pretrained", lambda folder: known)
    row, *_ = make_methods(["restoration"])["restoration"]
    truth = made_up_people.STANDING[None]
    people = People(
        truth, person.keypoints[None], person.confidence[None], person.K[None], person.size, ["a"]
    )
    (found,) = estimation.lift([person], "restoration", 6, seed=3)
    expected = row(people, 6, 3)
    assert torch.equal(found.hypotheses.poses, expected.poses)
    assert torch.equal(found.hypotheses.energy, expected.energy) and expected.poses.std(1).max() > 0


def test_a_seed_means_the_same_however_the_work_is_cut(monkeypatch):
    v = views()
    whole = restored(v, lifter(), Known(2.0), m=9, generator=4)
    monkeypatch.setattr(restoration, "CHUNK", 5)
    cut = restored(v, lifter(), Known(2.0), m=9, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(whole.poses, cut.poses, atol=1e-5)
    assert not torch.allclose(
        whole.poses, restored(v, lifter(), Known(2.0), m=9, generator=5).poses, atol=1e-5
    )


def test_nothing_seen_and_nonsense():
    v = views(1)
    v.confidence[:] = 0
    h = restored(v, Plain(lambda x: torch.zeros(len(x), 17, 3)), m=2)
    assert h.poses.isfinite().all() and h.energy.isfinite().all()
    with pytest.raises(ValueError, match="m must be positive"):
        restored(v, lifter(), m=0)
    with pytest.raises(ValueError, match="alpha not negative"):
        restored(v, lifter(), alpha=-1.0)
