"""Pictures in, 3D Gaussians out: the `dd3g` command."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dd3g.errors import UserError

if TYPE_CHECKING:
    from dd3g.gaussians import Gaussians
    from dd3g.pepd import Generator
    from dd3g.picture import Picture

FORMATS = ("ply", "spz", "splat", "glb")
AXES = ("opencv", "opengl", "zup")
DEFAULT_WEIGHTS = "nano"
# What this command puts beside its results is not taken for a picture when the same folder is given again.
OWN_PICTURES = (".matte", ".turntable")


@dataclass(frozen=True)
class Request:
    """What to write for each picture, checked.

    Args:
        out: output folder.
        formats: some of `FORMATS`.
        axes: one of `AXES`, or None for each format's own convention.
        turntable: also write an orbit video.
        viewer: also write a self-contained HTML page.
        seed: seed of the first sample; sample k uses seed + k.
        samples: objects made from one picture, >= 1.
        matte: as in `dd3g.picture.load_image`.
    """

    out: Path
    formats: tuple[str, ...]
    axes: str | None
    turntable: bool
    viewer: bool
    seed: int
    samples: int
    matte: str

    def __post_init__(self) -> None:
        unknown = [f for f in self.formats if f not in FORMATS]
        if unknown or not self.formats:
            raise UserError(f"unknown format {', '.join(unknown)!r}: give one or more of {','.join(FORMATS)}")
        if self.axes not in (None, *AXES):
            raise UserError(f"unknown axes {self.axes!r}: choose from {', '.join(AXES)}")
        if self.samples < 1:
            raise UserError(f"--samples {self.samples} makes nothing: give 1 or more")


def find_pictures(inputs: list[Path]) -> list[Path]:
    """The pictures named on the command line; a folder stands for the pictures in it, sorted by name.

    Raises:
        UserError: when a folder holds no picture.
    """
    from dd3g.picture import SUFFIXES

    pictures: list[Path] = []
    for path in inputs:
        if not path.is_dir():
            pictures.append(path)
            continue
        try:
            found = sorted(
                p
                for p in path.iterdir()
                if p.suffix.lower() in SUFFIXES
                and not p.name.startswith(".")
                and Path(p.stem).suffix not in OWN_PICTURES
            )
        except PermissionError as e:
            raise UserError(f"the folder {path} may not be read: check its permissions") from e
        if not found:
            raise UserError(f"the folder {path} holds no pictures ({' '.join(SUFFIXES)})")
        pictures += found
    return list(dict.fromkeys(pictures))


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


def load_generator(weights: str, device: str) -> Generator:
    """The generator on its device.

    Args:
        weights: a shipped name, a folder or a hub id.
        device: "auto" (CUDA when there is one, else the CPU), or any torch device.

    Raises:
        UserError: unknown or missing device, or weights that cannot be loaded.
    """
    import torch

    from dd3g.pepd import Generator

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise UserError(f"unknown device {device!r}: give auto, cpu, cuda, cuda:1 or mps") from e
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(kind)
    if backend is not None and not backend.is_available():
        raise UserError(f"torch finds no {kind} device on this machine: give --device cpu, or leave it out")
    return Generator.from_pretrained(weights, device=device)


def write_results(generator: Generator, picture: Picture, stem: str, request: Request) -> dict[str, Any]:
    """Generate and write everything for one picture; the files appear together, each whole.

    Returns:
        `{"matte": path, "samples": [{"seed", "gaussians", "files"}]}` as --json prints it.
    """
    samples = []
    with tempfile.TemporaryDirectory(dir=request.out, prefix=".dd3g-") as temporary:
        folder = Path(temporary)
        try:
            picture.save(folder / f"{stem}.matte.png")
            for k in range(request.samples):
                name = stem if request.samples == 1 else f"{stem}-{k}"
                gaussians = generator.generate(picture, seed=request.seed + k)
                files = _write_one(gaussians, folder, name, request)
                samples.append({"seed": request.seed + k, "gaussians": len(gaussians), "files": files})
        except UserError as e:
            raise UserError(str(e).replace(temporary, str(request.out))) from e
        for path in sorted(folder.iterdir()):
            path.replace(request.out / path.name)
    return {"matte": str(request.out / f"{stem}.matte.png"), "samples": samples}


def _write_one(gaussians: Gaussians, folder: Path, name: str, request: Request) -> list[str]:
    """Write one object into `folder`; returns the paths that its files will have in the output folder."""
    from dd3g.io.splats import save

    files = [f"{name}.{suffix}" for suffix in request.formats]
    for file in files:
        save(gaussians, folder / file, axes=request.axes)
    if request.turntable:
        from dd3g.io.turntable import render_turntable, save_turntable

        movie = save_turntable(render_turntable(gaussians), folder / f"{name}.turntable.mp4")
        files.append(movie.name)  # an animation where there is no video encoder
    if request.viewer:
        from dd3g.io.viewer import save_viewer

        files.append(f"{name}.html")
        save_viewer(gaussians, folder / files[-1], title=name)
    return [str(request.out / file) for file in files]


def run(inputs: list[Path], request: Request, weights: str, device: str, progress: Any) -> dict[str, Any]:
    """Convert every picture; a failing one is reported and the others still come out.

    Returns:
        `{"pictures": [...], "failed": [{"picture", "error"}]}`.

    Raises:
        UserError: what stops the whole run: no pictures, an output folder that cannot be written, weights
            that cannot be loaded.
    """
    from dd3g.picture import load_image

    pictures = find_pictures(inputs)
    task = progress.add_task("", total=len(pictures))
    report: dict[str, Any] = {"pictures": [], "failed": []}
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
            generator = load_generator(weights, device)
            _check_writable(request.out)
        try:
            result = write_results(generator, picture, stem, request)
        except (UserError, OSError, MemoryError, RuntimeError) as e:
            report["failed"].append({"picture": str(path), "error": _explain(e, request.out)})
        else:
            seconds = round(time.perf_counter() - start, 3)
            report["pictures"].append(
                {"picture": str(path), "warnings": list(picture.warnings), "seconds": seconds, **result}
            )
        progress.advance(task)
    return report


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as e:
        raise UserError(
            f"cannot write to the output folder {out} ({e.strerror or e}): choose another with -o"
        ) from e


def _explain(error: Exception, out: Path) -> str:
    """The sentence for the user; anything that is not theirs to put right is raised again."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or error
        return f"could not write to {out} ({reason}): free some space or choose another folder with -o"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return "not enough memory: close other programs, or give --device cpu"
    raise error


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
    several = len(pictures) > 1 or pictures[0].is_dir()
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
