"""Photos, folders, videos or keypoint files in, 3D human poses out: `dd3g pose PHOTO`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dd3g.command import (
    Json,
    OutputFolder,
    Report,
    check_writable,
    conclude,
    explain,
    list_inputs,
    output_stems,
    run_command,
)
from dd3g.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dd3g.pose.estimation import PersonHypotheses

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
KEYPOINTS = (".json", ".npz")
OWN = ".pose"  # what this command writes is not taken for input when the same folder is given again


class Method(StrEnum):
    """How to get from 2D to 3D."""

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
        seed: of all draws.
        keypoints: another detector's file, or a folder of files named like the pictures.
        layout: their joint layout; None takes the file's word.
        focal: px; None looks into keypoint files and EXIF.
        every: take every n-th frame of a video.
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

    def __post_init__(self) -> None:
        if self.m < 1:
            raise UserError(f"--hypotheses {self.m} makes nothing: give 1 or more")
        if self.every < 1:
            raise UserError(f"--every {self.every} takes no frame: give 1 or more")
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise UserError(f"--focal {self.focal:g} is no focal length: give it in pixels, above 0")
        if self.keypoints is not None and not self.keypoints.exists():
            raise UserError(f"--keypoints {self.keypoints} does not exist: check the path")


def find_inputs(inputs: list[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """What the command line names, and what is of no use; see `dd3g.command.list_inputs`.

    A folder stands for its pictures and videos, or where there are none for its keypoint files.
    """

    def useful(files: list[Path]) -> list[Path]:
        files = [p for p in files if Path(p.stem).suffix != OWN]
        seen = [p for p in files if p.suffix.lower() in PICTURES + VIDEOS]
        return seen or [p for p in files if p.suffix.lower() in KEYPOINTS]

    kinds = " ".join(PICTURES + VIDEOS + KEYPOINTS)
    return list_inputs(inputs, "input", useful, f"pictures, videos or keypoints ({kinds})")


def run(inputs: list[Path], request: Request, progress: Any) -> dict[str, Any]:
    """Estimate everything; a failing input is reported and the others still come out.

    Returns:
        `{"inputs": [{"input", "people", "warnings", "files", "seconds"}], "failed": [{"input", "error"}]}`.

    Raises:
        UserError: what stops the whole run: no input, an output folder that cannot be written, weights that
            are missing.
    """
    paths, failed = find_inputs(inputs)
    if request.keypoints is not None and request.keypoints.is_file() and len(paths) > 1:
        raise UserError("--keypoints FILE is for one picture: give a folder of files named like the pictures")
    _prepare(paths, request)
    task = progress.add_task("", total=len(paths))
    report: dict[str, Any] = {"inputs": [], "failed": failed}
    for path, stem in zip(paths, output_stems(paths), strict=True):
        start = time.perf_counter()
        progress.update(task, description=path.name)
        try:
            with tempfile.TemporaryDirectory(dir=request.out, prefix=".dd3g-") as temporary:
                result = _estimate(path, Path(temporary), stem, request)
                for file in sorted(Path(temporary).iterdir()):
                    file.replace(request.out / file.name)
        except (UserError, OSError, MemoryError, RuntimeError) as e:
            message = explain(e, request.out, "fewer --hypotheses")
            report["failed"].append({"input": str(path), "error": message})
        else:
            files = [str(request.out / name) for name in result.pop("files")]
            seconds = round(time.perf_counter() - start, 3)
            report["inputs"].append({"input": str(path), **result, "files": files, "seconds": seconds})
        progress.advance(task)
    return report


def _prepare(paths: list[Path], request: Request) -> None:
    """Fail before the first picture where something is missing that every picture needs."""
    from dd3g.pose import detector, estimation

    there = [p for p in paths if os.path.exists(p)]  # seconds of loading for a mistyped name are too many
    if there:
        estimation.load_method(request.method)
    if request.keypoints is None and any(p.suffix.lower() not in KEYPOINTS for p in there):
        detector.load()
    check_writable(request.out)


def _estimate(path: Path, folder: Path, stem: str, request: Request) -> dict[str, Any]:
    """Everything for one input, written into `folder`."""
    from dd3g.pose import detection, estimation

    if path.suffix.lower() in VIDEOS or _is_animation(path):
        from dd3g.pose.video import estimate_video

        return estimate_video(path, folder, stem, request)
    picture, keypoints = None, None
    if path.suffix.lower() in KEYPOINTS:
        keypoints = _read_keypoints(path, request)
    else:
        picture = detection.load(path)
        if request.keypoints is not None:
            keypoints = _read_keypoints(_beside(path, request.keypoints), request)
    people = detection.detect(picture, keypoints, request.focal)
    if not people:
        raise UserError(f"no person was found in {path}: give a clearer picture, or --keypoints")
    lifted = estimation.lift(people, request.method, request.m, request.seed)
    result = write_results(lifted, picture, path, folder, stem, request)
    if keypoints is not None:
        result["warnings"] += [f"{path}: {warning}" for warning in keypoints.warnings]
    return result


def write_results(
    people: list[PersonHypotheses],
    picture: Image.Image | None,
    path: Path,
    folder: Path,
    stem: str,
    request: Request,
) -> dict[str, Any]:
    """JSON, figure, page and posed skeletons of one picture.

    Returns:
        `{"people", "warnings", "files"}` with the files' names.
    """
    from dd3g.pose import export
    from dd3g.pose.figures import save_figure

    files = [f"{stem}{OWN}.json", f"{stem}{OWN}.png"]
    width, height = people[0].detection.size
    content = {"picture": str(path), "size": [width, height], **export.head(request.method)}
    export.save_json(content | {"people": export.as_json(people)}, folder / files[0])
    save_figure(people, picture, folder / files[1])
    if request.viewer:
        files.append(f"{stem}{OWN}.html")
        export.save_viewer([people], folder / files[-1], title=stem)
    for number, person in enumerate(people):
        name = stem if len(people) == 1 else f"{stem}-{number}"
        files += export.save_bodies([person], folder, f"{name}{OWN}")
    warnings = [f"{path}: person {i}: {w}" for i, p in enumerate(people) for w in p.detection.warnings]
    return {"people": len(people), "warnings": warnings, "files": files}


def _read_keypoints(path: Path, request: Request) -> Any:
    from dd3g.pose.keypoints import read_keypoints

    return read_keypoints(path, request.layout)


def _beside(picture: Path, keypoints: Path) -> Path:
    """The keypoint file that belongs to a picture."""
    if keypoints.is_file():
        return keypoints
    names = [picture.stem + ending for ending in ("_keypoints.json", *KEYPOINTS)]
    for name in names:
        if (keypoints / name).is_file():
            return keypoints / name
    raise UserError(f"no keypoints for {picture} in {keypoints}: looked for {', '.join(names)}")


def _is_animation(path: Path) -> bool:
    if path.suffix.lower() != ".gif":
        return False
    from PIL import Image

    try:
        with Image.open(path, formats=("GIF",)) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError, EOFError):
        return False  # read as a picture it gets its message


def _last_line(report: Report, out: Path) -> str:
    files = [f for r in report["inputs"] for f in r["files"]]
    people = sum(r["people"] for r in report["inputs"])
    what = ", ".join(files) if len(files) <= 8 else f"{len(files)} files to {out}{os.sep}"
    persons = "1 person" if people == 1 else f"{people} people"
    return f"{persons}: wrote {what or 'nothing'}"


def pose(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTO|FOLDER|VIDEO|KEYPOINTS…", help="Pictures, videos, or .json/.npz."),
    ],
    output: OutputFolder = Path("out"),
    method: Annotated[
        Method, typer.Option(help="Prior with guidance; lifter with noise; body refined by diffusion.")
    ] = Method.guided,
    hypotheses: Annotated[int, typer.Option(help="3D poses for each person.")] = 20,
    viewer: Annotated[
        bool, typer.Option("--viewer", help="Also write an HTML page that shows the poses in 3D.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same input, same seed: same result.")] = 0,
    keypoints: Annotated[
        Path | None, typer.Option(help="Another detector's .json or .npz, or a folder of them.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="coco-17, openpose-25, h36m-17, blazepose-33; default: the file's.")
    ] = None,
    focal: Annotated[
        float | None, typer.Option(help="Focal length in pixels; default: EXIF, else the picture's diagonal.")
    ] = None,
    every: Annotated[int, typer.Option(help="Take every n-th frame of a video.")] = 1,
    as_json: Json = False,
) -> None:
    """Estimate the 3D pose of each person, as several hypotheses with one recommended answer.

    Writes NAME.pose.json and a figure NAME.pose.png for each picture; with recovery also NAME.pose.bvh and
    NAME.pose.glb. Exit code 0: everything was written; 1: some of several inputs failed; 2: bad input.

    Keypoints in JSON are as OpenPose writes them, COCO's annotations or results, or {"layout", "size": [w,
    h], "K": 3x3, "people": [{"keypoints": [[x, y], ...], "confidence": [...]}]}, of which only the people are
    needed. In npz they are "keypoints" (people, joints, 2 or 3) with "confidence", "layout", "size" and "K"
    beside them, or "heatmaps" (people, 17, h, w) over "boxes" (people, 4).
    """

    def work(progress: Any) -> Report:
        request = Request(output, method.value, hypotheses, viewer, seed, keypoints, layout, focal, every)
        return run(inputs, request, progress)

    several = len(inputs) > 1 or os.path.isdir(inputs[0])
    conclude(work, "input", several, as_json, lambda report: _last_line(report, output))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(pose, argv, "dd3g pose")


if __name__ == "__main__":
    sys.exit(main())
