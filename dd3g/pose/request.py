"""What the pose command makes of each input, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dd3g.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp", ".wmv", ".flv")
ANIMATIONS = (".gif", ".webp", ".png")  # pictures that may have several frames
KEYPOINTS = (".json", ".npz", ".txt")
RESULT = ".pose"  # results are NAME.pose.*; they are not taken for input when the same folder is given again


class Export(StrEnum):
    """Files of a person for other programs, see `dd3g.pose.export.skeletons`."""

    bvh = "bvh"
    glb = "glb"
    trc = "trc"
    c3d = "c3d"
    csv = "csv"
    npz = "npz"
    fbx = "fbx"


class Method(StrEnum):
    """How to get from 2D to 3D; each is a file of `dd3g.pose.methods`."""

    guided = "guided"
    restoration = "restoration"
    recovery = "recovery"


@dataclass(frozen=True)
class Request:
    """What to make of each input, checked.

    Args:
        out: output folder.
        method: one of `Method`.
        m: hypotheses a person, >= 1.
        viewer: also write a self-contained HTML page.
        seed: of all random numbers.
        keypoints: another detector's file, or a folder of files named like the pictures.
        layout: their joint layout; None takes the file's word.
        focal: px; None looks into keypoint files and EXIF.
        every: take every n-th frame of a video.
        confidence: joints with less count as not seen, 0..1.
        size: (width, height) of pictures that keypoint files do not tell the size of.
        height: metres, how tall the people are; None takes a grown person's.
        views: the pictures show one person at one instant.
        weights: folders of networks that take the place of shipped ones.
        predictions: HMR2's or ProHMR's npz of the same people, for recovery to start from.
        moving: the camera of a video moves; else it is taken as standing still, and the floor is looked for.
        export: further formats for each person, of `Export`.
        cameras: JSON with where their cameras stand, see `dd3g.pose.views.read_stations`.
    """

    out: Path
    method: str = "guided"
    m: int = 20
    viewer: bool = False
    seed: int = 0
    keypoints: Path | None = None
    layout: str | None = None
    focal: float | None = None
    every: int = 1
    confidence: float = 0.3
    size: tuple[int, int] | None = None
    height: float | None = None
    views: bool = False
    cameras: Path | None = None
    predictions: Path | None = None
    moving: bool = False
    export: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.m < 1:
            raise UserError(f"--hypotheses {self.m} makes nothing: give 1 or more")
        if self.every < 1:
            raise UserError(f"--every {self.every} takes no frame: give 1 or more")
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise UserError(f"--focal {self.focal:g} is no focal length: give it in pixels, above 0")
        if self.cameras is not None and not self.views:
            raise UserError("--cameras tells where the cameras of several views stand: add --views")
        if self.predictions is not None and self.method != Method.recovery:
            raise UserError("--predictions are bodies to start recovery from: add --method recovery")
        if not 0 <= self.confidence <= 1:
            raise UserError(f"--confidence {self.confidence:g} is no confidence: give it in 0..1")
        if self.keypoints is not None and not self.keypoints.exists():
            raise UserError(f"--keypoints {self.keypoints} does not exist: check the path")

    def keypoints_of(self, picture: Path) -> Path | None:
        """The keypoint file that belongs to a picture; None where BlazePose shall look.

        Raises:
            UserError: a folder of keypoints without a file for the picture.
        """
        if self.keypoints is None or self.keypoints.is_file():
            return self.keypoints
        names = [picture.stem + ending for ending in ("_keypoints.json", *KEYPOINTS)]
        for name in names:
            if (self.keypoints / name).is_file():
                return self.keypoints / name
        raise UserError(f"no keypoints for {picture} in {self.keypoints}: looked for {', '.join(names)}")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT as two numbers.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)\s*[xX×,]\s*(\d+)", text.strip())
    if found is None or not (int(found[1]) and int(found[2])):
        raise UserError(f"--size {text} is no size: give WIDTHxHEIGHT in pixels, e.g. 1920x1080")
    return int(found[1]), int(found[2])


def find_inputs(inputs: list[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """The input files; a folder stands for its pictures and videos, else for its keypoint files.

    Returns:
        The files, and `{"input", "error"}` for each of several inputs that cannot be used.

    Raises:
        UserError: when the only input is a folder without usable files, or one that cannot be read.
    """
    found: list[Path] = []
    failed = []
    for path in inputs:
        try:
            # Path.is_dir would raise where a parent folder may not be searched.
            found += _usable(path) if os.path.isdir(path) else [path]
        except UserError as e:
            if len(inputs) == 1:
                raise
            failed.append({"input": str(path), "error": str(e)})
    return list(dict.fromkeys(found)), failed


def _usable(folder: Path) -> list[Path]:
    try:
        files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as e:
        reason = e.strerror or e
        raise UserError(f"cannot read the folder {folder} ({reason}): check its permissions") from e
    files = [p for p in files if Path(p.stem).suffix != RESULT]
    # Texts come last: beside others they are rather notes.
    for kinds in (PICTURES + VIDEOS, KEYPOINTS[:2], KEYPOINTS[2:]):
        if usable := [p for p in files if p.suffix.lower() in kinds]:
            return usable
    suffixes = " ".join(PICTURES + VIDEOS + KEYPOINTS)
    raise UserError(f"the folder {folder} holds no pictures, videos or keypoints ({suffixes})")


def is_video(path: Path) -> bool:
    """Whether a file is a video or an animation."""
    if path.suffix.lower() not in ANIMATIONS:
        return path.suffix.lower() in VIDEOS
    from PIL import Image

    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError, EOFError):
        return False  # reading it as a picture gives the error
