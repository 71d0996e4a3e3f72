"""The archive of prepared motion: its splits, its windows, and broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dd3g.errors import UserError
from dd3g.pose.data.motion import load_cmu

DATA = Path(os.environ.get("DD3G_DATA", "data"))
ARCHIVE = DATA / "motion" / "cmu_mocap_30fps.npz"


def archive(path, **changes):
    rng = np.random.default_rng(0)
    lengths = np.array([4, 3, 5, 2])
    arrays = {
        "joints_rel": rng.normal(size=(14, 17, 3)).astype(np.float16),
        "root": rng.normal(size=(14, 3)).astype(np.float32),
        "rot24": rng.normal(size=(14, 24, 3)).astype(np.float16),
        "clip_start": np.cumsum(lengths) - lengths,
        "clip_len": lengths,
        "subject": np.array(["1", "x_walking", "5", "2"]),
        "trial": np.array(["1", "1", "2", "1"]),
        "action": np.array(["walk", "walk", "dance", "run"]),
        "source": np.array(["amc"] * 4),
        "rot_valid": np.array([True, True, False, True]),
        "split": np.array(["train", "train", "test", "train"]),
        "fps": np.float32(30),
    } | changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_splits_of_the_archive(tmp_path):
    path = tmp_path / "cmu.npz"
    arrays = archive(path)
    strict, loose, test = load_cmu(path), load_cmu(path, strict=False), load_cmu(path, "test")
    assert strict.subjects == ["1", "2"] and strict.clip.tolist() == [0] * 4 + [1] * 2
    assert loose.subjects == ["1", "x_walking", "2"] and len(loose) == 9
    assert test.actions == ["dance"] and not test.rotations_valid.any() and test.fps == 30
    rows = [0, 1, 2, 3, 12, 13]
    np.testing.assert_array_equal(strict.joints.numpy(), arrays["joints_rel"][rows].astype(np.float32))
    np.testing.assert_array_equal(strict.rotations.numpy(), arrays["rot24"][rows].astype(np.float32))
    np.testing.assert_array_equal(strict.root.numpy(), arrays["root"][rows])
    assert len(load_cmu(path, "all", strict=False)) == 14


def test_windows_stay_within_clips(tmp_path):
    archive(tmp_path / "cmu.npz")
    motion = load_cmu(tmp_path / "cmu.npz", "all", strict=False)
    assert motion.windows(2).tolist() == [[0, 1], [2, 3], [4, 5], [7, 8], [9, 10], [12, 13]]
    assert motion.windows(4).tolist() == [[0, 1, 2, 3], [7, 8, 9, 10]]
    assert motion.windows(99).shape == (0, 99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rot24": None}, "rot24"),
        ({"joints_rel": np.zeros((14, 16, 3))}, r"joints_rel must have the shape \(N, 17, 3\)"),
        ({"clip_len": np.array([4, 3, 5, 1])}, "do not add up"),
        ({"clip_start": np.array([0, 4, 8, 12])}, "clip_start"),
        ({"split": np.array(["train"] * 4)}, "no clips in split 'test'"),
    ],
)
def test_broken_archives_are_told(tmp_path, changes, message):
    archive(tmp_path / "cmu.npz", **changes)
    with pytest.raises(UserError, match=message):
        load_cmu(tmp_path / "cmu.npz", "test")


def test_no_archive_and_half_an_archive(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_cmu(tmp_path / "no.npz")
    archive(tmp_path / "cmu.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "cmu.npz").read_bytes()[:1500])
    with pytest.raises(UserError, match="half.npz is not a whole npz"):
        load_cmu(tmp_path / "half.npz")
    with pytest.raises(UserError, match="split must be"):
        load_cmu(tmp_path / "cmu.npz", "dev")


@pytest.mark.skipif(not ARCHIVE.exists(), reason="needs the CMU motion archive ($DD3G_DATA)")
def test_the_real_archive():
    train, test = load_cmu(ARCHIVE), load_cmu(ARCHIVE, "test")
    assert (len(train), len(test)) == (58721, 5537)
    assert set(test.subjects) == {"5", "49"} and not set(test.subjects) & set(train.subjects)
    assert not any(s.startswith("x_") for s in train.subjects)
    assert train.joints[:, 0].abs().max() == 0
