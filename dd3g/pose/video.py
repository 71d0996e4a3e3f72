"""The whole way from a video to 3D: people followed over time, and the poses of each refined together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dd3g.errors import UserError
from dd3g.pose.detection.frames import detect_frames, tracks
from dd3g.pose.detection.people import Detection
from dd3g.pose.estimation import lift
from dd3g.pose.export.results import write_results
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.request import Request

CHUNK = 64  # frames of a track that are refined together


def estimate_video(path: Path, folder: Path, stem: str, request: Request) -> dict[str, Any]:
    """Everything for one video, written into `folder`.

    Returns:
        `{"people", "warnings", "files"}`; people counts tracks.

    Raises:
        UserError: a video that cannot be read, or nobody in it.
    """
    if request.keypoints is not None:
        raise UserError(f"{path}: --keypoints is for pictures; leave it out to look at the video")
    found = detect_frames(path, request.every, request.focal)
    if not any(found):
        raise UserError(f"no person was found in {path}: give a clearer video")
    people = lift_tracks(found, request.method, request.m, request.seed)
    return write_results(people, path, folder, stem, request)


def lift_tracks(
    frames: Sequence[Sequence[Detection]], method: str, m: int, seed: int = 0
) -> list[list[PersonHypotheses]]:
    """The people of a video in 3D, each followed over time.

    Args:
        frames: the people of each frame.
        method: one of `METHODS`.
        m: hypotheses a person and frame.
        seed: of all random numbers.

    Returns:
        For each frame the people in it, with the numbers of their tracks.
    """
    result: list[list[PersonHypotheses]] = [[] for _ in frames]
    for number, track in enumerate(tracks(frames)):
        for start in range(0, len(track), CHUNK):
            part = track[start : start + CHUNK]
            lifted = lift([frames[f][i] for f, i in part], method, m, seed, video=True)
            for (f, _), person in zip(part, lifted, strict=True):
                result[f].append(replace(person, track=number))
    return result
