"""Seconds that the pose methods take for one person, networks loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from dd3g.benchmark.infer import median
from dd3g.models import model_path
from dd3g.pose import estimation
from dd3g.pose.body.geometry import project
from dd3g.pose.detection import blazepose as detector
from dd3g.pose.detection.people import Detection, detect, load

FLOORS = {"BlazePose, a person": 0.1, "restoration": 0.1, "guided": 3.0, "recovery, one": 10.0}


def time_pose(photo: Path | None, m: int, repeats: int) -> dict[str, float | None]:
    """Median seconds of each part for `m` hypotheses; None for the detector without a photo or its model.

    A photo shows people, for the detector and as what is lifted; without one a made-up person is lifted.

    Raises:
        UserError: a photo that cannot be read.
    """
    person = made_up()
    parts: dict[str, float | None] = {"BlazePose, a person": None}
    if photo is not None and model_path("pose_detection") and model_path("pose_landmark_full"):
        picture = load(photo)
        people = detect(picture)
        if people:
            person = people[0]
            # Without tiles: the detector once and landmarks once a person.
            found = detector.find_people(picture, tiles=False)
            seconds = median(lambda: detector.find_people(picture, tiles=False), repeats)
            parts["BlazePose, a person"] = seconds / max(1, len(found))
    counts = {"restoration": m, "guided": m, "recovery, one": 1, f"recovery, {m}": m}
    for name, count in counts.items():
        method = name.partition(",")[0]
        parts[name] = median(lambda: estimation.lift([person], method, count), repeats)  # noqa: B023
    return parts


def made_up() -> Detection:
    """A pose of the prior, three metres away, seen exactly."""
    pose = estimation.generate(1, seed=0)[0]  # (17, 3)
    K = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]])
    points = project(pose + torch.tensor([0.0, 0, 3]), K)
    low, high = points.amin(0) - 50, points.amax(0) + 50
    middle, half = (low + high) / 2, (high - low).amax() / 2
    square = torch.cat([middle - half, middle + half])
    return Detection(points, torch.ones(17), square, (1000, 1000), K, "made up", 1.0)
