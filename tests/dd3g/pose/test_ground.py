"""The floor under people who walk, found from their feet, and the files that stand on it."""

import json
import math

import numpy as np
import pytest
import torch
from stand_ins.made_up_people import STANDING, person

from dd3g.pose.__main__ import main
from dd3g.pose.body.geometry import project
from dd3g.pose.data.bvh import read_bvh
from dd3g.pose.export.skeletons import save_bodies
from dd3g.pose.ground import ANKLES, Ground, find_ground
from dd3g.pose.methods.advice import grown, sized
from dd3g.pose.series import Track

FPS = 25.0
TIMES = torch.arange(100) / FPS


def pitched(degrees, roll=0.0):
    """(3, 3) world, y up, to a camera that looks along -z and down by so many degrees."""
    a, b = math.radians(degrees), math.radians(roll)
    down = torch.tensor([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    turn = torch.tensor([[math.cos(b), -math.sin(b), 0], [math.sin(b), math.cos(b), 0], [0, 0, 1]])
    return turn @ torch.diag(torch.tensor([1.0, -1, -1])) @ down


def walk(way, height=1.5, degrees=20.0, roll=0.0, noise=0.0):
    """Joints (T, 17, 3) of a walk, in the camera frame, and the world's (3, 3) turn to it.

    Each foot stands for half a second and is then a metre further on after another half; the camera is at
    (0, height, 0), and `way` (T, 2) are x and z of the hips.
    """
    pose = sized(STANDING, grown().bones) * torch.tensor([1.0, -1, -1])  # y up
    joints = pose[None].repeat(len(way), 1, 1)
    joints = joints + torch.stack([way[:, 0], 0.9 + 0 * way[:, 0], way[:, 1]], 1)[:, None]
    step = TIMES[:, None] + torch.tensor([0.0, 0.5])  # one foot half a second after the other
    whole, part = step.floor(), step % 1
    along = (whole + ((part - 0.5) / 0.5).clamp(0, 1)) - torch.tensor([0.0, 0.5])  # seconds of the hips' way
    lifted = grown().ankle + 0.15 * torch.sin(math.pi * ((part - 0.5) / 0.5).clamp(0, 1))
    for i, ankle in enumerate(ANKLES):
        at = (along[:, i] * FPS).clamp(0, len(way) - 1)
        low = at.floor().long().clamp(max=len(way) - 2)
        joints[:, ankle, [0, 2]] = torch.lerp(way[low], way[low + 1], (at - low)[:, None])
        joints[:, ankle, 1] = lifted[:, i]
    R = pitched(degrees, roll)
    g = torch.Generator().manual_seed(0)
    return (joints - torch.tensor([0, height, 0])) @ R.T + noise * torch.randn(joints.shape, generator=g), R


AROUND = torch.stack([1.2 * torch.cos(1.2 * TIMES), -4 + 1.2 * torch.sin(1.2 * TIMES)], 1)
STRAIGHT = torch.stack([-2 + TIMES, -4 + 0 * TIMES], 1)


def tilt(ground, R):
    """Degrees between the normal found and the true one."""
    return math.degrees(math.acos(min(1.0, float(ground.normal @ R[:, 1]))))


@pytest.mark.parametrize(
    ("way", "degrees", "roll", "noise"),
    [(AROUND, 20, 0, 0.0), (AROUND, 20, 0, 0.004), (AROUND, -5, 8, 0.004), (STRAIGHT, 15, 0, 0.004)],
)
def test_the_floor_of_a_walk_is_found(way, degrees, roll, noise):
    joints, R = walk(way, degrees=degrees, roll=roll, noise=noise)
    ground = find_ground([(joints, TIMES)])
    assert tilt(ground, R) < 1.5
    assert ground.height == pytest.approx(1.5, abs=0.03)
    assert ground.spread < 0.03 and ground.seconds > 2
    placed = ground.place(joints)
    for ankle in ANKLES:
        assert placed[:, ankle, 1].quantile(0.25) == pytest.approx(grown().ankle, abs=0.03)
    torch.testing.assert_close(ground.rotation @ ground.rotation.T, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.det(ground.rotation) == pytest.approx(1, abs=1e-5)


def test_times_count_and_not_frames():
    """Half the frames of the same walk, and uneven ones, give the same floor."""
    joints, R = walk(AROUND)
    kept = torch.tensor([i for i in range(100) if i % 3])
    for rows in (torch.arange(0, 100, 2), kept):
        ground = find_ground([(joints[rows], TIMES[rows])])
        assert tilt(ground, R) < 1.5 and ground.height == pytest.approx(1.5, abs=0.03)


def test_two_people_stand_on_one_floor_and_a_jump_is_left_out():
    one, R = walk(AROUND)
    other, _ = walk(AROUND + torch.tensor([0.5, -2]))
    flying = one + 0.6 * R[:, 1] + 3 * TIMES[:, None, None] * R[:, 1]
    ground = find_ground([(one, TIMES), (other, TIMES), (flying[:20], TIMES[:20])])
    assert tilt(ground, R) < 1.5 and ground.height == pytest.approx(1.5, abs=0.03)


def test_without_standing_feet_there_is_no_floor():
    joints, R = walk(AROUND)
    assert find_ground([]) is None
    assert find_ground([(joints[:1], TIMES[:1])]) is None
    assert find_ground([(joints + 2 * TIMES[:, None, None] * R[:, 1], TIMES)]) is None


def test_a_camera_that_looks_straight_down_has_a_world():
    ground = Ground(torch.tensor([0.0, 0, -1]), 3.0, 0.0, 1.0)
    torch.testing.assert_close(ground.place(torch.tensor([0.0, 0, 3])), torch.zeros(3))
    assert torch.det(ground.rotation) == pytest.approx(1)


def test_files_stand_on_the_floor(tmp_path):
    """Markers and skeletons of a video are y up from the floor; .csv stays in the camera frame."""
    ground = Ground(pitched(20)[:, 1], 1.5, 0.0, 1.0)
    people = [person(spread=0.0), person(0.1, spread=0.0)]
    save_bodies(Track.of(people, [0.0, 0.1]), tmp_path, "a", ["bvh", "trc", "csv", "npz"], ground)
    wanted = torch.stack([ground.place(p.pose + p.translation) for p in people])
    rows = [line.split("\t") for line in (tmp_path / "a.trc").read_text().splitlines()[6:]]
    read = np.array([[float(v) for v in row[2:]] for row in rows]).reshape(2, 17, 3) / 1000
    np.testing.assert_allclose(read, wanted, atol=2e-5)
    table = np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1)[:, 1:].reshape(2, 17, 3)
    np.testing.assert_allclose(table, [p.pose + p.translation for p in people], atol=2e-5)
    with np.load(tmp_path / "a.npz") as found:
        np.testing.assert_allclose(found["trans"], wanted[:, 0], atol=1e-5)
    motion = read_bvh(tmp_path / "a.bvh")
    np.testing.assert_allclose(motion.root, wanted[:, 0], atol=1e-3)
    # The bodies stand as the points do: thorax above hips by as much.
    up = motion.joints[:, 8, 1] - motion.joints[:, 0, 1]
    np.testing.assert_allclose(up, wanted[:, 8, 1] - wanted[:, 0, 1], atol=0.06)


@pytest.mark.slow
def test_a_video_tells_its_floor_or_that_its_camera_moves(tmp_path):
    joints, R = walk(AROUND, degrees=10)
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]])
    seen = project(joints, K).numpy()
    from PIL import Image

    def run(frames, *more):
        np.savez(tmp_path / "found.npz", keypoints=seen[:frames, None], layout="h36m-17", K=K)
        images = [Image.new("RGB", (640, 480), (9, i, 9)) for i in range(frames)]
        images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:], duration=40)
        words = [str(tmp_path / "clip.gif"), "--keypoints", str(tmp_path / "found.npz"), "--export", "trc"]
        words += ["-o", str(tmp_path / "out"), "--method", "restoration", "--hypotheses", "1"]
        return main([*words, *more])

    assert run(100) == 0
    result = json.loads((tmp_path / "out" / "clip.pose.json").read_text())
    assert "standing still" in result["camera"]
    normal = torch.tensor(result["ground"]["normal"])
    assert math.degrees(math.acos(float(normal @ R[:, 1]))) < 8
    assert result["ground"]["height"] == pytest.approx(1.5, abs=0.25)
    turn = torch.tensor(result["ground"]["world_from_camera"]["R"])
    torch.testing.assert_close(turn @ normal, torch.tensor([0.0, 1, 0]), atol=1e-4, rtol=0)
    rows = [line.split("\t") for line in (tmp_path / "out" / "clip.pose.trc").read_text().splitlines()[6:]]
    heights = np.array([[float(v) for v in row[2:]] for row in rows]).reshape(-1, 17, 3)[..., 1]
    assert -150 < np.quantile(heights[:, ANKLES].min(1), 0.5) < 250 and heights[:, 10].min() > 1200
    assert run(50, "--moving-camera") == 0
    result = json.loads((tmp_path / "out" / "clip.pose.json").read_text())
    assert result["ground"] is None and "moves" in result["camera"]
