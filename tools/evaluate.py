"""How good is a generator: `python -m tools.evaluate OBJECTS --generator nano --output out/evaluation`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from data_gen.meshes.objects import Options
from dd3g.command import check_writable, run_command
from dd3g.errors import UserError
from dd3g.io.atomic import replacing
from distill.renders import RenderedObjects
from tools.metrics import bootstrap_mean, on_white
from tools.predictors import (
    Predictor,
    Target,
    all_white,
    flat_card,
    generator_predictor,
    mean_color_blob,
    teacher_predictor,
)
from tools.report import print_table, provenance, write_csv, write_sheet
from tools.scores import check_quadruples, compare_with_quadruples, score, summarise

PROTOCOL = {
    "novel": "free views only, the input view is never among them; mean over views, then over objects",
    "psnr": "dB of RGB over white, per view; Gaussians are drawn antialiased, as their low-pass asks for",
    "foreground": "fg_psnr and fg_ssim over pixels whose true alpha exceeds 0.5",
    "ssim": "Gaussian window 11 x 11, sigma 1.5, full picture over white without the window's margin",
    "iou": "of alpha > 0.5",
    "holes": "share of the true mask with predicted alpha < 0.5; holes_eroded: mask shrunk by one pixel",
    "leak": "mean predicted alpha outside the true mask",
    "color_error": "mean absolute difference of the foregrounds' mean colours",
    "st_lpips": "ST-LPIPS with AlexNet (shift-tolerant; not LPIPS)",
    "bands": "by distance in azimuth from the input, degrees, lower end included",
    "interval": "95 % percentile bootstrap over objects, 2000 resamples",
    "rig": "front, sides (90 and 270 degrees) and back views at the input's elevation",
}


def load_targets(source: Path, size: int, limit: int) -> tuple[list[Target], dict[str, str]]:
    """Shards as they are, or meshes rendered now with the evaluation views.

    Returns:
        targets, and reasons of the meshes that could not be drawn by key.
    """
    if next(source.glob("*.tar"), None) or source.suffix == ".tar":
        return _targets(RenderedObjects(source), limit), {}
    from tools.render_objects import render_folder

    with tempfile.TemporaryDirectory() as folder:
        summary = render_folder(source, Path(folder), Options(size=size, eval=True), limit=limit)
        return _targets(RenderedObjects(folder), 0), summary["failed"]


def _targets(objects: RenderedObjects, limit: int) -> list[Target]:
    """The plain variant of every object."""
    plain = [i for i in range(len(objects)) if objects.meta(i).get("variant", 0) == 0]
    if not plain:
        raise UserError("there is no plain variant (variant 0) among these renders: render them with --eval")
    return [Target.of(objects[i]) for i in plain[: limit or None]]


def named(values: list[str]) -> dict[str, str]:
    """["A=path", "nano"] -> {"A": "path", "nano": "nano"}.

    Raises:
        UserError: when two share a label.
    """
    result: dict[str, str] = {}
    for value in values:
        label, _, path = value.partition("=")
        if label in result:
            raise UserError(f"two generators are called {label!r}: give each its own LABEL=PATH")
        result[label] = path or value
    return result


def evaluate(
    source: Path,
    output: Path,
    generators: dict[str, str],
    teacher: str | None = None,
    teacher_steps: int | None = None,
    guidance_scale: float | None = None,
    quadruples: Path | None = None,
    size: int = 64,
    limit: int = 0,
    seed: int = 0,
    device: str = "cpu",
    sheet_objects: int = 10,
) -> dict[str, Any]:
    """Run every row and write evaluation.json, objects.csv and sheet.png into `output`.

    Raises:
        UserError: nothing to evaluate, unknown weights, a damaged shard, an output that cannot be written.
    """
    from rich.console import Console
    from rich.progress import track

    from dd3g.models import model_path
    from tools.stlpips import STLPIPS

    models: dict[str, Any] = {}
    if generators:
        from dd3g.pepd import Generator

        models = {label: Generator.from_pretrained(path, device=device) for label, path in generators.items()}
    rows: dict[str, Predictor] = {
        "all white": all_white, "flat card": flat_card, "mean-colour blob": mean_color_blob
    }  # fmt: skip
    if teacher is not None:
        from distill.teachers import load

        rows["teacher"] = teacher_predictor(
            load(teacher, device), seed, teacher_steps, guidance_scale, device
        )
    for label, model in models.items():
        if label in rows:
            raise UserError(f"{label!r} is the name of another row: give the generator its own LABEL=PATH")
        rows[label] = generator_predictor(model, seed)
    targets, failed = load_targets(source, size, limit)
    # Not when all is computed.
    check_writable(output)
    if quadruples is not None:
        check_quadruples(models, quadruples)
    weights = model_path("stlpips_alex")
    # Below 32 pixels nothing is left of the picture in its deepest layer.
    perceptual = STLPIPS(weights) if weights and targets[0].image.shape[-1] >= 32 else None

    console = Console(stderr=True)
    scores: dict[str, list[dict[str, Any]]] = {label: [] for label in rows}
    for target in track(targets, "evaluate", console=console, transient=True):
        truth = perceptual.features(on_white(target.rgba[target.novel])) if perceptual else None
        for label, predictor in rows.items():
            scores[label].append(score(target, predictor, perceptual, truth))
    report: dict[str, Any] = {
        **provenance(device),
        "protocol": PROTOCOL
        | {"seed": seed, "teacher_steps": teacher_steps, "guidance_scale": guidance_scale},
        "perceptual": "ST-LPIPS (AlexNet)" if perceptual else None,
        "data": {
            "source": str(source),
            "objects": len(targets),
            "size": targets[0].rgba.shape[-1],
            "novel_views": len(targets[0].novel),
            "failed": failed,
        },
        "generators": generators,
        "teacher": teacher,
        "rows": {label: summarise(s, seed) for label, s in scores.items()},
    }
    card = [s["novel"]["psnr"] for s in scores["flat card"]]
    for label, found in scores.items():
        if "novel" in found[0]:
            gain = [s["novel"]["psnr"] - c for s, c in zip(found, card, strict=True)]
            report["rows"][label]["psnr_over_flat_card"] = bootstrap_mean(gain, seed)
    if quadruples is not None:
        report["against_teacher"] = {
            label: compare_with_quadruples(model, quadruples, limit, seed)
            for label, model in track(models.items(), "quadruples", console=console, transient=True)
        }
    write_csv(output / "objects.csv", scores)
    if sheet_objects:
        shown = {label: predictor for label, predictor in rows.items() if label != "all white"}
        write_sheet(output / "sheet.png", targets, shown, sheet_objects)
    with replacing(output / "evaluation.json") as part:
        part.write_text(json.dumps(report, indent=1))
    return report


def main(
    source: Annotated[
        Path, typer.Argument(help="Folder of meshes, or of shards from tools/render_objects.py.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "out/evaluation"
    ),
    generator: Annotated[
        list[str] | None, typer.Option(help="LABEL=NAME_OR_FOLDER, or just the name; may be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher whose own views make a row.")] = None,
    teacher_steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps; default: the teacher's.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the teacher's.")] = None,
    quadruples: Annotated[
        Path | None,
        typer.Option(help="Held-out quadruples: generators against the teacher on the same noise."),
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side, when meshes are rendered now.")] = 64,
    limit: Annotated[int, typer.Option(min=0, help="Only the first objects (and quadruples); 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and the bootstrap.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    sheet_objects: Annotated[
        int, typer.Option(min=0, help="Objects on the picture sheet; 0: no sheet.")
    ] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON instead of tables.")
    ] = False,
) -> None:
    """Compare generators, a teacher and simple baselines with the true views of objects."""
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    if device != "cpu" and not (cuda and device.startswith("cuda")):
        raise UserError(f"device {device!r} is not on this machine: use --device cpu")
    report = evaluate(
        source, output, named(generator or []), teacher, teacher_steps, guidance_scale, quadruples,
        size, limit, seed, device, sheet_objects,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        print_table(report)
        print(f"wrote evaluation.json, objects.csv{' and sheet.png' if sheet_objects else ''} to {output}")
    if report["data"]["failed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.evaluate"))
