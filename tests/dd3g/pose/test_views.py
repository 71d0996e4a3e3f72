"""Several views of one person: the common pose is better than any view's own."""

import json
from dataclasses import replace

import pytest
import torch
from stand_ins.made_up_people import SIZE, STANDING, K

from dd3g.errors import UserError
from dd3g.pose.__main__ import main
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.views import Station, combine, read_stations

G = torch.Generator().manual_seed(8)


def stations(count):
    """Cameras around a person at the origin, 4 m away."""
    turns = axis_angle_to_matrix(torch.arange(count)[:, None] * torch.tensor([0.0, 1.1, 0.0]))
    return [Station(R, torch.tensor([0.1 * i, 0.0, 4.0])) for i, R in enumerate(turns)]


def people(cameras, noise=1.0, doubt=0.06):
    """STANDING as each camera sees it; the views' own answers are wrong, in depth most."""
    found = []
    for camera in cameras:
        pose = STANDING @ camera.rotation.T
        points = project(pose + camera.translation, K) + noise * torch.randn(17, 2, generator=G)
        wrong = pose + doubt * torch.randn(17, 3, generator=G) * torch.tensor([0.3, 0.3, 1.5])
        wrong = wrong - wrong[:1]
        h = Hypotheses(wrong[None, None], torch.zeros(1, 1), None, wrong[None], torch.tensor([0.1]))
        square = torch.tensor([100.0, 50, 500, 450])
        found.append(
            PersonHypotheses(Detection(points, torch.ones(17), square, SIZE, K, "flag", 0.9), "guided", h)
        )
    return found


def error(person, camera):
    return (person.pose - STANDING @ camera.rotation.T).norm(dim=-1).mean()


@pytest.mark.parametrize("count", [2, 4])
def test_views_together_are_better_than_each_alone(count):
    cameras = stations(count)
    alone = people(cameras)
    size = torch.stack([bone_lengths(p.pose).sum() for p in alone]).mean()
    together = combine(alone)
    truth_size = bone_lengths(STANDING).sum()
    for before, after, camera in zip(alone, together, cameras, strict=True):
        assert bone_lengths(after.pose).sum() == pytest.approx(size.item(), abs=1e-3)
        level = replace(
            after, hypotheses=replace(after.hypotheses, advised=after.hypotheses.advised * truth_size / size)
        )
        assert error(level, camera) < 0.5 * error(before, camera)
        assert after.expected_error < 0.12
    # One pose in all frames: lengths and angles are the same.
    inner = [p.pose @ p.pose.T for p in together]
    for other in inner[1:]:
        torch.testing.assert_close(inner[0], other, atol=1e-4, rtol=1e-3)


def test_known_cameras_give_size_and_place():
    cameras = stations(3)
    alone = people(cameras)
    for person in alone:  # their size is wrong
        person.hypotheses.advised.mul_(0.85)
    together = combine(alone, cameras)
    for after, camera in zip(together, cameras, strict=True):
        assert error(after, camera) < 0.03
        assert (after.translation - camera.translation).norm() < 0.03
        assert bone_lengths(after.pose).sum() == pytest.approx(bone_lengths(STANDING).sum().item(), rel=0.03)


def test_a_wrong_keypoint_in_one_view_does_not_count():
    cameras = stations(4)
    alone = people(cameras, noise=0.5)
    alone[1].detection.keypoints[13] += torch.tensor([150.0, -120.0])
    together = combine(alone, cameras)
    assert (together[0].pose - STANDING @ cameras[0].rotation.T)[13].norm() < 0.08


def test_wrong_numbers_of_views_and_cameras_are_refused():
    cameras = stations(2)
    with pytest.raises(UserError, match="1 view is too few"):
        combine(people(cameras[:1]))
    with pytest.raises(UserError, match="1 cameras for 2 views"):
        combine(people(cameras), cameras[:1])


def test_the_command_takes_views_and_cameras(tmp_path):
    cameras, names = stations(2), ("left", "right")
    table = {
        n: {"R": c.rotation.tolist(), "t": c.translation.tolist()}
        for n, c in zip(names, cameras, strict=True)
    }
    (tmp_path / "cameras.json").write_text(json.dumps(table))
    paths = []
    for name, person in zip(names, people(cameras, noise=0.0), strict=True):
        entry = {"keypoints": person.detection.keypoints.tolist(), "confidence": [1.0] * 17}
        data = {"layout": "h36m-17", "size": list(SIZE), "K": K.tolist(), "people": [entry]}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(data))
    words = [
        *map(str, paths),
        "--views",
        "--cameras",
        str(tmp_path / "cameras.json"),
        "--method",
        "restoration",
    ]
    assert main([*words, "--hypotheses", "2", "-o", str(tmp_path / "out")]) == 0
    for name, camera in zip(names, cameras, strict=True):
        (person,) = json.loads((tmp_path / "out" / f"{name}.pose.json").read_text())["people"]
        pose = torch.tensor(person["recommended"]["pose"])
        assert (pose - STANDING @ camera.rotation.T).norm(dim=-1).mean() < 0.06
        assert (torch.tensor(person["recommended"]["translation"]) - camera.translation).norm() < 0.05


def test_bad_cameras_are_one_line(tmp_path):
    path = tmp_path / "cameras.json"
    good = {"R": torch.eye(3).tolist(), "t": [0, 0, 4]}
    for content, message in (
        ({"b": good}, "has no 'a'; it has 'b'"),
        ({"a": {"R": good["R"]}}, "has no 't'"),
        ({"a": good | {"R": (2 * torch.eye(3)).tolist()}}, "R is not a rotation"),
        ({"a": good | {"t": [0, 4]}}, "t must have the shape"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            read_stations(path, ["a"])
