"""Bodies of HMR2 and the like as the start of recovery, through the command: pictures, videos and views."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.made_up_people import SIZE, K, detection

from dd3g.errors import UserError
from dd3g.pose.__main__ import main
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.body.skeletons import SMPL_24
from dd3g.pose.detection.regressed import read_regressed
from dd3g.pose.estimation import lift
from dd3g.pose.metrics import mpjpe

G = torch.Generator().manual_seed(5)


def bodies(count):
    """Rotations (count, 24, 3, 3) of people with a knee and both elbows bent, and their joints."""
    angles = torch.zeros(count, 24, 3)
    bent = {"l_shoulder": (0, 0, -1.1), "r_shoulder": (0, 0.5, 1.0), "l_elbow": (0, -1.0, 0)}
    bent |= {"r_elbow": (0, 0.8, 0), "r_hip": (-0.9, 0, 0), "r_knee": (1.0, 0, 0)}
    for joint, angle in bent.items():
        angles[:, SMPL_24.joints.index(joint)] = torch.tensor(angle)
    angles[:, 16, 2] += 0.05 * torch.arange(count)
    turned = axis_angle_to_matrix(angles)
    turned[:, 0] = torch.diag(torch.tensor([1.0, -1, -1])) @ axis_angle_to_matrix(torch.tensor([0, 0.5, 0.0]))
    return turned, default_body().points(turned, torch.zeros(count, 10), "h36m-17")


def off(rotations, degrees=12.0):
    """As a regressor errs: every joint by about so much."""
    wrong = torch.randn(*rotations.shape[:2], 3, generator=G) * np.radians(degrees) / 3**0.5
    return rotations @ axis_angle_to_matrix(wrong)


def hmr2(path, rotations, **beside):
    n = len(rotations)
    np.savez(path, pred_pose=rotations, pred_betas=np.zeros((n, 10)), pred_cam=np.ones((n, 3)), **beside)
    return path


def people(joints, places):
    """Detections of them at places (N, 3) metres."""
    found = []
    for pose, place in zip(joints, places, strict=True):
        points = project(pose + torch.tensor(place), K)
        low, high = points.amin(0), points.amax(0)
        half = 0.75 * (high - low).amax()
        square = torch.cat([(low + high) / 2 - half, (low + high) / 2 + half])
        found.append(replace(detection(), keypoints=points, square=square))
    return found


def test_recovery_starts_from_what_a_regressor_saw():
    turned, joints = bodies(1)
    (seen,) = people(joints, [(0, 0, 4.0)])
    start = off(turned)
    begun = default_body().points(start, torch.zeros(1, 10), "h36m-17")
    (found,) = lift([replace(seen, start=start[0])], "recovery", 1)
    (alone,) = lift([seen], "recovery", 1)
    error = mpjpe(found.pose, joints[0])
    assert error < 60 and error < 0.8 * mpjpe(begun[0], joints[0])
    assert error < 0.8 * mpjpe(alone.pose, joints[0])
    # Someone beside them whom the regressor missed is recovered from keypoints as before.
    both = lift([replace(seen, start=start[0]), seen], "recovery", 1)
    torch.testing.assert_close(both[0].pose, found.pose, atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1].pose, alone.pose, atol=1e-4, rtol=0)
    (short,) = lift([replace(seen, start=start[0])], "recovery", 1, height=1.1)
    assert short.translation[2] < 0.7 * found.translation[2]


def test_bodies_belong_to_the_boxes_that_are_nearest(tmp_path):
    turned, joints = bodies(3)
    seen = people(joints, [(-1, 0, 4.0), (0, 0, 4.0), (1, 0, 4.0)])
    middles = torch.stack([(p.square[:2] + p.square[2:]) / 2 for p in seen])
    order = [2, 0, 1]
    names = ["a/b.jpg", "b.jpg", "b.jpg"]
    file = hmr2(tmp_path / "a.npz", turned[order], center=middles[order] + 9, imgname=names)
    found = read_regressed(file).in_picture(seen, "b")
    for i in range(3):
        torch.testing.assert_close(found[i].start, turned[i])
    far = hmr2(tmp_path / "b.npz", turned[:1], center=middles[:1] - 900)
    assert [p.start for p in read_regressed(far).in_picture(seen, "b")] == [None] * 3
    with pytest.raises(UserError, match="has 3 bodies, b shows 2 people: give 'center'"):
        read_regressed(hmr2(tmp_path / "c.npz", turned)).in_picture(seen[:2], "b")
    with pytest.raises(UserError, match="has nobody of c, only of b"):
        read_regressed(file).in_picture(seen, "c")
    with pytest.raises(UserError, match="must be rotation matrices"):
        read_regressed(hmr2(tmp_path / "d.npz", 2 * turned))


def test_bodies_of_a_video_have_its_frames_in_their_names(tmp_path):
    turned, joints = bodies(3)
    crowd = [people(joints[f : f + 1], [(0, 0, 4.0)]) for f in range(3)]
    names = [f"clip/{i:06d}.jpg" for i in (3, 1)]
    centers = torch.stack([(crowd[f][0].square[:2] + crowd[f][0].square[2:]) / 2 for f in (2, 0)])
    file = hmr2(tmp_path / "a.npz", turned[[2, 0]], imgname=names, center=centers)
    found = read_regressed(file).in_frames(crowd)
    torch.testing.assert_close(found[0][0].start, turned[0])
    torch.testing.assert_close(found[2][0].start, turned[2])
    assert found[1][0].start is None
    plain = read_regressed(hmr2(tmp_path / "b.npz", turned)).in_frames(crowd)
    torch.testing.assert_close(plain[1][0].start, turned[1])
    with pytest.raises(UserError, match="has 2 bodies, the video shows 3 in all its frames"):
        read_regressed(hmr2(tmp_path / "c.npz", turned[:2])).in_frames(crowd)


def answers(folder, name):
    content = json.loads((folder / f"{name}.pose.json").read_text())
    people = content.get("people") or [p for f in content["frames"] for p in f["people"]]
    return torch.tensor([p["recommended"]["pose"] for p in people])


@pytest.mark.slow
def test_the_command_starts_from_predictions(tmp_path, capsys):
    turned, joints = bodies(4)
    seen = [p.keypoints for p in people(joints, [(0, 0, 4.0)] * 4)]
    out, options = (
        tmp_path / "out",
        ["--method", "recovery", "--hypotheses", "1", "-o", str(tmp_path / "out")],
    )

    def run(*words):
        assert main([*map(str, words), *options]) == 0, capsys.readouterr().err

    # A picture with its keypoints.
    Image.new("RGB", SIZE).save(tmp_path / "one.png")
    np.savez(tmp_path / "one.npz", keypoints=seen[0], layout="h36m-17", K=K)
    file = hmr2(tmp_path / "hmr2.npz", off(turned[:1]), imgname=["one.png"])
    run(tmp_path / "one.png", "--keypoints", tmp_path / "one.npz", "--predictions", file)
    assert mpjpe(answers(out, "one")[0], joints[0]) < 60
    # A video, the third frame left out.
    images = [Image.new("RGB", SIZE, (9, i, 9)) for i in range(4)]
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:], duration=40)
    np.savez(tmp_path / "clip.npz", keypoints=np.stack(seen)[:, None], layout="h36m-17", K=K)
    rows = [0, 1, 3]
    file = hmr2(tmp_path / "video.npz", off(turned[rows]), imgname=[f"{i}.jpg" for i in rows])
    run(tmp_path / "clip.gif", "--keypoints", tmp_path / "clip.npz", "--predictions", file)
    assert mpjpe(answers(out, "clip"), joints).max() < 70
    # Two views of one instant, from the sides.
    turn = axis_angle_to_matrix(torch.tensor([0.0, 1.2, 0]))
    other = turned[:1].clone()
    other[:, 0] = turn @ other[:, 0]
    twice = {"left": seen[0], "right": people(joints[:1] @ turn.T, [(0, 0, 4.0)])[0].keypoints}
    (tmp_path / "k").mkdir()
    for name, points in twice.items():
        Image.new("RGB", SIZE).save(tmp_path / f"{name}.png")
        np.savez(tmp_path / "k" / f"{name}.npz", keypoints=points, layout="h36m-17", K=K)
    both = off(torch.cat([turned[:1], other]))
    file = hmr2(tmp_path / "views.npz", both, imgname=["left.png", "right.png"])
    pictures = [tmp_path / f"{name}.png" for name in twice]
    run(*pictures, "--views", "--keypoints", tmp_path / "k", "--predictions", file)
    assert mpjpe(answers(out, "left")[0], joints[0]) < 50
    assert main([str(tmp_path / "one.png"), "--predictions", str(file), "-o", str(out)]) == 2
    assert "add --method recovery" in capsys.readouterr().err
