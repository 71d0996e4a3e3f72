"""Each metric against a twin that loops over people, hypotheses and joints."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from dd3g.pose import metrics
from dd3g.pose.body.geometry import procrustes, project
from dd3g.pose.body.skeletons import H36M_17

B, M = 4, 6


def poses(*shape, seed=0, scale=0.1):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(17, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.4
    return base + scale * torch.randn(*shape, 17, 3, generator=g, dtype=torch.float64)


@pytest.fixture
def hypotheses():
    return poses(B, M)


@pytest.fixture
def truth():
    return poses(B, seed=1)


def dist(a, b):
    return math.dist(a.tolist(), b.tolist()) * 1000


def errors(a, b):
    return [dist(x, y) for x, y in zip(a, b, strict=True)]


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))


def test_mpjpe_and_pa(hypotheses, truth):
    close(
        metrics.mpjpe(hypotheses[:, 0], truth),
        [np.mean(errors(a, b)) for a, b in zip(hypotheses[:, 0], truth)],
    )
    expected = [np.mean(errors(procrustes(a, b), b)) for a, b in zip(hypotheses[:, 0], truth)]
    close(metrics.pa_mpjpe(hypotheses[:, 0], truth), expected)
    shifted = truth + torch.tensor([0.003, 0.0, 0.004], dtype=torch.float64)
    close(metrics.mpjpe(shifted, truth), [5.0] * B)
    assert metrics.pa_mpjpe(2 * shifted, truth).max() < 1e-9


def test_pck_is_strict_and_auc_its_mean(hypotheses, truth):
    one = torch.zeros(17, 3, dtype=torch.float64)
    moved = one.clone()
    moved[:, 0] = torch.arange(17) * 0.025  # 0, 25, ..., 400 mm
    assert metrics.pck(moved, one).item() == pytest.approx(100 * 6 / 17)  # 150 itself does not count
    twin = []
    for a, b in zip(hypotheses[:, 0], truth, strict=True):
        e = errors(a, b)
        twin.append(np.mean([100 * sum(e[j] < t for j in range(14)) / 14 for t in range(0, 151, 5)]))
    close(metrics.auc(hypotheses[:, 0, :14], truth[:, :14]), twin)
    expected = [100 * np.mean([e < 150 for e in errors(a, b)]) for a, b in zip(hypotheses[:, 0], truth)]
    close(metrics.pck(hypotheses[:, 0], truth), expected)
    assert metrics.auc(one, one).item() == pytest.approx(100 * 30 / 31)  # nothing is closer than 0 mm


def test_best_of_hypotheses(hypotheses, truth):
    best, best_aligned, joints, pcks = [], [], [], []
    for i in range(B):
        all_errors = [errors(hypotheses[i, k], truth[i]) for k in range(M)]
        best.append(min(np.mean(e) for e in all_errors))
        best_aligned.append(
            min(np.mean(errors(procrustes(hypotheses[i, k], truth[i]), truth[i])) for k in range(M))
        )
        joints.append(np.mean([min(e[j] for e in all_errors) for j in range(17)]))
        chosen = [1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16]
        pcks.append(max(100 * np.mean([e[j] < 150 for j in chosen]) for e in all_errors))
    close(metrics.best_of_m(hypotheses, truth), best)
    close(metrics.best_of_m(hypotheses, truth, align=True), best_aligned)
    close(metrics.joint_best(hypotheses, truth), joints)
    close(metrics.mh_pck(hypotheses, truth), pcks)


def test_jpma(hypotheses):
    K = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]], dtype=torch.float64).expand(B, 3, 3)
    translation = torch.tensor([0.0, 0, 4], dtype=torch.float64) + 0.1 * torch.rand(B, M, 3)
    keypoints = project(poses(B, seed=3) + torch.tensor([0, 0, 4.0]), K)
    found = metrics.jpma_pose(hypotheses, translation, keypoints, K)
    for i in range(B):
        for j in range(17):
            off = []
            for k in range(M):
                x, y, z = (hypotheses[i, k, j] + translation[i, k]).tolist()
                off.append(math.dist((1000 * x / z + 500, 1000 * y / z + 500), keypoints[i, j].tolist()))
            assert torch.equal(found[i, j], hypotheses[i, off.index(min(off)), j])


def test_cps(hypotheses, truth):
    expected = []
    hypotheses = truth[:, None] + 0.4 * (hypotheses - truth[:, None])
    hypotheses[:, :, 7] += 0.1  # the spine does not count
    for i in range(B):
        each = [errors(procrustes(hypotheses[i, k], truth[i]), truth[i]) for k in range(M)]
        total = sum(any(all(e[j] < t for j in range(17) if j != 7) for e in each) for t in range(1, 301))
        expected.append(float(total))
    assert len(set(expected)) > 1
    close(metrics.cps(hypotheses, truth), expected)
    close(metrics.cps(truth[:, None], truth), [300.0] * B)


def test_symmetry_and_consistency():
    video = poses(5, seed=4)
    pairs = {"hip": (0, 4, 0, 1), "thigh": (4, 5, 1, 2), "shin": (5, 6, 2, 3), "shoulder": (8, 11, 8, 14),
             "arm": (11, 12, 14, 15), "forearm": (12, 13, 15, 16)}  # fmt: skip
    off = [[abs(dist(p[a], p[b]) - dist(p[c], p[d])) for a, b, c, d in pairs.values()] for p in video]
    close(metrics.mpsse(video), [np.mean(x) for x in off])
    close(metrics.symmetry_error(video), [np.mean(x[1:]) for x in off])
    lengths = [[dist(p[c], p[H36M_17.parents[c]]) for p in video] for c in range(1, 17)]
    close(metrics.mpsce(video), float(np.mean([statistics.pstdev(x) for x in lengths])))
    close(metrics.bone_lengths(video)[:, 3], [dist(p[0], p[4]) / 1000 for p in video])


def test_diversity(hypotheses):
    stds, pairs = [], []
    for i in range(B):
        per_joint = []
        for j in range(17):
            mean = hypotheses[i, :, j].mean(0)
            per_joint.append(math.sqrt(np.mean([dist(x, mean) ** 2 for x in hypotheses[i, :, j]])))
        stds.append(np.mean(per_joint))
        pairs.append(
            np.mean(
                [
                    np.mean(errors(hypotheses[i, k], hypotheses[i, n]))
                    for k in range(M)
                    for n in range(M)
                    if k != n
                ]
            )
        )
    close(metrics.diversity(hypotheses), stds)
    close(metrics.average_pairwise_distance(hypotheses), pairs)
    assert metrics.average_pairwise_distance(hypotheses[:, :1]).eq(0).all()


def test_calibration_against_loops():
    drawn, true = poses(30, M), poses(30, seed=1)
    error, q, frequency = metrics.calibration(drawn, true, bins=5)
    close(q, [0.2, 0.4, 0.6, 0.8, 1.0])
    for j in range(17):
        p = []
        for i in range(30):
            median = torch.tensor([statistics.median(drawn[i, :, j, c].tolist()) for c in range(3)])
            p.append(np.mean([dist(drawn[i, k, j], median) > dist(true[i, j], median) for k in range(M)]))
        expected = [np.mean([x <= level + 1e-9 for x in p]) for level in q.tolist()]
        close(frequency[:, j], expected)
        close(error[j], float(np.mean([abs(f - level) for f, level in zip(expected, q.tolist())])))


def test_calibration_knows_the_sure_from_the_honest():
    true = poses(2000, seed=5)
    honest, _, _ = metrics.calibration(poses(2000, 50), true)
    sure, _, frequency = metrics.calibration(poses(2000, 50, scale=0.02), true)
    assert honest.mean() < 0.03 and sure.mean() > 0.4
    assert (frequency[0] > 0.9).all()


def test_acceleration():
    a, b = poses(7, seed=6), poses(7, seed=7)
    expected = []
    for t in range(1, 6):
        second = [x[t + 1] - 2 * x[t] + x[t - 1] for x in (a, b)]
        expected.append(np.mean(errors(*second)))
    close(metrics.acceleration_error(a, b), expected)
    line = a[:1] + torch.arange(7.0, dtype=torch.float64).reshape(7, 1, 1) * 0.1
    assert metrics.acceleration_error(line, a[:1].expand(7, 17, 3)).max() < 1e-9


def test_groups():
    table = metrics.by_group(torch.tensor([1.0, 2.0, 6.0]), ["walk", "eat", "walk"])
    assert table == {"eat": 2.0, "walk": 3.5} and list(table) == ["eat", "walk"]
