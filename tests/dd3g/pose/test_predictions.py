"""Bodies of HMR2 and the like as the start of recovery, and published weights that look at their features."""

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
from dd3g.pose.methods import recovery
from dd3g.pose.methods.refinement import IMAGINED, PUBLISHED, PUBLISHED_VIDEO, recover
from dd3g.pose.metrics import mpjpe
from dd3g.pose.networks.chosen import Networks
from dd3g.pose.networks.difficulty import Difficulty, DifficultyConfig
from dd3g.pose.networks.rotation_denoiser import RotationConfig, RotationDenoiser

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


@pytest.mark.slow
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
    with pytest.raises(UserError, match="has nobody in c, only in b"):
        read_regressed(file).in_picture(seen, "c")
    with pytest.raises(UserError, match="must be rotation matrices"):
        read_regressed(hmr2(tmp_path / "d.npz", 2 * turned))


def test_bodies_of_a_video_have_its_frames_in_their_names(tmp_path):
    turned, joints = bodies(3)
    crowd = [people(joints[f : f + 1], [(0, 0, 4.0)]) for f in range(3)]
    names = [f"clip/{i:06d}.jpg" for i in (3, 1)]
    centers = torch.stack([(crowd[f][0].square[:2] + crowd[f][0].square[2:]) / 2 for f in (2, 0)])
    file = hmr2(tmp_path / "a.npz", turned[[2, 0]], imgname=names, center=centers)
    found = list(read_regressed(file).in_frames(crowd))
    torch.testing.assert_close(found[0][0].start, turned[0])
    torch.testing.assert_close(found[2][0].start, turned[2])
    assert found[1][0].start is None
    plain = list(read_regressed(hmr2(tmp_path / "b.npz", turned)).in_frames(crowd))
    torch.testing.assert_close(plain[1][0].start, turned[1])
    with pytest.raises(UserError, match="has 2 bodies, the video shows 3 in all its frames"):
        list(read_regressed(hmr2(tmp_path / "c.npz", turned[:2])).in_frames(crowd))
    # The names are those of all frames, of which every second is looked at: 0, and 2 with body 3.jpg.
    halves = list(read_regressed(file).in_frames(crowd[::2], 2))
    torch.testing.assert_close(halves[1][0].start, turned[2])


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


def conditioned(folder, width=8):
    """A denoiser of features of the picture as `pose convert` writes it."""
    torch.manual_seed(3)
    network = RotationDenoiser(RotationConfig("features", width, 16, 2))
    network.encoder.deviation.fill_(0.5)
    return network.save_pretrained(folder, dtype=None)


@pytest.mark.slow
def test_weights_that_look_at_features_refine_as_published(tmp_path, monkeypatch):
    turned, joints = bodies(2)
    seen = people(joints, [(-0.5, 0, 4.0), (0.5, 0, 4.0)])
    networks = Networks([conditioned(tmp_path / "weights")])
    features = torch.randn(2, 8, generator=G)
    starts = off(turned)
    given = [replace(p, start=s, features=f) for p, s, f in zip(seen, starts, features, strict=True)]
    plans, conditions = [], []

    def noted(denoiser, start, evidence, condition, plan, **options):
        plans.append(plan)
        conditions.append(condition)
        return recover(denoiser, start, evidence, condition, replace(plan, rounds=1), **options)

    monkeypatch.setattr(recovery, "recover", noted)
    found = recovery.lift_people(given, 1, 0, None, networks)
    assert plans == [PUBLISHED] and torch.equal(conditions[0].features, features)
    assert conditions[0].view is None and plans[0].tolerance == 1e-5
    other = [replace(p, features=-p.features) for p in given]
    assert not torch.equal(recovery.lift_people(other, 1, 0, None, networks)[0].pose, found[0].pose)
    # It ties a video's frames together too; the shipped one takes whom the regressor missed.
    recovery.lift_people(given, 1, 0, torch.tensor([0.0, 0.04]), networks)
    assert plans[2:] == [PUBLISHED, PUBLISHED_VIDEO]
    recovery.lift_people(seen, 1, 0, None, networks)
    assert plans[-1] == IMAGINED and conditions[-1].view is not None
    for wrong, message in (
        (replace(given[0], features=None), "give --predictions with 'pose_feats'"),
        (
            replace(given[0], features=torch.zeros(9)),
            "have 9 features of the picture, but the weights need 8",
        ),
    ):
        with pytest.raises(UserError, match=message):
            recovery.lift_people([wrong], 1, 0, None, networks)


@pytest.mark.slow
def test_weights_are_of_use_to_the_method_or_refused(tmp_path, capsys):
    turned, joints = bodies(1)
    (seen,) = people(joints, [(0, 0, 4.0)])
    np.savez(tmp_path / "one.npz", keypoints=seen.keypoints, layout="h36m-17", K=K, size=SIZE)
    conditioned(tmp_path / "looks")
    conditioned(tmp_path / "again")
    Difficulty(DifficultyConfig("graph")).save_pretrained(tmp_path / "graph")
    (tmp_path / "empty").mkdir()

    def run(method, *weights, **beside):
        words = [word for name in weights for word in ("--weights", str(tmp_path / name))]
        words += [word for name, value in beside.items() for word in (f"--{name}", str(value))]
        code = main([str(tmp_path / "one.npz"), "--method", method, "-o", str(tmp_path / "out"), *words])
        return code, capsys.readouterr().err

    for method, weights, message in (
        ("guided", ["looks"], "of pose-recovery are of no use to guided, which runs pose-prior, pose-lifter"),
        ("recovery", ["looks"], "need 8 features of the picture: add --predictions FILE with pose_feats"),
        ("recovery", ["looks", "again"], "again is a second pose-recovery"),
        ("recovery", ["empty"], "no config.json there"),
    ):
        code, errors = run(method, *weights)
        assert code == 2 and message in errors and errors.count("\n") == 1, errors
    file = hmr2(tmp_path / "hmr2.npz", off(turned), pose_feats=np.ones((1, 2, 4)))
    assert run("recovery", "looks", predictions=file, hypotheses=1) == (0, "")
    error = mpjpe(answers(tmp_path / "out", "one")[0], joints[0])
    assert error < 100  # the network is random, the keypoints are not
    assert run("restoration", "graph", hypotheses=2)[0] == 0
    assert (tmp_path / "out" / "one.pose.json").is_file()
