"""Pictures in, 3D Gaussians out: `dd3g infer PICTURE`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command import (
    Device,
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
from dd3g.io.formats import LAYOUTS
from dd3g.progress import Progress
from dd3g.results import AXES, FORMATS, Request, write_results

DEFAULT_WEIGHTS = "nano"
MANY = 16  # passes for which it pays to warm a GPU up
# Names of its own files that this command skips when it is given the same folder again.
OWN_PICTURES = (".matte", ".turntable")


def find_pictures(inputs: list[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """The pictures to convert, and the inputs that cannot be used; see `dd3g.command.list_inputs`."""
    from dd3g.picture import SUFFIXES

    def pictures(files: list[Path]) -> list[Path]:
        return [p for p in files if p.suffix.lower() in SUFFIXES and Path(p.stem).suffix not in OWN_PICTURES]

    return list_inputs(inputs, "picture", pictures, f"pictures ({' '.join(SUFFIXES)})")


def run(
    inputs: list[Path], request: Request, weights: str, device: str, progress: Progress
) -> dict[str, Any]:
    """Convert every picture; a failure is reported and the others are still converted.

    Returns:
        `{"pictures": [...], "failed": [{"picture", "error"}]}`.

    Raises:
        UserError: what stops the whole run: no pictures, a device that does not work, weights that cannot be
            loaded, an output folder that cannot be written.
    """
    from dd3g.picture import load_image

    pictures, failed = find_pictures(inputs)
    progress.phase("pictures", len(pictures))
    report: dict[str, Any] = {"pictures": [], "failed": failed}
    generator = None
    for path, stem in zip(pictures, output_stems(pictures), strict=True):
        start = time.perf_counter()
        progress.at(path.name)
        try:
            picture = load_image(path, matte=request.matte)
        except UserError as e:
            report["failed"].append({"picture": str(path), "error": str(e)})
            progress.advance()
            continue
        if generator is None:
            from dd3g.device import find_device
            from dd3g.pepd import Generator

            generator = Generator.from_pretrained(weights, device=str(find_device(device)))
            if len(pictures) * request.samples >= MANY and (captured := generator.compiled().captured):
                progress.say(f"warmed up in {captured.seconds:.1f} s")
            check_writable(request.out)
        try:
            result = write_results(generator, picture, stem, request)
        except (UserError, OSError, MemoryError, RuntimeError) as e:
            report["failed"].append({"picture": str(path), "error": explain(e, request.out, "--device cpu")})
        else:
            seconds = round(time.perf_counter() - start, 3)
            report["pictures"].append(
                {"picture": str(path), "warnings": list(picture.warnings), "seconds": seconds, **result}
            )
        progress.advance()
    return report


def _last_line(report: Report, out: Path) -> str:
    files = [f for p in report["pictures"] for s in p["samples"] for f in s["files"]]
    files += [p["matte"] for p in report["pictures"]]
    if len(files) > 8:
        return f"wrote {len(files)} files for {len(report['pictures'])} pictures to {out}{os.sep}"
    return f"wrote {', '.join(files) if files else 'nothing'}"


def infer(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE|FOLDER…", help="Pictures of one object each.")
    ],
    output: OutputFolder = Path("out"),
    format: Annotated[str, typer.Option(help=f"One or more of {','.join(FORMATS)}.")] = "ply",
    turntable: Annotated[bool, typer.Option("--turntable", help="Also write an orbit video.")] = False,
    viewer: Annotated[
        bool, typer.Option("--viewer", help="Also write an HTML page that shows the object.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same picture and seed give the same file.")] = 0,
    samples: Annotated[int, typer.Option(help="Objects per picture, with seeds SEED, SEED+1, ….")] = 1,
    elevation: Annotated[
        float, typer.Option(help="Degrees from which the picture looks down on the object.")
    ] = 10.0,
    refine: Annotated[float, typer.Option(help="Seconds to fit the visible side to the picture.")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Write the network's soft splats, not a solid.")] = False,
    weights: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = DEFAULT_WEIGHTS,
    device: Device = "auto",
    matte: Annotated[str, typer.Option(help="Background removal: auto (u2netp), or a rembg model.")] = "auto",
    no_matte: Annotated[
        bool, typer.Option("--no-matte", help="Use the whole picture as the object.")
    ] = False,
    axes: Annotated[
        str | None, typer.Option(help=f"{', '.join(AXES)}; default: what each format's viewers expect.")
    ] = None,
    ply_layout: Annotated[
        str, typer.Option(help=f"Columns of a .ply: {' or '.join(LAYOUTS)} (62).")
    ] = "compact",
    as_json: Json = False,
) -> None:
    """Turn pictures of objects into 3D Gaussians.

    Exit code 0: everything was written; 1: some of several pictures failed; 2: bad input, nothing written.
    """

    def work(progress: Progress) -> Report:
        formats = tuple(dict.fromkeys(f.strip().lower().lstrip(".") for f in format.split(",")))
        cut = "none" if no_matte else matte
        request = Request(
            output, formats, axes, turntable, viewer, seed, samples, cut, elevation, raw, refine, ply_layout
        )
        return run(pictures, request, weights, device, progress)

    several = len(pictures) > 1 or os.path.isdir(pictures[0])
    conclude(work, "picture", several, as_json, lambda report: _last_line(report, output))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(infer, argv, "dd3g infer")


if __name__ == "__main__":
    sys.exit(main())
