"""The whole way from a video to 3D: people followed over time, and the poses of each refined together."""

from __future__ import annotations

import tempfile
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import solve_translation, translation_at_depth
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.detection.frames import Tracker, detect_frames, open_clip
from dd3g.pose.detection.people import Detection
from dd3g.pose.detection.regressed import read_regressed
from dd3g.pose.estimation import lift
from dd3g.pose.export.results import write_results
from dd3g.pose.ground import find_ground
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods.advice import sized
from dd3g.pose.networks.chosen import SHIPPED, Networks
from dd3g.pose.request import Request
from dd3g.pose.series import Crowd, Series, Values, chunks

WINDOW, SHARED = 64, 16  # frames of a track that are refined together, and that two windows share
STEADY = 0.05  # seconds over which poses are averaged
STEADY_DEPTH = 0.25  # and distances, which change more slowly than their estimates do


def estimate_video(
    path: Path, folder: Path, stem: str, request: Request, networks: Networks, at: Callable[[str], None]
) -> dict[str, Any]:
    """Everything for one video, written into `folder`.

    Returns:
        `{"people", "warnings", "files"}`; people counts tracks.

    Raises:
        UserError: a video that cannot be read, or nobody in it.
    """
    clip = open_clip(path)
    times = clip.times[:: request.every]

    def counted(what: str, total: int) -> Callable[[int], None]:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            at(f"{path.name}, {what} {done} of {total}")

        return tick

    found = detect_frames(clip, request)
    if request.predictions is not None:
        found = read_regressed(request.predictions).in_frames(found, request.every)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".people-") as files:
        crowd = Crowd(Path(files), times, request.method)
        tracker = Tracker()
        seen = counted("people in frame", len(times))
        for time, people in zip(times, found, strict=False):
            crowd.add(people, tracker.follow(people, time))
            seen(1)
        if not crowd.frames:
            raise UserError(f"no person was found in {path}: give a clearer video, or --keypoints")
        lift_tracks(
            crowd, request.m, request.seed, request.height, networks,
            tick=counted("pose", len(crowd.frames)),
        )  # fmt: skip
        tracks = [crowd.track(rows) for rows in crowd.everyone()]
        joints = [(track.points, torch.tensor(track.times, dtype=torch.float64)) for track in tracks]
        ground = None if request.moving else find_ground(joints)
        result = write_results(
            crowd, tracks, path, folder, stem, request, clip=clip, ground=ground,
            tick=counted("drawing frame", len(times)),
        )  # fmt: skip
    result["warnings"] += clip.warnings
    return result


def lift_tracks(
    crowd: Crowd,
    m: int,
    seed: int = 0,
    height: float | None = None,
    networks: Networks = SHIPPED,
    tick: Callable[[int], None] = lambda count: None,
) -> None:
    """Add the answers to everyone in a video, each followed over time; arguments as for `lift`.

    One person's frames are refined in windows that fade into each other. `tick` is told how many poses were
    found since it was last called.
    """
    for rows in crowd.everyone():
        when = torch.tensor(crowd.when(rows), dtype=torch.float64)
        given = [k for k, row in enumerate(rows) if row in crowd.starts]
        shared: list[PersonHypotheses] = []  # what the window before makes of this one's first frames
        for start in range(0, max(len(rows) - SHARED, 1), WINDOW - SHARED):
            window = slice(start, min(start + WINDOW, len(rows)))
            seen = _started(crowd, rows, given, window)
            found = lift(seen, crowd.method, m, seed, when[window], height, networks)
            for k, before in enumerate(shared):
                found[k] = _between(before, found[k], (k + 1) / (len(shared) + 1))
            tick(len(found) - len(shared))
            done = len(found) if window.stop == len(rows) else len(found) - SHARED
            _write(crowd, rows[window][:done], found[:done])
            shared = found[done:]
        for chunk, steady in steady_poses(crowd.column("lifted", rows), when):
            crowd.write("pose", rows[chunk], steady)
        columns = [crowd.column(name, rows) for name in ("pose", "keypoints", "confidence", "K")]
        for chunk, roots in steady_roots(columns[0], columns[1:], when):
            crowd.write("root", rows[chunk], roots)


def _write(crowd: Crowd, rows: np.ndarray, people: Sequence[PersonHypotheses]) -> None:
    answers = [person.hypotheses.recommended() for person in people]
    crowd.write("lifted", rows, torch.cat([poses for poses, _ in answers]))
    crowd.write("expected", rows, torch.cat([expected for _, expected in answers]))
    for name in ("rotations", "betas"):
        given = [values for p in people if (values := getattr(p, name)) is not None]
        if given:
            crowd.write(name, rows, torch.stack(given))


def _started(crowd: Crowd, rows: np.ndarray, given: Sequence[int], chunk: slice) -> list[Detection]:
    """Some frames of a person; those that a regressor left out start as the nearest of the given ones."""
    seen = crowd.seen(rows[chunk])
    if given:
        for k in range(chunk.start, chunk.stop):
            after = bisect(given, k)
            nearest = min(given[max(after - 1, 0) : after + 1], key=lambda g: abs(g - k))
            start, features = crowd.starts[rows[nearest]]
            seen[k - chunk.start] = replace(seen[k - chunk.start], start=start, features=features)
    return seen


def _between(first: PersonHypotheses, second: PersonHypotheses, share: float) -> PersonHypotheses:
    """The answer of two windows; the rest is that of the nearer one."""
    a, b = first.hypotheses.recommended(), second.hypotheses.recommended()
    nearer = second if share > 0.5 else first
    advised, expected = (torch.lerp(x, y, share) for x, y in zip(a, b, strict=True))
    return replace(nearer, hypotheses=replace(nearer.hypotheses, advised=advised, expected=expected))


def steady_poses(poses: Values, when: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Poses (T, 17, 3) of one person at times (T,), averaged over time, in chunks."""
    size = torch.cat([bone_lengths(poses[chunk]).sum(-1) for chunk in chunks(len(when))]).mean()
    flat = Series(len(when), lambda chunk: poses[chunk].flatten(1))
    for chunk, steady in smoothed(flat, when, STEADY):
        # Averages of bones that turn are too short.
        yield chunk, sized(steady.unflatten(1, (-1, 3)), 1.0) * size


def steady_roots(poses: Values, seen: Sequence[Values], when: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Roots (T, 3) of one person, in chunks.

    A root's distance follows from the size of the pose, in every frame anew, and jitters by its error; so it
    is averaged over longer, and the place across the picture follows from the keypoints at that distance.
    Poses (T, 17, 3) are steady; seen are keypoints (T, 17, 2), confidences (T, 17) and cameras (T, 3, 3).
    """

    def picture(chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        keypoints, confidence, K = (values[chunk] for values in seen)
        return keypoints, confidence, K

    depths = [solve_translation(poses[chunk], *picture(chunk))[:, 2:] for chunk in chunks(len(when))]
    for chunk, away in smoothed(torch.cat(depths).clamp(min=0.1).log(), when, STEADY_DEPTH):
        yield chunk, translation_at_depth(poses[chunk], *picture(chunk), away.exp())


def smoothed(values: Values, when: Tensor, sigma: float) -> Iterator[tuple[slice, Tensor]]:
    """Local lines under Gaussian weights (Cleveland 1979): values (T, C) at times (T,), sigma seconds.

    A line, and not a mean, is right at the ends and where frames are uneven in time.
    """
    for chunk in chunks(len(when)):
        own = when[chunk]
        low = int(torch.searchsorted(when, own[0] - 4 * sigma))
        high = int(torch.searchsorted(when, own[-1] + 4 * sigma, right=True))
        away = when[low:high] - own[:, None]  # (256, N)
        weight = torch.exp(-away.square() / (2 * sigma**2))
        total, first, second = weight.sum(1), (weight * away).sum(1), (weight * away.square()).sum(1)
        spread = total * second - first.square()
        line = (second[:, None] - first[:, None] * away) / spread.clamp(min=1e-12)[:, None]
        # One frame alone, or all at one time, have no slope.
        flat = (spread < 1e-6 * total.square() * sigma**2)[:, None]
        weight = weight * torch.where(flat, 1 / total[:, None], line)
        near = values[low:high]
        yield chunk, (weight @ near.double()).to(near)
