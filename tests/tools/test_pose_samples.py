import json
import math

import numpy as np
import pytest
import torch
from stand_ins.small_motion import STANDING

from dd3g.command.run import run_command
from dd3g.pose import metrics
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.body.skeletons import H36M_17, flip
from tools import pose_samples as tool
from tools.pose_samples import HINGES, compare, hinge_bends

index = H36M_17.joints.index
# Hanging limbs, y up, facing +z, left is +x.
HANGING = torch.tensor(
    [
        [0, 0, 0], [-0.1, 0, 0], [-0.1, -0.4, 0], [-0.1, -0.8, 0], [0.1, 0, 0], [0.1, -0.4, 0],
        [0.1, -0.8, 0], [0, 0.25, 0], [0, 0.5, 0], [0, 0.6, 0.05], [0, 0.7, 0], [0.18, 0.5, 0],
        [0.18, 0.2, 0], [0.18, -0.05, 0], [-0.18, 0.5, 0], [-0.18, 0.2, 0], [-0.18, -0.05, 0],
    ]
)  # fmt: skip


def turned(joint, axis, degrees, end, pose=HANGING):
    """The limb beyond a joint turned about an axis."""
    pose = pose.clone()
    rows = [index(j) for j in end]
    R = axis_angle_to_matrix(torch.tensor(axis) * math.radians(degrees))
    pose[rows] = (pose[rows] - pose[index(joint)]) @ R.T + pose[index(joint)]
    return pose


def by_hand(pose):
    """Degrees of each hinge with rotation matrices, one number after the other."""
    pose = pose.double().numpy()
    found = []
    for joint, start, end, way in HINGES.values():
        part = start[2:]
        left = pose[index("l_" + part)] - pose[index("r_" + part)]
        left /= np.linalg.norm(left)
        up = pose[index("thorax")] - pose[0]
        up -= up @ left * left
        up /= np.linalg.norm(up)
        forward = np.cross(left, up)
        u = pose[index(joint)] - pose[index(start)]
        v = pose[index(end)] - pose[index(joint)]
        u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
        bend, raised = math.degrees(math.acos(u @ v)), math.degrees(math.acos(-up @ u))
        axis = np.cross(-up, u)
        axis = axis / np.linalg.norm(axis) * math.radians(raised)
        R = axis_angle_to_matrix(torch.tensor(axis)).numpy()  # hanging -> the limb
        back = R.T @ v  # the lower limb as if the upper one hung
        inward = back @ left * (-1 if joint.startswith("l_") else 1)
        direction = math.degrees(math.atan2(inward, way * (back @ forward)))
        found.append((bend, math.nan if bend < 20 or raised > 120 else direction))
    return np.array(found).T


def test_bends_are_those_of_a_hand_count():
    poses = HANGING + 0.15 * torch.randn(60, 17, 3, generator=torch.Generator().manual_seed(0))
    bends, directions = hinge_bends(poses)
    for b in range(60):
        expected = by_hand(poses[b])
        np.testing.assert_allclose(bends[b], expected[0], atol=0.05)
        np.testing.assert_allclose(directions[b], expected[1], atol=0.2)
    assert 0 < directions.isnan().float().mean() < 0.5
    turn = axis_angle_to_matrix(torch.tensor([0.4, -1.0, 2.0]))
    again = hinge_bends(poses @ turn.T)
    torch.testing.assert_close(again[1], directions, atol=0.1, rtol=0, equal_nan=True)
    sides = hinge_bends(flip(poses))
    torch.testing.assert_close(sides[0], bends[:, [1, 0, 3, 2]], atol=0.05, rtol=0)
    torch.testing.assert_close(sides[1], directions[:, [1, 0, 3, 2]], atol=0.1, rtol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("joint", "axis", "end", "expected"),
    [
        ("l_knee", (1.0, 0, 0), ["l_ankle"], 0),  # back
        ("r_knee", (-1.0, 0, 0), ["r_ankle"], 180),  # forward, as no knee does
        ("l_elbow", (-1.0, 0, 0), ["l_wrist"], 0),  # forward
        ("l_elbow", (0, 0, -1.0), ["l_wrist"], 90),  # across the belly
        ("r_elbow", (0, 0, 1.0), ["r_wrist"], 90),
        ("r_elbow", (0, 0, -1.0), ["r_wrist"], -90),
    ],
)
def test_ways_to_bend(joint, axis, end, expected):
    bends, directions = hinge_bends(turned(joint, axis, 50, end))
    k = [h[0] for h in HINGES.values()].index(joint)
    assert float(bends[k]) == pytest.approx(50, abs=0.1)
    assert abs(float(directions[k])) == pytest.approx(abs(expected), abs=0.1)
    assert expected in (0, 180) or float(directions[k]) == pytest.approx(expected, abs=0.1)
    assert directions[[i for i in range(4) if i != k]].isnan().all()  # straight limbs point nowhere


def test_a_raised_thigh_takes_its_frame_along():
    sitting = turned("l_hip", (-1.0, 0, 0), 90, ["l_knee", "l_ankle"])  # the leg straight ahead
    sitting = turned("l_knee", (1.0, 0, 0), 90, ["l_ankle"], sitting)
    assert sitting[6, 2] == pytest.approx(0.4, abs=1e-5) and sitting[6, 1] == pytest.approx(-0.4, abs=1e-5)
    bends, directions = hinge_bends(sitting)
    assert float(bends[0]) == pytest.approx(90, abs=0.1) and float(directions[0]) == pytest.approx(0, abs=0.1)
    over = turned("l_shoulder", (-1.0, 0, 0), 150, ["l_elbow", "l_wrist"])
    over = turned("l_elbow", (-1.0, 0, 0), 60, ["l_wrist"], over)
    assert hinge_bends(over)[1][2].isnan()


def test_shares_within_limits():
    g = torch.Generator().manual_seed(0)
    views = STANDING + 0.02 * torch.randn(4000, 17, 3, generator=g)
    same = compare(views[:2000], views, views[2000:])
    low, high = metrics.bone_lengths(views).quantile(torch.tensor([0.001, 0.999]), dim=0)
    lengths = metrics.bone_lengths(views[:2000])
    expected = float(((lengths >= low) & (lengths <= high)).float().mean())
    assert same["samples"]["bones_inside"] == pytest.approx(expected, abs=1e-4) and expected > 0.99
    assert all(claim["bound"] >= 0 for claim in same["claims"].values())
    long = views[:2000].clone()
    long[:1000, 3] += long[:1000, 3] - long[:1000, 2]  # every other right shin twice as long
    found = compare(long, views, views[2000:])
    assert found["samples"]["bones_inside_by_bone"]["r_ankle"] == pytest.approx(0.5, abs=0.01)
    assert found["samples"]["violations"] == pytest.approx(same["samples"]["violations"], abs=1e-6)
    wrong = views[:2000].clone()
    shin = wrong[:, 3] - wrong[:, 2]
    R = axis_angle_to_matrix(torch.tensor([1.0, 0, 0]) * 2)
    wrong[:, 3] = wrong[:, 2] + shin @ R.T
    found = compare(wrong, views, views[2000:])
    assert found["samples"]["violations_by_joint"]["right knee"] == 1.0
    half = compare(
        torch.cat(
            [HANGING.expand(1000, 17, 3), turned("r_knee", (-1.0, 0, 0), 50, ["r_ankle"]).expand(1000, 17, 3)]
        ),
        HANGING.expand(2000, 17, 3),
        HANGING.expand(2000, 17, 3),
    )
    # One joint of four in half of the poses: each pose counts 0 or 1/4.
    assert half["samples"]["violations"] == 0.125
    assert half["samples"]["violations_error"] == pytest.approx(0.125 / 2000**0.5, rel=1e-3)
    assert not found["claims"]["joint-limit violations no more than in training data"]["holds"]
    assert found["training"] == same["training"]


def test_limbs_that_never_bend_have_no_limits_to_their_direction():
    """As in a made-up archive: NaN, which JSON has not, ended the command when all was drawn."""
    views = STANDING + 0.001 * torch.randn(64, 17, 3, generator=torch.Generator().manual_seed(0))
    found = compare(views, views, views)
    assert found["limits"]["direction, degrees"] == {name: [None, None] for name in HINGES}
    json.dumps(found, allow_nan=False)


def test_the_command(tmp_path, archive, weights, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(tool, "VIEWS", 200)
    monkeypatch.setattr(tool, "CHUNK", 40)
    output, sheet = tmp_path / "a" / "samples.json", tmp_path / "a" / "sheet.png"
    arguments = [str(archive), "-n", "70", "-o", str(output), "--sheet", str(sheet), "--steps", "3"]
    assert run_command(tool.main, [*arguments, "--weights", str(weights / "pose-prior")], "samples") == 0
    report = json.loads(output.read_text())
    assert report["n"] == 70 and report["views"] == 200 and 0 <= report["samples"]["violations"] <= 1
    assert "samples: bones within" in capsys.readouterr().out and "percentiles" in report["convention"]
    from PIL import Image

    image = np.asarray(Image.open(sheet).convert("L"))
    assert image.shape == (1600, 1600)
    cells = image.reshape(8, 200, 8, 200).transpose(0, 2, 1, 3)
    assert (cells.min((2, 3)) < 200).all()  # something in each of the 64
    assert run_command(tool.main, [*arguments, "--weights", str(tmp_path / "none")], "samples") == 2
    said = capsys.readouterr().err
    assert run_command(tool.main, [str(archive), "-n", "1"], "samples") == 2  # which has no deviation
    assert "Invalid value for '-n'" in capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
