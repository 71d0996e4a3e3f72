"""People without a picture: a standing pose, a camera, and what a detector would say about them."""

import numpy as np
import torch

from dd3g.pose.body.geometry import project
from dd3g.pose.detection.frames import Tracker
from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.series import Crowd

# Camera frame, y down, facing the camera: their left is on the picture's right.
STANDING = torch.tensor(
    [
        [0, 0, 0], [-0.13, 0, 0], [-0.14, 0.42, 0], [-0.14, 0.84, 0.02], [0.13, 0, 0], [0.14, 0.42, 0],
        [0.14, 0.84, 0.02], [0, -0.24, 0], [0, -0.5, 0], [0, -0.6, -0.05], [0, -0.72, 0], [0.16, -0.45, 0],
        [0.3, -0.2, 0], [0.4, 0.02, -0.1], [-0.16, -0.45, 0], [-0.3, -0.2, 0], [-0.4, 0.02, -0.1],
    ]
)  # fmt: skip
SIZE = (640, 480)
RNG = np.random.default_rng(0)
K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]])


def detection(x: float = 0.0, z: float = 4.0) -> Detection:
    points = project(STANDING + torch.tensor([x, 0, z]), K)
    low, high = points.amin(0), points.amax(0)
    middle, side = (low + high) / 2, 1.5 * (high - low).amax()
    square = torch.cat([middle - side / 2, middle + side / 2])
    return Detection(points, torch.ones(17), square, SIZE, K, "flag", 0.9)


def person(x: float = 0.0, m: int = 8, spread: float = 0.05, **body) -> PersonHypotheses:
    noise = spread * torch.randn(1, m, 17, 3, generator=torch.Generator().manual_seed(3))
    noise[:, :, 0] = 0
    hypotheses = Hypotheses(STANDING + noise, torch.arange(m).float()[None])
    return PersonHypotheses(detection(x), "guided", hypotheses, **body)


def crowd_of(folder, frames, method="guided", times=None) -> Crowd:
    """The people of each frame, with the numbers of their tracks."""
    crowd = Crowd(folder, [f / 25 for f in range(len(frames))] if times is None else times, method)
    for people, numbers in zip(frames, tracks(frames, crowd.times), strict=True):
        crowd.add(people, numbers)
    return crowd


def tracks(frames, times=None) -> list[list[int]]:
    """The numbers of everyone in each frame."""
    tracker = Tracker()
    return [tracker.follow(people, f / 25 if times is None else times[f]) for f, people in enumerate(frames)]


def hp_points(n):
    """(n, 17, 3) mm, MPI-INF-3DHP's joint order: no person's, but in front of the camera."""
    points = RNG.normal(size=(n, 17, 3)) * 300 + [0, 0, 4000]
    return points.astype(np.float32)


def seen(points, K):
    return project(torch.from_numpy(points), K).numpy()
