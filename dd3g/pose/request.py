"""What the pose command makes of each input, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.quiet import quiet
from dd3g.whole import whole_seed

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp", ".wmv", ".flv")
ANIMATIONS = (".gif", ".webp", ".png")  # pictures that may have several frames
KEYPOINTS = (".json", ".npz", ".txt")
RESULT = ".pose"  # results are NAME.pose.*; they are not taken for input when the same folder is given again

Export = StrEnum("Export", ["bvh", "glb", "trc", "c3d", "csv", "npz", "fbx"])
"""Files of a person for other programs, see `dd3g.pose.export.skeletons`."""
Method = StrEnum("Method", ["guided", "restoration", "recovery"])
"""How to get from 2D to 3D; each is a file of `dd3g.pose.methods`."""


@dataclass(frozen=True)
class Request:
    """What to make of each input: the options of `dd3g pose`."""

    out: Path = setting(Path("out"), "Output folder.", option="-o --output")
    method: Method = setting(
        Method.guided, "Prior with guidance; lifter with noise; body refined by diffusion."
    )
    m: int = setting(20, "3D poses for each person.", option="--hypotheses")
    viewer: bool = setting(False, "Also write an HTML page that shows the poses in 3D.")
    seed: int = setting(0, "Same input, same seed: same result.", 0)
    keypoints: Path | None = setting(None, "Another detector's .json, .npz or .txt, or a folder of them.")
    layout: str | None = setting(
        None, "coco-17, coco-18, openpose-25, h36m-17, halpe-26 …; default: the file's."
    )
    confidence: float = setting(0.3, "Joints that the detector is less sure of, 0..1, count as not seen.")
    size: str | None = setting(None, "WIDTHxHEIGHT of the pictures, where keypoint files do not say.")
    height: float | None = setting(
        None, "How tall the people are, metres; default: adults of 1.76 m. Children need it."
    )
    focal: float | None = setting(None, "Focal length in pixels; default: EXIF, else the picture's diagonal.")
    views: bool = setting(False, "The pictures show one person at one instant: one pose for all.")
    cameras: Path | None = setting(None, 'For --views: JSON {"NAME": {"R": 3x3, "t": 3, "K": 3x3}}, metres.')
    predictions: Path | None = setting(
        None, "For recovery: HMR2's or ProHMR's .npz of the people, to start from."
    )
    weights: list[Path] = setting(
        [], "Folder from train-pose or `pose convert` to use instead; may be repeated."
    )
    moving: bool = setting(
        False, "The video's camera moves: no floor is estimated.", option="--moving-camera"
    )
    export: list[Export] = setting(
        [], "Also write each person as this; may be repeated. npz: parameters of SMPL and SMPL-X."
    )
    every: int = setting(1, "Take every n-th frame of a video.")

    def check(self) -> None:
        """Hold the options against their ranges and each other.

        Raises:
            UserError: for the first that cannot be.
        """
        if self.m < 1:
            raise UserError(f"--hypotheses {self.m} is too few: give 1 or more")
        whole_seed(self.seed, "--seed")
        if self.every < 1:
            raise UserError(f"--every {self.every} takes no frame: give 1 or more")
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise UserError(f"--focal {self.focal:g} is not a focal length: give it in pixels, above 0")
        if self.cameras is not None and not self.views:
            raise UserError("--cameras is for several views: add --views")
        if self.predictions is not None and self.method != Method.recovery:
            raise UserError(
                "--predictions is for recovery, which starts from these bodies: add --method recovery"
            )
        if not 0 <= self.confidence <= 1:
            raise UserError(f"--confidence {self.confidence:g} is not a confidence: give 0 to 1")
        if self.keypoints is not None and not self.keypoints.exists():
            raise UserError(f"--keypoints {self.keypoints} does not exist: check the path")
        self.picture_size  # raises
        if self.height is not None:
            from dd3g.pose.methods.advice import size_of

            size_of(self.height)  # raises

    @cached_property
    def picture_size(self) -> tuple[int, int] | None:
        """(width, height) of pictures that keypoint files do not tell the size of.

        Raises:
            UserError: anything else than WIDTHxHEIGHT.
        """
        if self.size is None:
            return None
        found = re.fullmatch(r"(\d+)\s*[xX×,]\s*(\d+)", self.size.strip())
        if found is None or not (int(found[1]) and int(found[2])):
            raise UserError(f"--size {self.size} is not a size: give WIDTHxHEIGHT in pixels, e.g. 1920x1080")
        return int(found[1]), int(found[2])

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


def find_inputs(inputs: list[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """The input files; a folder stands for its pictures and videos, else for its keypoint files.

    Returns:
        The files, and `{"input", "error"}` for each of several inputs that cannot be used.

    Raises:
        UserError: when the only input is an address, or a folder without usable files or that cannot be
            read.
    """
    found: list[Path] = []
    failed = []
    for path in inputs:
        try:
            if re.match("https?:/", str(path)):
                address = str(path).replace(":/", "://", 1)  # of which Path makes one stroke
                raise UserError(f"{address} is an address, and poses are of files: download it first")
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
        with quiet(), Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False  # reading it as a picture gives the error
