"""Keypoint files of any detector, a picture or a frame at a time, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17
from dd3g.pose.detection.detected import NOBODY, KeypointFile, Seen
from dd3g.pose.detection.keypoint_files import read_file, read_folder
from dd3g.pose.detection.keypoints import NEAREST, Keypoints, TooFewJointsError, checked


def read_keypoints(
    path: str | Path,
    layout: str | None = None,
    picture: str | None = None,
    size: tuple[int, int] | None = None,
) -> Keypoints:
    """Read one picture's keypoints.

    Args:
        path: a file of any format that `keypoint_files` lists.
        layout: one of `SKELETONS` or `WHOLE_BODY`; None takes the file's word, or the number of joints where
            only one layout has it.
        picture: its name without folder and suffix, for files of several pictures.
        size: (width, height) of the picture in px, for files whose places are shares of it.

    Raises:
        UserError: unreadable, truncated or pickled content, an unknown layout, a wrong number of joints, NaN
            at joints with confidence, confidences that are none, units other than pixels, or nobody with
            confidence in enough joints.
    """
    path = Path(path)
    with _named(path):
        content = read_file(path)
        if picture is None and len(content.pictures) > 1:
            what = "the frames of a video" if content.video else "several pictures"
            raise UserError(f"holds {what}: give it with --keypoints, beside what it was seen in")
        found = _checked(content, content.of(picture or path.stem), layout, size)
        if found is None:
            raise UserError(NOBODY)
        return found


def read_frames(
    path: str | Path, video: str, layout: str | None = None, size: tuple[int, int] | None = None
) -> VideoKeypoints:
    """Read a video's keypoints, frame by frame; None for frames without anybody.

    `path` may be a folder with a file a frame, `video` is a name without folder and suffix; the rest as for
    `read_keypoints`.

    Raises:
        UserError: see `read_keypoints`; what a frame's people are is checked when that frame is asked for.
    """
    path = Path(path)
    with _named(path):
        content = read_folder(path, video) if path.is_dir() else read_file(path)
        frames = content.frames(video)
        if not any(content.people(seen) for seen in frames):
            raise UserError(NOBODY)
        return VideoKeypoints(path, replace(content, pictures=[]), frames, layout, size)


@dataclass(frozen=True)
class VideoKeypoints(Sequence[Keypoints | None]):
    """The frames of a video as a file has them, checked one by one."""

    path: Path
    content: KeypointFile
    frames: list[Seen]
    layout: str | None
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: Any) -> Any:
        try:
            return _checked(self.content, self.frames[number], self.layout, self.size)
        except TooFewJointsError:
            return None  # someone who walks out of the picture
        except UserError as e:
            raise UserError(f"{self.path}: frame {number}: {e}") from e


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read, or holds what it should not."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: check the path") from e
    except OSError as e:
        raise UserError(
            f"{path} cannot be read ({e.strerror or e}): check the path and its permissions"
        ) from e


def _checked(
    content: KeypointFile, seen: Seen, layout: str | None, size: tuple[int, int] | None
) -> Keypoints | None:
    """The people of one picture of a file; None where there are none."""
    people = content.people(seen)
    if not people:
        return None
    points, beside = [person.points for person in people], dict(content.beside)
    if seen.size is not None:
        beside["size"] = seen.size
    if content.shares:
        points, beside["size"] = _in_pixels(points, size), size
    layout = layout or content.layout
    if not layout and content.coco and len(points[0]) == 17:
        layout = COCO_17.name
    scores = [person.score for person in people]
    if any(score is not None for score in scores):
        beside["scores"] = [1.0 if score is None else score for score in scores]
    trust, tracks = [person.confidence for person in people], [person.track for person in people]
    return checked(points, trust, layout, tracks=tracks, **beside)


def _in_pixels(points: list[Any], size: tuple[int, int] | None) -> list[np.ndarray]:
    """Each person's rows with places that were shares of the picture."""
    if size is None:
        raise UserError(
            "gives positions as fractions of the picture: give --size WIDTHxHEIGHT, or the picture"
        )
    shares = [np.array(rows) for rows in points]
    if max(np.abs(rows[:, :2]).max() for rows in shares) > NEAREST:
        raise UserError("its positions must be fractions of the picture, 0..1, as Ultralytics saves them")
    return [rows * np.array([*size, 1])[: rows.shape[1]] for rows in shares]
