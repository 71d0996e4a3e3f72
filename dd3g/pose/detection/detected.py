"""What the files of detectors hold, before it is checked: people in pictures, or in the frames of a video."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from posixpath import basename, splitext
from string import digits
from typing import Any

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import COCO_17

LAYOUT_OF_COUNT = {
    18: "coco-18", 25: "openpose-25", 26: "halpe-26", 33: "blazepose-33", 133: "coco-wholebody-133",
    136: "halpe-136",
}  # fmt: skip
NOBODY = "no person in it: nothing to estimate"
LONGEST = 10_000_000  # frames of a video; greater numbers are those of pictures in a data set


@dataclass(frozen=True, slots=True)
class Someone:
    """A person as a file has them."""

    points: Any  # J rows of x and y, or of x, y and confidence
    confidence: Any = None  # J numbers
    score: float | None = None  # how sure the detector is of the person
    track: int | str | None = None  # their number or name in a video


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture or frame."""

    at: Sequence[int] = ()  # numbers of the file's entries that tell of its people
    name: str | None = None  # of the picture, without folder and suffix; None where the file does not say
    size: Any = None  # (width, height) in px
    number: int | None = None  # of the frame; None where the file does not say
    video: str | None = None  # name of the video, in files of several


@dataclass(frozen=True)
class KeypointFile:
    """What a detector wrote."""

    # Gives the people of an entry; those of an hour of video would not fit into memory at once
    read: Callable[[int], list[Someone]]
    pictures: list[Seen]  # or the frames of a video, in order
    layout: str | None = None  # of the joints; None where the file does not say
    video: bool = False  # whether the pictures are the frames of a video
    # `size`, `K`, `distortion`, `heatmaps` and `boxes` where the file has them
    beside: dict[str, Any] = field(default_factory=dict)
    coco: bool = False  # whether 17 joints without a layout are COCO's
    shares: bool = False  # whether places are shares of the picture's width and height, and not pixels
    # Number of a video's first frame; None takes 0, or 1 where no frame has number 0
    first: int | None = None
    # Whether it is one array of rows, which may be people in a picture or one person in frames
    bare: bool = False

    @staticmethod
    def of_picture(people: list[Someone], **known: Any) -> KeypointFile:
        """Of one picture with these people."""
        return KeypointFile(lambda i: people, [Seen((0,))], **known)

    def people(self, seen: Seen) -> list[Someone]:
        """The people in a picture or frame, in the file's order."""
        return [person for i in seen.at for person in self.read(i)]

    def of(self, picture: str) -> Seen:
        """A picture by its name without folder and suffix.

        Raises:
            UserError: several pictures, none of which has this name.
        """
        named = [seen for seen in self.pictures if seen.name is not None and same_picture(seen.name, picture)]
        if named:
            return replace(named[0], at=[i for seen in named for i in seen.at])
        if len(self.pictures) == 1:
            return self.pictures[0]
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
        """Every frame of a video, by its name without folder and suffix; nobody is in those left out.

        Raises:
            UserError: several videos, none of which has this name.
        """
        seen = self.pictures
        if self.bare:
            return [Seen((i,)) for i in seen[0].at]
        names = {one.video for one in seen}
        if len(names) > 1:
            seen = [one for one in seen if one.video == video]
            if not seen:
                known = ", ".join(sorted(map(str, names)))
                raise UserError(f"holds several videos, none of which is {video}: {known}")
        numbers = [one.number for one in seen if one.number is not None]
        if not seen or len(numbers) < len(seen) or max(numbers) > LONGEST:
            return seen
        first = min(1, *numbers) if self.first is None else self.first
        placed = [Seen()] * (max(numbers) - first + 1)
        for one, number in zip(seen, numbers, strict=True):
            if number < first:
                raise UserError(f"has a frame {number}, but frames count from {first}")
            placed[number - first] = replace(one, at=(*placed[number - first].at, *one.at))
        return placed


def same_picture(name: str, picture: str) -> bool:
    """Whether these name one picture; COCO's results give 397133 for 000000397133.jpg."""
    if name.isdecimal() and picture.isdecimal():
        return int(name) == int(picture)
    return name == picture


def numbered(pictures: Sequence[Seen]) -> list[Seen]:
    """The same with the numbers that their names end with, where nothing else differs."""
    fronts = {(one.name or "").rstrip(digits) for one in pictures}
    if len(fronts) != 1 or any(one.name in (None, *fronts) for one in pictures):
        return list(pictures)
    start = len(fronts.pop())
    return [replace(one, number=int((one.name or "")[start:])) for one in pictures]


def grouped(keys: Iterable[tuple[int, Any]]) -> dict[Any, list[int]]:
    """The entries of each picture, by what tells which picture an entry is of."""
    found: dict[Any, list[int]] = {}
    for i, key in keys:
        found.setdefault(key, []).append(i)
    return found


def stem(name: Any) -> str:
    """The name of a picture without folder and suffix, whatever the system that wrote it."""
    return splitext(basename(str(name).replace("\\", "/")))[0]


def coco_names(names: Iterable[Any]) -> list[str]:
    """Names of joints as COCO_17 has them."""
    lower = (str(name).lower().replace(" ", "_") for name in names)
    return [re.sub(r"^(left|right)_", lambda m: m[1][0] + "_", name) for name in lower]


def in_coco_order(found: KeypointFile, names: Any) -> KeypointFile:
    """Joints that a file names by number, in the order of COCO-17, whatever their own.

    Raises:
        UserError: when a joint of COCO-17 is not among them.
    """
    if not isinstance(names, dict):
        return found
    own = coco_names([names[key] for key in sorted(names, key=int)])
    if missing := [joint for joint in COCO_17.joints if joint not in own]:
        raise UserError(
            f"has no joint {', '.join(missing)}, only {', '.join(own)}: use a model of COCO's joints"
        )
    order = [own.index(joint) for joint in COCO_17.joints]

    def chosen(values: Any) -> Any:
        if values is None or len(values) < len(own):
            return values
        return [values[i] for i in order]

    def read(i: int) -> list[Someone]:
        return [replace(p, points=chosen(p.points), confidence=chosen(p.confidence)) for p in found.read(i)]

    return replace(found, read=read, layout=COCO_17.name)
