"""The frames of a video with their times, the people in each, and who is who."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dd3g.errors import UserError, first_line, needed
from dd3g.pose.detection.keypoints import TooFewJointsError
from dd3g.pose.detection.people import Detection, detect
from dd3g.pose.detection.reading import read_frames
from dd3g.pose.request import ANIMATIONS, Request

MAX_GAP = 0.5  # seconds for which someone may be hidden and stay the same person
SAME_TRACK = 0.35  # mean distance of joints from where they were expected, in sides of the square
FPS = 25.0  # where there is one frame only
WHOLE = 0.95  # of the frames that a file promises; with fewer it was cut


@dataclass(frozen=True)
class Clip:
    """A video or an animation."""

    path: Path  # the file
    # Seconds of each frame from the first on, as the file has them; they may be uneven
    times: tuple[float, ...]
    size: tuple[int, int]  # (width, height) in px
    warnings: tuple[str, ...] = ()  # sentences for the user about what is missing

    @property
    def fps(self) -> float:
        """Frames a second, on average."""
        last = self.times[-1]
        return (len(self.times) - 1) / last if last > 0 else FPS


def open_clip(path: Path) -> Clip:
    """Look through a video or animation for its times.

    Raises:
        UserError: when the file cannot be read, has no frames, or there is no video decoder.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path")
    if not path.stat().st_size:
        raise UserError(f"{path} cannot be read as a video: it is empty")
    if path.suffix.lower() in ANIMATIONS:
        return _open_animation(path)
    with needed(f"{path}: videos need the extra 'video': pip install 'dd3g[video]'"):
        from imageio_ffmpeg import get_ffmpeg_exe
    call = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    done = subprocess.run([*call, "-f", "framecrc", "-"], capture_output=True, text=True, errors="replace")
    stamps, unit, size = [], 1.0, (0, 0)
    for line in done.stdout.splitlines():
        if line.startswith("#tb 0:"):
            over, under = line.split(":")[1].split("/")
            unit = int(over) / int(under)
        elif line.startswith("#dimensions 0:"):
            width, height = line.split(":")[1].split("x")
            size = int(width), int(height)
        elif line and not line.startswith("#"):
            stamps.append(int(line.split(",")[2]))
    if not stamps:
        reason = (done.stderr.strip().splitlines() or ["it has no frames"])[-1]
        if "matches no streams" in done.stderr:
            reason = "it has no picture track"
        raise UserError(f"{path} cannot be read as a video: {reason}")
    times = tuple((stamp - stamps[0]) * unit for stamp in stamps)
    return Clip(path, times, size, _promised(path, times))


def _promised(path: Path, times: Sequence[float]) -> tuple[str, ...]:
    """Warn of a file that was cut, by what its head says."""
    found = len(times)
    try:
        reader = _reader(path)
        meta = next(reader)
        reader.close()
    except Exception:  # a head that cannot be read promises nothing
        return ()
    # Uneven frames are fewer than their highest rate promises, and yet go on to the end.
    step = times[-1] / (found - 1) if found > 1 else 1 / FPS
    whole = times[-1] + step >= WHOLE * meta.get("duration", 0)
    wanted = 0 if whole else round(meta.get("fps", 0) * meta.get("duration", 0))
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF" and (at := head.find(b"avih")) > 0:
        # ffmpeg takes the duration of an AVI from what is left of it; its head knows better.
        wanted = max(wanted, int.from_bytes(head[at + 24 : at + 28], "little"))
    if found >= WHOLE * wanted - 1:
        return ()
    return (f"{path}: holds {found} of {wanted} frames: it was cut, or is damaged",)


def _open_animation(path: Path) -> Clip:
    try:
        with Image.open(path) as image:
            times, now = [], 0.0
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                image.load()  # webp knows a frame's duration only then
                times.append(now)
                # Browsers take 100 ms where a frame has less than 20.
                duration = image.info.get("duration") or 0
                now += (duration if duration >= 20 else 100) / 1000
            return Clip(path, tuple(times), image.size)
    except (OSError, ValueError, SyntaxError, EOFError) as e:
        raise UserError(
            f"{path} cannot be read as a video ({first_line(e)}): save it as .mp4 and try again"
        ) from e


def frames(path: Path, every: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Every n-th frame of a video that `open_clip` opened, with its index, RGB.

    Raises:
        UserError: when the file cannot be read.
    """
    try:
        if path.suffix.lower() in ANIMATIONS:
            with Image.open(path) as image:
                for i in range(0, getattr(image, "n_frames", 1), every):
                    image.seek(i)
                    yield i, image.convert("RGB")
            return
        # Every frame once: by default frames are repeated or dropped until they are even.
        reader = _reader(path, "-fps_mode", "passthrough")
        width, height = next(reader)["size"]
        for i, data in enumerate(reader):
            if i % every == 0:
                yield i, Image.frombytes("RGB", (width, height), bytes(data))
    except Exception as e:
        # Decoders raise nearly every type there is on damaged files.
        reason = first_line(e)
        raise UserError(f"{path} cannot be read as a video ({reason}): save it as .mp4 and try again") from e


def detect_frames(clip: Clip, request: Request) -> Iterator[list[Detection]]:
    """The people of every n-th frame, one after the other.

    They come from another detector's file or folder, or from BlazePose, which looks for everyone first where
    they were in the frame before.

    Raises:
        UserError: when a file cannot be read, or is of fewer frames than the video.
    """
    focal, threshold = request.focal, request.confidence
    if request.keypoints is not None:
        seen = read_frames(request.keypoints, clip.path.stem, request.layout, clip.size)
        if len(seen) > len(clip.times) + 1:
            raise UserError(
                f"{request.keypoints} has {len(seen)} frames, {clip.path} has {len(clip.times)}: give the "
                "video that the detector saw"
            )
        for number in range(0, len(clip.times), request.every):
            people = []
            if number < len(seen) and (points := seen[number]) is not None:  # nobody at the end
                with suppress(TooFewJointsError):
                    people = detect(None, replace(points, size=clip.size), focal, threshold=threshold)
            yield people
        return
    people = []
    for _, frame in frames(clip.path, request.every):
        people = detect(frame, None, focal, tiles=False, before=people, threshold=threshold)
        people = people or detect(frame, None, focal, threshold=threshold)
        # Heatmaps of a long video would not fit into memory.
        people = [replace(p, heatmaps=None, box=None) for p in people]
        yield people


class Tracker:
    """Follows people from frame to frame: whoever is nearest to where a person was on the way to.

    Someone who was hidden for up to `MAX_GAP` seconds goes on in the old track. Those whom their detector
    numbered keep together by that.
    """

    def __init__(self) -> None:
        self._going: list[_Going] = []
        self._numbered: dict[int | str, int] = {}  # a detector's numbers -> ours
        self._count = 0
        self._before = 0.0  # time of the frame before

    def follow(self, people: Sequence[Detection], now: float) -> list[int]:
        """The numbers of the tracks of the people of the frame at `now` seconds, from 0 as they appear."""
        # How long nobody saw them, which ends with the frame before: frames may be half a second apart.
        self._going = [g for g in self._going if self._before - g.time <= MAX_GAP + 1e-6]
        self._before = now
        alone = [(i, person) for i, person in enumerate(people) if person.track is None]
        pairs = [(g.away(person, now), t, i) for i, person in alone for t, g in enumerate(self._going)]
        numbers: dict[int, int] = {}
        for away, t, i in sorted(pairs):
            going = self._going[t]
            if away <= SAME_TRACK and i not in numbers and going.number not in numbers.values():
                going.follow(people[i], now)
                numbers[i] = going.number
        for i, person in enumerate(people):
            if person.track is not None:
                numbers[i] = self._numbered.setdefault(person.track, self._count)
            elif i not in numbers:
                numbers[i] = self._count
                self._going.append(_Going(person, now, self._count))
            self._count += numbers[i] == self._count
        return [numbers[i] for i in range(len(people))]


@dataclass
class _Going:
    """A person who is followed, and how fast they go across the picture."""

    last: Detection
    time: float
    number: int
    speed: Tensor | None = None  # (2,) px a second; None in their first frame

    def away(self, person: Detection, now: float) -> float:
        """How far the person is from where this one is expected, in sides of the square."""
        shift, side = self._shift(person)
        if self.speed is not None:
            shift = shift - self.speed * (now - self.time)
        return float(shift.norm(dim=-1).mean()) / side

    def follow(self, person: Detection, now: float) -> None:
        """Go on with this person."""
        passed = max(now - self.time, 1e-3)
        speed = self._shift(person)[0].mean(0) / passed
        # The keypoints of one frame are too noisy to extrapolate.
        self.speed = speed if self.speed is None else 0.6 * self.speed + 0.4 * speed
        self.last, self.time = person, now

    def _shift(self, person: Detection) -> tuple[Tensor, float]:
        """Ways (J, 2) in px of the joints that both frames show, or that of the squares' middles."""
        side = float(self.last.square[2] - self.last.square[0])
        both = (self.last.confidence > 0) & (person.confidence > 0)
        if int(both.sum()) >= 4:
            return (person.keypoints - self.last.keypoints)[both], max(side, 1.0)
        middles = [(p.square[:2] + p.square[2:]) / 2 for p in (self.last, person)]
        return (middles[1] - middles[0])[None], max(side, 1.0)


def _reader(path: Path, *words: str) -> Any:
    """The frames of a video after what its head says; a phone's are turned as it was held, without a note."""
    import imageio_ffmpeg

    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    return imageio_ffmpeg.read_frames(str(path), output_params=list(words))
