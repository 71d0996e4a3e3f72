"""The whole way from a video to 3D: people followed over time, and the poses of each refined together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import solve_translation, translation_at_depth
from dd3g.pose.body.skeletons import bone_lengths
from dd3g.pose.detection.frames import FPS, detect_frames, open_clip, tracks
from dd3g.pose.detection.people import Detection, stacked
from dd3g.pose.detection.regressed import read_regressed
from dd3g.pose.estimation import lift
from dd3g.pose.export.results import write_results
from dd3g.pose.ground import Ground, find_ground
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods.advice import sized
from dd3g.pose.request import Request

WINDOW, SHARED = 64, 16  # frames of a track that are refined together, and that two windows share
STEADY = 0.05  # seconds over which poses are averaged
STEADY_DEPTH = 0.25  # and distances, which change more slowly than their estimates do


def estimate_video(
    path: Path, folder: Path, stem: str, request: Request, at: Callable[[str], None] = lambda item: None
) -> dict[str, Any]:
    """Everything for one video, written into `folder`.

    Args:
        path: the video.
        folder: where the files go.
        stem: of their names.
        request: what to make of it.
        at: told what is worked on.

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

    found = detect_frames(
        clip, request.every, request.focal, threshold=request.confidence, keypoints=request.keypoints,
        layout=request.layout, tick=counted("people in frame", len(times)),
    )  # fmt: skip
    if not any(found):
        raise UserError(f"no person was found in {path}: give a clearer video, or --keypoints")
    if request.predictions is not None:
        found = read_regressed(request.predictions).in_frames(found)
    lifted = counted("pose", sum(map(len, found)))
    people = lift_tracks(found, request.method, request.m, request.seed, times, request.height, lifted)
    ground = None if request.moving else _ground(people, times)
    drawn = counted("drawing frame", len(times))
    result = write_results(people, path, folder, stem, request, clip=clip, ground=ground, tick=drawn)
    result["warnings"] += clip.warnings
    return result


def _ground(people: Sequence[Sequence[PersonHypotheses]], times: Sequence[float]) -> Ground | None:
    """The floor under everyone."""
    joints: dict[int, list[Tensor]] = {}
    stamps: dict[int, list[float]] = {}
    for time, frame in zip(times, people, strict=True):
        for person in frame:
            joints.setdefault(person.track or 0, []).append(person.pose + person.translation)
            stamps.setdefault(person.track or 0, []).append(time)
    return find_ground([(torch.stack(joints[n]), torch.tensor(stamps[n])) for n in joints])


def lift_tracks(
    frames: Sequence[Sequence[Detection]],
    method: str,
    m: int,
    seed: int = 0,
    times: Sequence[float] | None = None,
    height: float | None = None,
    tick: Callable[[int], None] = lambda count: None,
) -> list[list[PersonHypotheses]]:
    """The people of a video in 3D, each followed over time.

    Args:
        frames: the people of each frame.
        method: one of `METHODS`.
        m: hypotheses a person and frame.
        seed: of all random numbers.
        times: seconds of each frame; None takes 25 a second.
        height: see `lift`.
        tick: told how many poses were found since it was last called.

    Returns:
        For each frame the people in it, with the numbers of their tracks. Of the hypotheses the first stays.
    """
    stamps = [f / FPS for f in range(len(frames))] if times is None else times
    result: list[list[PersonHypotheses]] = [[] for _ in frames]
    for number, track in enumerate(tracks(frames, stamps)):
        seen = _started([frames[f][i] for f, i in track])
        when = torch.tensor([stamps[f] for f, _ in track], dtype=torch.float64)
        lifted = steadied(_in_windows(seen, when, method, m, seed, height, tick), when)
        for (f, _), person in zip(track, lifted, strict=True):
            result[f].append(replace(person, track=number))
    return result


def _started(seen: list[Detection]) -> list[Detection]:
    """Frames that a regressor left out start as the nearest one of the same person."""
    given = [k for k, person in enumerate(seen) if person.start is not None]
    if not given:
        return seen
    nearest = (min(given, key=lambda g: abs(g - k)) for k in range(len(seen)))
    return [replace(p, start=seen[n].start) for p, n in zip(seen, nearest, strict=True)]


def _in_windows(
    seen: Sequence[Detection],
    when: Tensor,
    method: str,
    m: int,
    seed: int,
    height: float | None,
    tick: Callable[[int], None],
) -> list[PersonHypotheses]:
    """One person's frames, refined in windows that fade into each other."""
    people: list[PersonHypotheses] = []
    start = 0
    while True:
        stop = min(start + WINDOW, len(seen))
        part = lift(seen[start:stop], method, m, seed, times=when[start:stop], height=height)
        # The other hypotheses of an hour of video would not fit into memory.
        part = [replace(p, hypotheses=p.hypotheses.kept()) for p in part]
        shared = len(people) - start
        for k in range(shared):
            people[start + k] = _between(people[start + k], part[k], (k + 1) / (shared + 1))
        people += part[shared:]
        tick(len(part) - shared)
        if stop == len(seen):
            return people
        start = stop - SHARED


def _between(first: PersonHypotheses, second: PersonHypotheses, share: float) -> PersonHypotheses:
    """The answer of two windows; the rest is that of the nearer one."""
    a, b = first.hypotheses.recommended(), second.hypotheses.recommended()
    nearer = second if share > 0.5 else first
    advised, expected = (torch.lerp(x, y, share) for x, y in zip(a, b, strict=True))
    return replace(nearer, hypotheses=replace(nearer.hypotheses, advised=advised, expected=expected))


def steadied(people: Sequence[PersonHypotheses], when: Tensor) -> list[PersonHypotheses]:
    """Poses and roots of one person, averaged over time.

    A root's distance follows from the size of the pose, in every frame anew, and jitters by its error; so it
    is averaged over longer, and the place across the picture follows from the keypoints at that distance.

    Args:
        people: one in each frame.
        when: (T,) seconds, rising.
    """
    keypoints, confidence, K = (
        stacked([p.detection for p in people], name) for name in ("keypoints", "confidence", "K")
    )
    poses = torch.stack([p.pose for p in people])
    steady = sized(smoothed(poses.flatten(1), when, STEADY).view_as(poses), 1.0)
    steady = steady * bone_lengths(poses).sum(-1).mean()  # averages of bones that turn are too short
    depth = solve_translation(steady, keypoints, confidence, K)[:, 2:].clamp(min=0.1)
    depth = smoothed(depth.log(), when, STEADY_DEPTH).exp()
    roots = translation_at_depth(steady, keypoints, confidence, K, depth)
    return [
        replace(person, hypotheses=replace(h, advised=pose[None], expected=h.recommended()[1]), root=root)
        for person, h, pose, root in zip(people, (p.hypotheses for p in people), steady, roots, strict=True)
    ]


def smoothed(values: Tensor, when: Tensor, sigma: float) -> Tensor:
    """Local lines under Gaussian weights (Cleveland 1979): values (T, C) at times (T,), sigma seconds.

    A line, and not a mean, is right at the ends and where frames are uneven in time.
    """
    result = torch.empty_like(values)
    for start in range(0, len(values), 256):  # bounds the memory
        own = when[start : start + 256]
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
        result[start : start + 256] = (weight @ values[low:high].double()).to(values)
    return result
