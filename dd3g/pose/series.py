"""People over the frames of a video, in chunks and files: an hour of it would not fit into memory at once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses

CHUNK = 256  # frames
# What is kept of a person in a frame: see `Detection`, `Hypotheses` and `PersonHypotheses`.
SEEN = {"keypoints": (17, 2), "confidence": (17,), "square": (4,), "K": (3, 3)}
LIFTED = {
    "lifted": (17, 3),  # the answer before it is averaged over time
    "pose": (17, 3), "expected": (), "root": (3,), "rotations": (24, 3, 3), "betas": (10,),
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = SEEN | LIFTED


@dataclass(frozen=True)
class Series:
    """Values (T, ...) of T frames read or computed when chunks of them are asked for, like a Tensor."""

    count: int  # T
    read: Callable[[slice], Tensor]  # gives those of consecutive frames

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, chunk: slice) -> Tensor:
        """Values (P, ...) of consecutive frames."""
        return self.read(slice(*chunk.indices(self.count)))


Values = Tensor | Series
Times = Sequence[float]


def chunks(count: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices that cover so many frames."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@dataclass(frozen=True)
class Track:
    """One person over time."""

    times: Sequence[float]  # (T,) seconds, rising
    poses: Values  # (T, 17, 3) metres, H36M-17, camera frame, root-relative
    roots: Values  # (T, 3) metres, camera frame
    # (T, 24, 3, 3) of SMPL-24 joints relative to their parents, where the method gave a body
    rotations: Values | None = None

    @staticmethod
    def of(people: Sequence[PersonHypotheses], times: Sequence[float] = (0.0,)) -> Track:
        """Of the person in each frame."""
        given = [p.rotations for p in people if p.rotations is not None]
        return Track(
            times,
            torch.stack([p.pose for p in people]),
            torch.stack([p.translation for p in people]),
            torch.stack(given) if len(given) == len(people) else None,
        )

    @property
    def points(self) -> Series:
        """(T, 17, 3) metres, joints in the camera frame."""
        return Series(len(self.times), lambda chunk: self.poses[chunk] + self.roots[chunk][:, None])


def evenly(times: Times) -> tuple[float, list[float]]:
    """Frames a second on average, and as many even times."""
    if len(times) < 2:
        return 30.0, [0.0] * len(times)
    fps = (len(times) - 1) / (times[-1] - times[0])
    return fps, [times[0] + i / fps for i in range(len(times))]


def resampled(values: Values, times: Times, even: Times) -> Iterator[tuple[slice, Tensor]]:
    """Values (T, ...) at other times, linearly, in chunks."""
    have, want = (torch.tensor(list(t), dtype=torch.float64) for t in (times, even))
    # The frame before each time, and the share of the way to the next.
    low = (torch.searchsorted(have, want, right=True) - 1).clamp(0, max(len(have) - 2, 0))
    high = (low + 1).clamp(max=len(have) - 1)
    share = ((want - have[low]) / (have[high] - have[low]).clamp(min=1e-9)).clamp(0, 1).float()
    for chunk in chunks(len(even)):
        first = int(low[chunk.start])
        here = values[first : int(low[chunk.stop - 1]) + 2]
        near = low[chunk] - first
        far = (near + 1).clamp(max=len(here) - 1)
        yield (
            chunk,
            torch.lerp(here[near], here[far], share[chunk].view(-1, *[1] * (here.dim() - 1)).to(here)),
        )


@dataclass
class Crowd:
    """Everyone in every frame of a video: a row a person and frame, a file of float32 a column.

    Frames are added first, answers written by `write` then; iterating gives the people of each frame.
    """

    folder: Path  # an empty one for the files
    times: Sequence[float]  # (T,) seconds of the frames
    method: str  # that lifts them

    def __post_init__(self) -> None:
        self.size = (0, 0)  # of the frames, in px
        self.K_source = ""
        self.frames, self.tracks, self.scores = array("l"), array("l"), array("d")  # of each row
        # Start and features of rows that have them: views of a regressor's file, which is in memory anyway.
        self.starts: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.added = 0

    def add(self, people: Sequence[Detection], tracks: Sequence[int]) -> None:
        """The people of the next frame, with the numbers of their tracks."""
        for person, track in zip(people, tracks, strict=True):
            self.size, self.K_source = person.size, person.K_source  # the same in the whole video
            if person.start is not None:
                self.starts[len(self.frames)] = person.start, person.features
            self.frames.append(self.added)
            self.tracks.append(track)
            self.scores.append(person.score)
            for name in SEEN:
                with (self.folder / name).open("ab") as file:
                    file.write(getattr(person, name).numpy().astype("<f4").tobytes())
        self.added += 1

    def write(self, name: str, rows: Any, values: Tensor) -> None:
        """A column's values at some rows; those never written are zero."""
        self._mapped(name)[rows] = values.numpy()

    def read(self, name: str, rows: Any) -> Tensor:
        """A column's values at some rows."""
        return torch.from_numpy(np.array(self._mapped(name)[rows]))

    def _mapped(self, name: str) -> np.ndarray:
        """A whole column, mapped for the moment: nothing of the file stays in this process."""
        path, shape = self.folder / name, (len(self.frames), *SHAPES[name])
        with path.open("ab") as file:
            # Zeros, and not a hole: where the disk is full, writing to a mapped hole would kill the process.
            for chunk in chunks(4 * int(np.prod(shape)) - file.tell(), 2**20):
                file.write(bytes(chunk.stop - chunk.start))
        return np.memmap(path, "<f4", "r+", shape=shape)

    def has(self, name: str) -> bool:
        """Whether anything was written to a column."""
        return (self.folder / name).exists()

    def column(self, name: str, rows: np.ndarray) -> Series:
        """A column at rows (T,), read when asked for."""
        return Series(len(rows), lambda chunk: self.read(name, rows[chunk]))

    def everyone(self) -> list[np.ndarray]:
        """The rows of each track, in order of their numbers."""
        tracks = np.array(self.tracks)
        order = np.argsort(tracks, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(tracks[order])) + 1) if len(order) else []

    def when(self, rows: np.ndarray) -> list[float]:
        """Seconds of rows."""
        return [self.times[self.frames[row]] for row in rows]

    def track(self, rows: np.ndarray) -> Track:
        """One person over time, answered."""
        rotations = self.column("rotations", rows) if self.has("rotations") else None
        return Track(self.when(rows), self.column("pose", rows), self.column("root", rows), rotations)

    def seen(self, rows: np.ndarray) -> list[Detection]:
        """The people of rows in 2D."""
        columns = (self.read(name, rows) for name in SEEN)
        return [
            Detection(points, sure, square, self.size, K, self.K_source, self.scores[row])
            for row, points, sure, square, K in zip(rows, *columns, strict=True)
        ]

    def __len__(self) -> int:
        return self.added

    def __iter__(self) -> Iterator[list[PersonHypotheses]]:
        """The people of each frame, answered, by the numbers of their tracks."""
        edges = np.searchsorted(np.array(self.frames), np.arange(self.added + 1))
        for chunk in chunks(self.added):
            first = edges[chunk.start]
            people = self._answered(np.arange(first, edges[chunk.stop]))
            for f in range(chunk.start, chunk.stop):
                here = people[edges[f] - first : edges[f + 1] - first]
                yield sorted(here, key=lambda person: person.track or 0)

    def _answered(self, rows: np.ndarray) -> list[PersonHypotheses]:
        answers = zip(*(self.read(name, rows) for name in ("pose", "expected", "root")), strict=True)
        body = [name for name in ("rotations", "betas") if self.has(name)]
        bodies = zip(*(self.read(name, rows) for name in body), strict=True) if body else repeat(())
        people = []
        for row, detection, (pose, expected, root), own in zip(
            rows, self.seen(rows), answers, bodies, strict=False
        ):
            h = Hypotheses(pose[None, None], torch.zeros(1, 1), None, pose[None], expected[None])
            given = dict(zip(body, own, strict=True))
            people.append(
                PersonHypotheses(detection, self.method, h, track=self.tracks[row], root=root, **given)
            )
        return people
