"""Fixtures of the pose tests: untrained networks, and a small archive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stand_ins.small_motion import STANDING

from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter, LifterConfig
from dd3g.pose.networks.prior import Prior, PriorConfig
from dd3g.pose.networks.rotation_denoiser import RotationConfig, RotationDenoiser


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder of untrained networks: what they say is wrong, but the whole way runs."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    Prior(PriorConfig(width=64, blocks=1, time_width=16, groups=8)).save_pretrained(folder / "pose-prior")
    GraphLifter(LifterConfig(width=8, blocks=1)).save_pretrained(folder / "pose-lifter")
    Difficulty().save_pretrained(folder / "pose-difficulty")
    denoiser = RotationDenoiser(RotationConfig(condition=8, hidden=16, blocks=1))
    denoiser.save_pretrained(folder / "pose-recovery")
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """100 frames in the layout of the CMU archive, 30 of them for training."""
    path = tmp_path_factory.mktemp("motion") / "cmu.npz"
    rng = np.random.default_rng(0)
    joints = STANDING.numpy() + 0.03 * rng.normal(size=(100, 17, 3))
    joints[:, 0] = 0
    np.savez(
        path,
        joints_rel=joints.astype(np.float16),
        root=0.01 * rng.normal(size=(100, 3)).astype(np.float32),
        rot24=(0.1 * rng.normal(size=(100, 24, 3))).astype(np.float16),
        clip_start=np.array([0, 30, 66]),
        clip_len=np.array([30, 36, 34]),
        subject=np.array(["1", "5", "49"]),
        action=np.array(["walk", "dance - pirouette", "walk"]),
        rot_valid=np.array([True, True, True]),
        split=np.array(["train", "test", "test"]),
        fps=np.float32(30),
    )
    return path
