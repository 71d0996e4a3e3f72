"""Pictures in, 3D Gaussians out: the `dd3g` command."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.errors import UserError
from dd3g.results import AXES, FORMATS, Request, check_writable, explain, write_results

DEFAULT_WEIGHTS = "nano"
# What this command puts beside its results is not taken for a picture when the same folder is given again.
OWN_PICTURES = (".matte", ".turntable")


def find_pictures(inputs: list[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """The pictures named on the command line; a folder stands for the pictures in it, sorted by name.

    Returns:
        The pictures, and `{"picture", "error"}` of each of several inputs that is of no use.

    Raises:
        UserError: when the only input is a folder that holds no picture or may not be read.
    """
    pictures: list[Path] = []
    failed = []
    for path in inputs:
        try:
            # Unlike Path.is_dir, which raises where a folder on the way may not be searched.
            pictures += _listed(path) if os.path.isdir(path) else [path]
        except UserError as e:
            if len(inputs) == 1:
                raise
            failed.append({"picture": str(path), "error": str(e)})
    return list(dict.fromkeys(pictures)), failed


def _listed(folder: Path) -> list[Path]:
    from dd3g.picture import SUFFIXES

    try:
        found = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES
            and not p.name.startswith(".")
            and Path(p.stem).suffix not in OWN_PICTURES
        )
    except OSError as e:
        reason = e.strerror or e
        raise UserError(f"the folder {folder} may not be read ({reason}): check its permissions") from e
    if not found:
        raise UserError(f"the folder {folder} holds no pictures ({' '.join(SUFFIXES)})")
    return found


def output_stems(pictures: list[Path]) -> list[str]:
    """One name for each picture's results, none used twice: `a.png` and `a.jpg` give `a_png` and `a_jpg`."""
    shared = Counter(p.stem.casefold() for p in pictures)
    stems: list[str] = []
    for p in pictures:
        base = p.stem if shared[p.stem.casefold()] == 1 else p.name.replace(".", "_")
        stem, n = base, 2
        while stem.casefold() in {s.casefold() for s in stems}:
            stem, n = f"{base}-{n}", n + 1
        stems.append(stem)
    return stems


def run(inputs: list[Path], request: Request, weights: str, device: str, progress: Any) -> dict[str, Any]:
    """Convert every picture; a failing one is reported and the others still come out.

    Returns:
        `{"pictures": [...], "failed": [{"picture", "error"}]}`.

    Raises:
        UserError: what stops the whole run: no pictures, a device that does not work, weights that cannot be
            loaded, an output folder that cannot be written.
    """
    from dd3g.picture import load_image

    pictures, failed = find_pictures(inputs)
    task = progress.add_task("", total=len(pictures))
    report: dict[str, Any] = {"pictures": [], "failed": failed}
    generator = None
    for path, stem in zip(pictures, output_stems(pictures), strict=True):
        start = time.perf_counter()
        progress.update(task, description=path.name)
        try:
            picture = load_image(path, matte=request.matte)
        except UserError as e:
            report["failed"].append({"picture": str(path), "error": str(e)})
            progress.advance(task)
            continue
        if generator is None:
            from dd3g.device import find_device
            from dd3g.pepd import Generator

            generator = Generator.from_pretrained(weights, device=str(find_device(device)))
            check_writable(request.out)
        try:
            result = write_results(generator, picture, stem, request)
        except (UserError, OSError, MemoryError, RuntimeError) as e:
            report["failed"].append({"picture": str(path), "error": explain(e, request.out)})
        else:
            seconds = round(time.perf_counter() - start, 3)
            report["pictures"].append(
                {"picture": str(path), "warnings": list(picture.warnings), "seconds": seconds, **result}
            )
        progress.advance(task)
    return report


@contextlib.contextmanager
def _progress(enabled: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    )
    enabled = enabled and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not enabled) as progress:
        yield progress


def _say(text: str, err: bool = False) -> None:
    # File names may hold bytes that are no text, and messages from libraries may hold line breaks.
    typer.echo(" ".join(text.encode("utf-8", "replace").decode().split("\n")), err=err)


def _last_line(report: dict[str, Any], out: Path) -> str:
    files = [f for p in report["pictures"] for s in p["samples"] for f in s["files"]]
    files += [p["matte"] for p in report["pictures"]]
    if len(files) > 8:
        what = f"{len(files)} files for {len(report['pictures'])} pictures to {out}{os.sep}"
    else:
        what = ", ".join(files) if files else "nothing"
    failed = f", {len(report['failed'])} failed" if report["failed"] else ""
    return f"wrote {what} in {report['seconds']:.1f} s{failed}"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(no_args_is_help=True)
def infer(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE|FOLDER…", help="Pictures of one object each.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("out"),
    format: Annotated[str, typer.Option(help=f"Some of {','.join(FORMATS)}, with commas between.")] = "ply",
    turntable: Annotated[bool, typer.Option("--turntable", help="Also write an orbit video.")] = False,
    viewer: Annotated[
        bool, typer.Option("--viewer", help="Also write an HTML page that shows the object.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same picture, same seed: same file.")] = 0,
    samples: Annotated[int, typer.Option(help="Objects for each picture, with seeds SEED, SEED+1, ….")] = 1,
    weights: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = DEFAULT_WEIGHTS,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    matte: Annotated[str, typer.Option(help="Background removal: auto (u2netp), or a rembg model.")] = "auto",
    no_matte: Annotated[
        bool, typer.Option("--no-matte", help="Take the whole picture as the object.")
    ] = False,
    axes: Annotated[
        str | None, typer.Option(help=f"{', '.join(AXES)}; default: what each format's viewers expect.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Turn pictures of objects into 3D Gaussians.

    Exit code 0: everything was written; 1: some of several pictures failed; 2: bad input, nothing written.
    """
    start = time.perf_counter()
    several = len(pictures) > 1 or os.path.isdir(pictures[0])
    report: dict[str, Any] = {"pictures": [], "failed": []}
    code = 0
    try:
        formats = tuple(dict.fromkeys(f.strip().lower().lstrip(".") for f in format.split(",")))
        matte = "none" if no_matte else matte
        request = Request(out, formats, axes, turntable, viewer, seed, samples, matte)
        # Libraries that print would break the JSON.
        with contextlib.redirect_stdout(sys.stderr), _progress(enabled=not as_json) as progress:
            report = run(pictures, request, weights, device, progress)
        if report["failed"]:
            code = 1 if several else 2
    except UserError as e:
        report["error"] = str(e)
        code = 2
    report["seconds"] = round(time.perf_counter() - start, 3)
    for picture in report["pictures"]:
        for warning in picture["warnings"] if not as_json else ():
            _say(f"warning: {warning}", err=True)
    for failure in report["failed"]:
        name, message = failure["picture"], failure["error"]
        _say(f"error: {message}" if name in message else f"error: {name}: {message}", err=True)
    if "error" in report:
        _say(f"error: {report['error']}", err=True)
    if as_json:
        typer.echo(json.dumps(report))
    elif code != 2:
        _say(_last_line(report, out))
    if code:
        raise typer.Exit(code)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
