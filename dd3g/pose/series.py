"""One person over the frames of a video, in chunks: an hour of it would not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dd3g.pose.hypotheses import PersonHypotheses

CHUNK = 256  # frames


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
