"""What the files of detectors hold, before it is checked: people in pictures, or in the frames of a video."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dd3g.errors import UserError

LAYOUT_OF_COUNT = {
    18: "coco-18", 25: "openpose-25", 26: "halpe-26", 33: "blazepose-33", 133: "coco-wholebody-133",
    136: "halpe-136",
}  # fmt: skip
LONGEST = 10_000_000  # frames of a video; greater numbers are those of pictures in a data set


@dataclass(frozen=True, slots=True)
class Someone:
    """A person as a file has them.

    Args:
        points: J rows of x and y, or of x, y and confidence.
        confidence: J numbers.
        score: how sure the detector is of the person.
        track: their number or name in a video.
    """

    points: Any
    confidence: Any = None
    score: float | None = None
    track: int | str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The people in one picture or frame.

    Args:
        people: in the file's order.
        name: of the picture, without folder and suffix; None where the file does not say.
        size: (width, height) in px.
        number: of the frame; None where the file does not say.
        video: name of the video, in files of several.
    """

    people: list[Someone]
    name: str | None = None
    size: Any = None
    number: int | None = None
    video: str | None = None


@dataclass(frozen=True)
class KeypointFile:
    """What a detector wrote.

    Args:
        pictures: or the frames of a video, in order.
        layout: of the joints; None where the file does not say.
        video: whether the pictures are the frames of a video.
        beside: `size`, `K`, `distortion`, `heatmaps` and `boxes` where the file has them.
        shares: whether places are shares of the picture's width and height, and not pixels.
        first: number of a video's first frame; None takes 0, or 1 where no frame has number 0.
        bare: whether it is one array of rows, which may be people in a picture or one person in frames.
    """

    pictures: list[Seen]
    layout: str | None = None
    video: bool = False
    beside: dict[str, Any] = field(default_factory=dict)
    shares: bool = False
    first: int | None = None
    bare: bool = False

    def of(self, picture: str) -> Seen:
        """The people in a picture, by its name without folder and suffix.

        Raises:
            UserError: several pictures, none of which has this name.
        """
        named = [seen for seen in self.pictures if seen.name is not None and same_picture(seen.name, picture)]
        if named:
            (found,) = _tracked([replace(named[0], people=[p for seen in named for p in seen.people])])
            return found
        if len(self.pictures) == 1:
            return _tracked(self.pictures)[0]
        names = [seen.name for seen in self.pictures if seen.name is not None]
        if self.video or not names:
            raise UserError(
                f"holds {len(self.pictures)} frames: give the video that they were seen in, not {picture}"
            )
        raise UserError(
            f"holds several pictures, none of which is {picture}: {', '.join(names[:4])}"
            f"{' …' if len(names) > 4 else ''}"
        )

    def frames(self, video: str) -> list[Seen]:
        """The people in every frame of a video, nobody in those that the file leaves out.

        Args:
            video: its name without folder and suffix.

        Raises:
            UserError: several videos, none of which has this name.
        """
        seen = self.pictures
        if self.bare:
            return [Seen([replace(person, track=0)]) for person in seen[0].people]
        names = {one.video for one in seen}
        if len(names) > 1:
            seen = [one for one in seen if one.video == video]
            if not seen:
                known = ", ".join(sorted(map(str, names)))
                raise UserError(f"holds several videos, none of which is {video}: {known}")
        numbers = [one.number for one in seen if one.number is not None]
        if not seen or len(numbers) < len(seen) or max(numbers) > LONGEST:
            return _tracked(seen)
        first = min(1, *numbers) if self.first is None else self.first
        placed = [Seen([]) for _ in range(max(numbers) - first + 1)]
        for one, number in zip(seen, numbers, strict=True):
            if number < first:
                raise UserError(f"has a frame {number}: they are counted from {first}")
            placed[number - first] = replace(one, people=placed[number - first].people + one.people)
        return _tracked(placed)


def same_picture(name: str, picture: str) -> bool:
    """Whether these name one picture; COCO's results give 397133 for 000000397133.jpg."""
    if name.isdecimal() and picture.isdecimal():
        return int(name) == int(picture)
    return name == picture


def _tracked(seen: Sequence[Seen]) -> list[Seen]:
    """The same with numbers for the tracks that have names."""
    tracks = [person.track for one in seen for person in one.people]
    free = 1 + max((track for track in tracks if isinstance(track, int)), default=-1)
    names = list(dict.fromkeys(track for track in tracks if isinstance(track, str)))
    number = {name: free + i for i, name in enumerate(names)}

    def named(person: Someone) -> Someone:
        track = person.track
        return replace(person, track=number[track]) if isinstance(track, str) else person

    return [replace(one, people=[named(person) for person in one.people]) for one in seen]


def numbered(pictures: Sequence[Seen]) -> list[Seen]:
    """The same with the numbers that their names end with, where nothing else differs."""
    ends = [re.fullmatch(r"(.*?)(\d+)", one.name or "") for one in pictures]
    if len({end and end[1] for end in ends}) != 1 or ends[0] is None:
        return list(pictures)
    return [replace(one, number=int(end[2])) for one, end in zip(pictures, ends, strict=True) if end]


def stem(name: Any) -> str:
    """The name of a picture without folder and suffix, whatever the system that wrote it."""
    return Path(str(name).replace("\\", "/")).stem


def layout_by_count(people: Iterable[Someone]) -> str | None:
    """What the number of joints tells."""
    return next((LAYOUT_OF_COUNT[n] for p in people if (n := len(p.points)) in LAYOUT_OF_COUNT), None)


def coco_or(people: Iterable[Someone]) -> str | None:
    """COCO's order of 17, or what the number of joints tells."""
    people = list(people)
    return "coco-17" if any(len(p.points) == 17 for p in people) else layout_by_count(people)
