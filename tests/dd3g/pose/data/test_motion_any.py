"""Motion of any kind to train on."""

import numpy as np
import pytest
import torch
from stand_ins.small_motion import small_archive
from typer.testing import CliRunner

from dd3g.command.run import make_app
from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.motion_files import joined, load_motion, thinned
from dd3g.pose.export.skeletons import save_bvh
from dd3g.pose.train import train_command

G = torch.Generator().manual_seed(1)
UP = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def amass(path, frames=8, rate=120.0, width=156):
    poses = torch.zeros(frames, width)
    poses[:, :66] = 0.3 * torch.randn(frames, 66, generator=G)
    trans = torch.randn(frames, 3, generator=G)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        poses=poses.numpy(),
        trans=trans.numpy(),
        betas=np.zeros(16),
        mocap_framerate=rate,
        gender="male",
    )
    return poses, trans


def bvh(path, frames=6):
    rotations = axis_angle_to_matrix(0.2 * torch.randn(frames, 24, 3, generator=G))
    rest = default_body().pose(torch.eye(3).expand(1, 24, 3, 3))[0][0]
    save_bvh(rest, rotations, torch.zeros(frames, 3), path, [i / 30 for i in range(frames)])
    return default_body().points(rotations, torch.zeros(frames, 10))


def test_amass_stands_up_and_loses_frames_that_are_alike(tmp_path):
    poses, trans = amass(tmp_path / "Subject_1" / "walk_poses.npz")
    found = load_motion(tmp_path / "Subject_1" / "walk_poses.npz")
    assert len(found) == 2 and found.fps == 30 and found.subjects == ["Subject_1"]
    R = axis_angle_to_matrix(torch.nn.functional.pad(poses[::4, :66], (0, 6)).reshape(2, 24, 3))
    torch.testing.assert_close(
        found.joints, default_body().points(R, torch.zeros(2, 10)) @ UP.T, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.root, torch.stack([trans[::4, 0], trans[::4, 2], -trans[::4, 1]], 1))
    assert found.rotations_valid.all()


def test_a_bvh_of_ours_comes_back(tmp_path):
    want = bvh(tmp_path / "a.bvh")
    found = load_motion(tmp_path / "a.bvh")
    limbs = [0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
    torch.testing.assert_close(found.joints[:, limbs], (want - want[:, :1])[:, limbs], atol=2e-3, rtol=0)


def test_a_folder_is_read_as_one(tmp_path):
    amass(tmp_path / "m" / "s1" / "a.npz")
    bvh(tmp_path / "m" / "b.bvh")
    (tmp_path / "m" / "._b.bvh").touch()  # as macOS leaves it beside a copy
    (tmp_path / "m" / ".trash").mkdir()
    (tmp_path / "m" / ".trash" / "c.bvh").touch()
    found = load_motion(tmp_path / "m")
    assert len(found.actions) == 2 and torch.bincount(found.clip).tolist() == [6, 2]
    assert found.rotations_valid.tolist() == [False] * 6 + [True] * 2
    assert len(thinned(joined([found]), 15)) == 4


def test_what_is_no_motion_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    (tmp_path / "07_01.amc").touch()
    np.savez(tmp_path / "short.npz", poses=np.zeros((2, 10)), trans=np.zeros((2, 3)), mocap_framerate=30)
    np.savez(tmp_path / "rateless.npz", poses=np.zeros((2, 66)), trans=np.zeros((2, 3)))
    for name, message in (
        ("empty", "holds no motion: looked for .npz, .bvh, .amc"),
        ("a.txt", "is not a motion file"),
        ("07_01.amc", "no skeleton 07.asf beside it"),
        ("short.npz", "66 numbers"),
        ("rateless.npz", "no mocap_framerate"),
    ):
        with pytest.raises(UserError, match=message):
            load_motion(tmp_path / name)


@pytest.mark.parametrize("name", ["m", "m/a.npz", "b.bvh", "motion.npz"])
def test_training_takes_them(tmp_path, name):
    amass(tmp_path / "m" / "a.npz", frames=40)
    bvh(tmp_path / "b.bvh")
    small_archive(tmp_path / "motion.npz")
    words = ["lifter", "--motion", tmp_path / name, "-o", tmp_path / "run", "--steps", 1]
    result = CliRunner().invoke(make_app(train_command), [str(w) for w in words])
    assert result.exit_code == 0, result.output
