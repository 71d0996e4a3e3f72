"""Pictures in, 3D Gaussians out: `dd3g infer PICTURE`."""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.progress import Progress
from dd3g.command.run import Device, Json, Report, command_line, conclude, failure
from dd3g.command.setting import flattened
from dd3g.errors import UserError
from dd3g.io.atomic import check_writable, remove_leftovers
from dd3g.picture.decoding import SUFFIXES
from dd3g.picture.framing import AUTO
from dd3g.picture.inputs import find_pictures
from dd3g.results import FORMATS, NO_ENCODER, Options, Request, are_there, write_results

DEFAULT_WEIGHTS = "nano"
MANY = 16  # passes for which it pays to warm a GPU up
# Names that mean a file, so that `-o lamp.obj` makes no folder of that name.
FILES = (
    *SUFFIXES,
    *".obj .gltf .stl .fbx .usdz .usd .usda .usdc .dae .3mf .ksplat .splatv .npz".split(),
    *".xyz .pts .pcd .las .laz .e57 .off .wrl .x3d .vrm .blend .npy .safetensors .ckpt".split(),
    *".html .htm .pdf .svg .csv .mp4 .webm .mov .avi .mkv .m4v .json .txt .zip .tar .gz .7z".split(),
)
TWO_STAGE = "distill.two_stage"  # of a higher floor, so it is only named


def run(
    inputs: list[str],
    request: Request,
    weights: str,
    device: str,
    progress: Progress,
    report: Report,
    recursive: bool = False,
    skip_existing: bool = False,
) -> None:
    """Convert every picture; a failure is reported and the others are still converted.

    Args:
        inputs: as `dd3g.picture.inputs.find_pictures` takes them.
        request: what to write.
        weights: as `Generator.from_pretrained` takes them.
        device: as `dd3g.nn.checkpoint.find_device` takes it.
        progress: counts pictures.
        report: filled as the work goes on: `{"pictures": [{"picture", "warnings", "seconds", "matte",
            "samples"}], "failed": [{"picture", "error"[, "files"]}], "skipped": [{"picture", "reason"}]}`.
        recursive: look into folders below folders.
        skip_existing: pass over pictures whose results are there.

    Raises:
        UserError: what stops the whole run: no pictures, a device that does not work, weights that cannot be
            loaded, an output folder that cannot be written.
    """
    from dd3g.picture import load_image

    listed = find_pictures(inputs, recursive)
    report["failed"] += listed.failed
    report["skipped"] += listed.skipped
    several = len(listed.found) > 1
    if several and request.stem is not None:
        raise UserError(f"-o names one file, but there are {len(listed.found)} pictures: give a folder")
    if several and request.mask is not None and not request.mask.is_dir():
        raise UserError("--mask FILE is for one picture: give a folder of masks named like the pictures")
    progress.phase("pictures", len(listed.found))
    generator = None
    for item in progress.each(listed.found):
        start = time.perf_counter()
        progress.at(item.name)
        stem = request.stem or item.stem
        try:
            if skip_existing and are_there(stem, request):
                report["skipped"].append({"picture": item.name, "reason": "its results exist"})
                continue
            mask = request.mask_of(item.name, Path(item.stem).parent)
            ratio = request.foreground_ratio
            picture = load_image(item.source, matte=request.matte, mask=mask, fill=ratio)
        except Exception as e:  # whatever it is, the other pictures still come out
            report["failed"].append(failure("picture", item.name, e, request.out, "--device cpu"))
            continue
        if generator is None:
            from dd3g.nn.checkpoint import find_device

            generator = load_generator(weights, str(find_device(device)))
            if len(listed.found) * request.samples >= MANY and (captured := generator.compiled().captured):
                progress.say(f"warmed up in {captured.seconds:.1f} s")
            check_writable(request.out)
            remove_leftovers(request.out)
        matte = str(request.out / f"{stem}.matte.png")
        entry: dict[str, Any] = {
            "picture": item.name,
            "warnings": list(picture.warnings),
            "matte": matte,
            "samples": [],
        }
        try:
            for sample in write_results(generator, picture, stem, request):
                if not entry["samples"]:
                    report["pictures"].append(entry)
                    if request.elevation == AUTO:
                        degrees = sample["elevation"]
                        side = "below" if degrees < 0 else "above"
                        progress.say(f"{item.name}: taken from about {abs(degrees)} degrees {side}")
                entry["samples"].append(sample)
                entry["seconds"] = round(time.perf_counter() - start, 3)
                webp = any(file.endswith(".turntable.webp") for file in sample["files"])
                if webp and len(report["pictures"]) == len(entry["samples"]) == 1:  # once is enough
                    entry["warnings"].append(NO_ENCODER)
        except Exception as e:
            report["failed"].append(failure("picture", item.name, e, request.out, "--device cpu"))


def _place(output: Path, formats: str | None) -> tuple[Path, str | None, tuple[str, ...]]:
    """What -o and --format say: the folder, the stem of the one file that -o names, and the formats."""
    given = None if formats is None else [f.strip().lower().lstrip(".") for f in formats.split(",")]
    if str(output) == "-":
        raise UserError("-o -: results are not written to standard output; name a file or a folder")
    name = "" if output.is_dir() else output.name
    if name.lstrip(".") in FORMATS and name.startswith("."):
        raise UserError(
            f"-o {output} is a suffix without a name: give a file such as lamp{name}, or a folder"
        )
    suffixes = sorted((f for f in FORMATS if name.lower().endswith(f".{f}") and name[: -len(f) - 1]), key=len)
    if not suffixes:
        if Path(name).suffix.lower() in FILES:
            raise UserError(
                f"-o {output}: dd3g does not write this format; use one of .{', .'.join(FORMATS)}"
            )
        return output, None, tuple(dict.fromkeys(given or ["ply"]))
    suffix = suffixes[-1]
    if not name.endswith(suffix):
        raise UserError(f"-o {output}: write its suffix in small letters")
    if suffix not in (given or [suffix]):
        raise UserError(f"-o {output} and --format {formats} differ: leave --format out, or give a folder")
    return output.parent, name[: -len(suffix) - 1], tuple(dict.fromkeys(given or [suffix]))


def load_generator(weights: str, device: str) -> Any:
    """What makes Gaussians of a picture: a generator, or for TEACHER+lgm a teacher and LGM.

    Raises:
        UserError: when nothing is found under that name.
    """
    if "+" in weights and not Path(weights).exists():
        try:
            two_stage = import_module(TWO_STAGE)
        except ModuleNotFoundError as error:
            raise UserError(
                f"--weights {weights}: a teacher and LGM are in the package distill, which is not installed: "
                "install the whole project"
            ) from error
        return two_stage.load_two_stage(weights, device)
    from dd3g.pepd import Generator

    return Generator.from_pretrained(weights, device=device)


def _last_line(report: Report, out: Path) -> str:
    files = [f for p in report["pictures"] for s in p["samples"] for f in s["files"]]
    files += [p["matte"] for p in report["pictures"]]
    if len(files) > 8:
        return f"wrote {len(files)} files for {len(report['pictures'])} pictures to {out}{os.sep}"
    return f"wrote {', '.join(files) if files else 'nothing'}"


@flattened
def infer(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE|FOLDER", help="Pictures of one object each; addresses; - for stdin."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Output folder, or the file for one result: lamp.ply.")
    ] = Path("out"),
    format: Annotated[
        str | None,
        typer.Option(help=f"One or more of {','.join(FORMATS)}; default: ply.", show_default=False),
    ] = None,
    options: Options = Options(),
    weights: Annotated[
        str, typer.Option(help="Shipped name, folder or hub id; TEACHER+lgm: slow.")
    ] = DEFAULT_WEIGHTS,
    device: Device = "auto",
    matte: Annotated[
        str,
        typer.Option(help="Cut-out: auto (alpha, else u2netp); a name (u2netp, or of rembg) forces a model."),
    ] = "auto",
    no_matte: Annotated[
        bool, typer.Option("--no-matte", help="Use the whole picture as the object.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search subfolders too.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip pictures whose results exist.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn pictures of objects into 3D Gaussians.

    Exit code 0: everything was written; 1: some of several pictures failed; 2: bad input, or no room.
    """
    report: Report = {"pictures": [], "failed": [], "skipped": []}

    def work(progress: Progress) -> None:
        if (options.mask is not None) + no_matte + (matte != "auto") > 1:
            raise UserError("--matte, --no-matte and --mask each say what the object is: give one of them")
        out, stem, formats = _place(output, format)
        cut = "none" if no_matte else matte
        request = Request(**vars(options), out=out, formats=formats, matte=cut, stem=stem)
        run(pictures, request, weights, device, progress, report, recursive, skip_existing)

    several = len(pictures) > 1 or os.path.isdir(pictures[0])
    conclude(work, "picture", several, as_json, lambda report: _last_line(report, output), report)


main = command_line(infer, "dd3g infer")

if __name__ == "__main__":
    sys.exit(main())
