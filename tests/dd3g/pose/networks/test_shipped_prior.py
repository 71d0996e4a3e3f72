import os
from pathlib import Path

import pytest
import torch

from dd3g.pose.body.geometry import procrustes, project
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.methods.guided import generate, lift
from dd3g.pose.methods.guided_energies import Smooth, bone_lengths
from dd3g.pose.metrics import acceleration_error, mpjpe
from dd3g.pose.networks.pretrained import WEIGHTS
from dd3g.pose.networks.prior import Prior

DATA = Path(os.environ.get("DD3G_DATA", "data"))
MOTION = DATA / "motion" / "cmu_mocap_30fps.npz"

needs_weights = pytest.mark.skipif(
    not (WEIGHTS / "pose-prior").is_dir(), reason="dd3g/weights/pose-prior is not there"
)
needs_motion = pytest.mark.skipif(not MOTION.is_file(), reason=f"{MOTION} is not there")


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.from_pretrained()


def _views(split: str, count: int):
    from dd3g.pose.data.motion import load_cmu
    from dd3g.pose.data.synthesis import synthesise

    motion = load_cmu(MOTION, split)
    return synthesise(motion, torch.linspace(0, len(motion) - 1, count).long(), 7)


def _bends(poses: torch.Tensor) -> torch.Tensor:
    """Angle (..., 14) in degrees between each bone and its parent bone."""
    pairs = [(c, p, H36M_17.parents[p]) for c, p in enumerate(H36M_17.parents) if p > 0]
    child, joint, parent = (list(x) for x in zip(*pairs, strict=True))
    a, b = poses[..., child, :] - poses[..., joint, :], poses[..., joint, :] - poses[..., parent, :]
    return torch.rad2deg(torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos())


@needs_weights
@needs_motion
@pytest.mark.slow
def test_samples_look_like_bodies(prior):
    poses, train = generate(prior, 400, seed=1), _views("train", 20_000).pose
    for measure in (bone_lengths, _bends):
        low, high = measure(train).quantile(torch.tensor([0.001, 0.999]), dim=0)
        own, known = measure(poses), measure(train[::50])
        inside = ((own >= low) & (own <= high)).float().mean()
        # 0.2 % of the training data lie outside by construction
        assert inside > 0.95, (
            measure.__name__,
            float(inside),
            float(((known >= low) & (known <= high)).float().mean()),
        )
    sides = bone_lengths(poses)[:, [0, 1, 2, 10, 11, 12]] - bone_lengths(poses)[:, [3, 4, 5, 13, 14, 15]]
    assert sides.abs().mean() < 0.025  # left and right alike
    assert (poses[:, 9, 1] < poses[:, [3, 6], 1].mean(1)).float().mean() > 0.9  # mostly heads up


@needs_weights
@needs_motion
@pytest.mark.slow
def test_unseen_people_are_lifted_and_more_hypotheses_help(prior):
    views = _views("test", 24)
    found = lift(prior, views.keypoints, views.confidence, views.K, 20, sigma=5.0)
    error = procrustes(found.poses, views.pose[:, None].expand_as(found.poses)) - views.pose[:, None]
    error = error.norm(dim=-1).mean(-1)  # (B, m)
    best = [float(error[:, :m].amin(1).mean()) for m in (1, 5, 20)]
    assert best[0] > best[1] > best[2] and best[2] < 0.07
    # Nobody is drawn small and near, not even where the first guesses were far off.
    depth = found.translation[..., 2] / views.root[:, None, 2]
    assert depth.min() > 0.5 and depth.median() > 0.85
    points = project(found.poses + found.translation[:, :, None], views.K[:, None])
    miss = (points - views.points[:, None]).norm(dim=-1).mean()
    assert float(miss) < 15
    assert found.poses[..., 2].std(1).mean() > found.poses[..., :2].std(1).mean()


@needs_weights
@needs_motion
@pytest.mark.slow
def test_frames_of_a_video_hold_together(prior):
    from dd3g.pose.data.motion import load_cmu
    from dd3g.pose.data.synthesis import synthesise

    motion = load_cmu(MOTION, "test")
    windows = motion.windows(12)
    views = synthesise(motion, windows[len(windows) // 2], 7, steady=True)
    errors = []
    for others in ([], [Smooth(frames=12)]):
        poses = lift(prior, views.keypoints, views.confidence, views.K, 4, others=others).recommended()[0]
        errors.append([e.mean() for e in (acceleration_error(poses, views.pose), mpjpe(poses, views.pose))])
    assert errors[1][0] < 0.5 * errors[0][0] and errors[1][1] < 1.1 * errors[0][1]
