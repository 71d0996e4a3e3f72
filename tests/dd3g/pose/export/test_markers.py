"""Tables, .trc, .c3d and body parameters, read back byte by byte or by another reader."""

import struct

import numpy as np
import pytest
import torch
from stand_ins.made_up_people import person
from stand_ins.small_motion import rotations

from dd3g.pose.body.bodies import body_rotations, default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.body.skeletons import H36M_17, SMPL_24
from dd3g.pose.export import markers, results, skeletons
from dd3g.pose.series import Track


def test_marker_files_and_tables_hold_the_joints(tmp_path):
    points = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(1))
    times = [0.0, 0.04, 0.08]
    lines = markers.save_trc(points, tmp_path / "a.trc", times).read_text().splitlines()
    assert lines[2].split("\t")[:5] == ["25.000000", "25.000000", "3", "17", "mm"]
    assert lines[3].split("\t")[2::3][:17] == list(H36M_17.joints)
    rows = np.array([[float(v) for v in line.split("\t")] for line in lines[6:]])
    np.testing.assert_allclose(rows[:, 1], times, atol=1e-5)
    want = 1000 * points
    np.testing.assert_allclose(rows[:, 2:].reshape(3, 17, 3), want, atol=1e-2)
    table = np.genfromtxt(markers.save_csv(points, tmp_path / "a.csv", times), delimiter=",", names=True)
    np.testing.assert_allclose(table["time"], times)
    np.testing.assert_allclose(table["l_wrist_y"], points[:, 13, 1], atol=1e-4)


def test_c3d_holds_the_joints_byte_by_byte(tmp_path):
    points = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(1))
    content = markers.save_c3d(points, tmp_path / "a.c3d", [0.0, 0.04, 0.08]).read_bytes()
    assert content[:2] == b"\x02\x50" and content[512:516] == bytes([1, 0x50, content[514], 84])
    count, analog, first, last, gap, scale, start, _, rate = struct.unpack("<5HfHHf", content[2:24])
    assert (count, analog, first, last, gap, scale, rate) == (17, 0, 1, 3, 0, -1.0, 25.0)
    assert start == 2 + content[514] and len(content) % 512 == 0
    rows = np.frombuffer(content, "<f4", 3 * 17 * 4, 512 * (start - 1)).reshape(3, 17, 4)
    np.testing.assert_allclose(rows[..., :3], 1000 * points, rtol=1e-6)
    assert not rows[..., 3].any()


@pytest.mark.filterwarnings("ignore:missing parameter|No analog data")
@pytest.mark.parametrize("frames", [1, 3, 70_000])  # 16 bits count to 65,535
def test_another_reader_of_c3d_sees_the_joints(tmp_path, frames):
    c3d = pytest.importorskip("c3d", reason="a reader of .c3d: pip install c3d")
    points = torch.randn(frames, 17, 3, generator=torch.Generator().manual_seed(1))
    path = markers.save_c3d(points, tmp_path / "a.c3d", [i / 30 for i in range(frames)])
    with path.open("rb") as file:
        reader = c3d.Reader(file)
        assert reader.point_rate == pytest.approx(30)
        assert [label.strip() for label in reader.point_labels] == list(H36M_17.joints)
        assert reader.get("POINT:UNITS").string_array == ["mm"]
        rows = np.stack([row[:, :4] for _, row, _ in reader.read_frames(copy=True)])
    assert (rows[..., 3] == 0).all()  # seen
    np.testing.assert_allclose(rows[..., :3], 1000 * points, atol=1e-2)


def test_parameters_are_those_of_amass(tmp_path):
    R, roots = rotations(2), torch.tensor([[0.0, 0.5, 3], [0.1, 0, 3]])
    with np.load(skeletons.save_parameters(R, roots, tmp_path / "a.npz", [0.0, 0.02])) as found:
        assert found["poses"].shape == (2, 72) and found["betas"].shape == (10,)
        assert str(found["gender"]) == "neutral" and float(found["mocap_framerate"]) == pytest.approx(50)
        # SMPL-X' names; its body is SMPL's without the hands.
        body = np.concatenate([found["root_orient"], found["pose_body"]], 1)
        assert body.shape == (2, 66) and (body == found["poses"][:, :66]).all()
        assert found["mocap_frame_rate"] == found["mocap_framerate"]
        back = axis_angle_to_matrix(torch.from_numpy(found["poses"]).reshape(2, 24, 3))
        trans = torch.from_numpy(found["trans"])
    want = default_body().pose(R)[0] + roots[:, None]
    torch.testing.assert_close(default_body().pose(back)[0] + trans[:, None], want, atol=1e-4, rtol=0)


def test_bodies_are_written_where_there_are_rotations_or_a_format_is_named(tmp_path):
    assert skeletons.save_bodies(Track.of([person()]), tmp_path, "a") == []
    body = person(rotations=rotations(1)[0], betas=torch.zeros(10))
    assert skeletons.save_bodies(Track.of([body]), tmp_path, "a") == ["a.bvh", "a.glb"]
    names = ["a.trc", "a.c3d", "a.csv", "a.npz", "a.glb"]
    formats = [name[2:] for name in names]
    track = Track.of([person()] * 2, [0.0, 0.1])
    assert skeletons.save_bodies(track, tmp_path, "a", formats) == names
    # In the camera's frame y goes down and z away; programs have y up and z towards them.
    rows = np.array(
        [line.split("\t")[2:] for line in (tmp_path / "a.trc").read_text().splitlines()[6:]], np.float64
    )
    upright = 1000 * track.points[slice(None)] * torch.tensor([1.0, -1, -1])
    np.testing.assert_allclose(rows.reshape(2, 17, 3), upright, atol=1e-2)
    with np.load(tmp_path / "a.npz") as found:
        root = axis_angle_to_matrix(torch.from_numpy(found["root_orient"]))
        own = body_rotations(track.poses[slice(None)])[:, 0]
        torch.testing.assert_close(root, torch.diag(torch.tensor([1.0, -1, -1])) @ own, atol=1e-4, rtol=0)
        np.testing.assert_allclose(found["trans"], track.roots[slice(None)] * torch.tensor([1.0, -1, -1]))
    entry = results.as_json(body)["body"]
    assert entry["joints"] == list(SMPL_24.joints) and entry["rotations"].shape == (24, 3)
