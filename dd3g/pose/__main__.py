"""Photos, folders, videos or keypoint files in, 3D human poses out: `dd3g pose PHOTO`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.progress import Progress
from dd3g.command.run import Json, Report, conclude, dispatch, failure
from dd3g.command.setting import flattened
from dd3g.command.signals import signals_wait
from dd3g.errors import UserError
from dd3g.io.atomic import check_writable, move_files, remove_leftovers, temporary_folder
from dd3g.picture.inputs import output_stems
from dd3g.pose.request import KEYPOINTS, Export, Method, Request, find_inputs, is_video


def run(inputs: list[Path], request: Request, progress: Progress, report: Report) -> Report:
    """Estimate everything; a failing input is reported and the others still come out.

    The report is filled as the work goes on, and returned: `{"inputs": [{"input", "people", "warnings",
    "files", "seconds"}], "failed": [{"input", "error"}]}`.

    Raises:
        UserError: what stops the whole run: no input, an output folder that cannot be written, weights that
            are missing.
    """
    request.check()
    paths, failed = find_inputs(inputs)
    networks = _prepare(paths, request)
    progress.phase("inputs", len(paths))
    report["failed"] += failed
    named = list(zip(paths, output_stems(paths), strict=True))
    if request.views:
        _write(request, report, lambda folder: _estimate(named, folder, request, networks, progress))
        return report
    for one in named:
        progress.at(one[0].name)
        try:
            _write(request, report, lambda folder: _estimate([one], folder, request, networks, progress))
        except Exception as e:  # whatever it is, the other inputs still come out
            report["failed"].append(failure("input", str(one[0]), e, request.out, "fewer --hypotheses"))
        progress.advance()
    return report


def _write(request: Request, report: Report, estimate: Callable[[Path], list[dict[str, Any]]]) -> None:
    """Report what `estimate` writes into a folder, once all of it is in the output folder."""
    start = time.perf_counter()
    with temporary_folder(request.out) as folder:
        entries = estimate(folder)
        with signals_wait():
            move_files(folder, request.out)
            seconds = round((time.perf_counter() - start) / len(entries), 3)
            for entry in entries:
                files = [str(request.out / name) for name in entry.pop("files")]
                report["inputs"].append({**entry, "files": files, "seconds": seconds})


def _prepare(paths: list[Path], request: Request) -> Any:
    """The networks; fails before the first picture where something is missing that every picture needs."""
    from dd3g.pose.detection import blazepose
    from dd3g.pose.export.skeletons import check_blender
    from dd3g.pose.methods.registry import load_networks
    from dd3g.pose.networks.rotation_denoiser import RotationDenoiser

    if Export.fbx in request.export:
        check_blender()
    there = [p for p in paths if os.path.exists(p)]  # seconds of loading for a mistyped name are too many
    networks = load_networks(request.method, request.weights) if there else None
    if networks is not None and request.method == Method.recovery and request.predictions is None:
        shape = networks[RotationDenoiser].config
        if shape.condition_kind == "features":
            raise UserError(
                f"the --weights need {shape.condition} features of the picture: add --predictions FILE "
                "with pose_feats"
            )
    if request.keypoints is None and any(p.suffix.lower() not in KEYPOINTS for p in there):
        blazepose.load()
    check_writable(request.out)
    remove_leftovers(request.out)
    return networks


def _estimate(
    named: list[tuple[Path, str]], folder: Path, request: Request, networks: Any, progress: Progress
) -> list[dict[str, Any]]:
    """Everything for one input, or for all views of one person, written into `folder`."""
    from dd3g.pose.estimation import lift
    from dd3g.pose.export.results import write_results
    from dd3g.pose.series import Track
    from dd3g.pose.video import estimate_video
    from dd3g.pose.views import combine, read_stations

    paths, stations = [path for path, _ in named], None
    if videos := [path for path in paths if is_video(path)]:
        if request.views:
            raise UserError(
                f"--views is for pictures, but {videos[0]} is a video: give its frame of that instant"
            )
        [(path, stem)] = named
        return [{"input": str(path), **estimate_video(path, folder, stem, request, networks, progress.at)}]
    if request.cameras is not None:
        stations = read_stations(request.cameras, [path.stem for path in paths])
    looks = [_look(path, request) for path in paths]
    shown = [people for _, people, _ in looks]
    if request.views:  # the largest person of each picture is one person
        shown = [[max(people, key=lambda p: float(p.square[2] - p.square[0]))] for people in shown]
    everyone = [person for people in shown for person in people]
    lifted = lift(everyone, request.method, request.m, request.seed, None, request.height, networks)
    rest = iter(combine(lifted, stations) if request.views else lifted)
    entries = []
    for (path, stem), seen, (picture, people, warnings) in zip(named, shown, looks, strict=True):
        answers = list(islice(rest, len(seen)))
        tracks = [Track.of([person]) for person in answers]
        result = write_results([answers], tracks, path, folder, stem, request, picture)
        if len(seen) < len(people):
            warnings = [*warnings, f"{path}: used the largest of {len(people)} people"]
        entries.append({"input": str(path), **result, "warnings": [*result["warnings"], *warnings]})
    return entries


def _look(path: Path, request: Request) -> tuple[Any, list[Any], list[str]]:
    """The picture, None with keypoints alone, the people in it in 2D, and warnings.

    Raises:
        UserError: a file that cannot be read, or nobody in it.
    """
    from dd3g.pose.detection.people import detect, load
    from dd3g.pose.detection.reading import read_keypoints
    from dd3g.pose.detection.regressed import read_regressed

    alone = path.suffix.lower() in KEYPOINTS
    picture = None if alone else load(path)
    file = path if alone else request.keypoints_of(path)
    keypoints = None
    if file is not None:
        shown = request.picture_size if picture is None else picture.size
        keypoints = read_keypoints(file, request.layout, None if alone else path.stem, shown)
    people = detect(
        picture, keypoints, request.focal, threshold=request.confidence, size=request.picture_size
    )
    if not people:
        raise UserError(f"no person was found in {path}: give a clearer picture, or --keypoints")
    if request.predictions is not None:
        people = read_regressed(request.predictions).in_picture(people, path.stem)
    return picture, people, [] if keypoints is None else [f"{path}: {text}" for text in keypoints.warnings]


def _last_line(report: Report, out: Path) -> str:
    files = [f for r in report["inputs"] for f in r["files"]]
    people = sum(r["people"] for r in report["inputs"])
    what = ", ".join(files) if len(files) <= 8 else f"{len(files)} files to {out}{os.sep}"
    persons = "1 person" if people == 1 else f"{people} people"
    return f"{persons}: wrote {what or 'nothing'}"


@flattened
def pose(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTO|FOLDER|VIDEO|KEYPOINTS", help="Pictures, videos, or .json/.npz/.txt."),
    ],
    request: Request,
    as_json: Json = False,
) -> None:
    """Estimate the 3D pose of each person, as several hypotheses with one recommended answer.

    Writes NAME.pose.json and a figure NAME.pose.png for each picture; with recovery also NAME.pose.bvh and
    NAME.pose.glb. Exit code 0: everything was written; 1: some of several inputs failed; 2: bad input.

    Keypoints are files of OpenPose, COCO, Detectron2, AlphaPose, MMPose, YOLO, ViTPose and VideoPose3D, for
    videos too; or JSON {"layout", "size": [w, h], "K": 3x3, "distortion", "people": [{"keypoints": [[x, y],
    ...], "confidence": [...]}]}, of which only the people are needed; or npz with "keypoints" (people,
    joints, 2 or 3) and beside them "confidence", "layout", "size", "K", or "heatmaps" (people, 17, h, w) over
    "boxes" (people, 4). Where a file does not give the size of its picture, give --size or the picture.
    """
    report: Report = {"inputs": [], "failed": []}
    several = len(inputs) > 1 or os.path.isdir(inputs[0])
    conclude(
        lambda progress: run(inputs, request, progress, report),
        "input",
        several,
        as_json,
        lambda report: _last_line(report, request.out),
        report,
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    convert = {"convert": ("dd3g.pose.convert", "convert published weights to folders of dd3g")}
    return dispatch(convert, argv, "dd3g pose", "Poses of people.", otherwise=pose)


if __name__ == "__main__":
    sys.exit(main())
