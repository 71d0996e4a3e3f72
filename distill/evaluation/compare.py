"""Every row of an evaluation: baselines, a teacher and generators on the same objects."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from dd3g.command import check_writable
from dd3g.errors import UserError
from dd3g.io.atomic import replacing
from dd3g.machine import provenance
from dd3g.models import model_path
from dd3g.pepd import Generator
from dd3g.progress import track
from distill.evaluation.metrics import bootstrap_mean, on_white
from distill.evaluation.predictors import (
    Predictor,
    Target,
    all_white,
    flat_card,
    generator_predictor,
    mean_color_blob,
    teacher_predictor,
)
from distill.evaluation.report import write_csv, write_sheet
from distill.evaluation.scores import check_quadruples, compare_with_quadruples, score, summarise
from distill.evaluation.stlpips import STLPIPS
from distill.renders import RenderedObjects
from distill.teachers import load

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
    with tempfile.TemporaryDirectory() as folder:
        # A stage of its own: it hands over files, and this package knows nothing of meshes.
        command = [sys.executable, "-m", "data_gen", "render", str(source), "-o", folder, "--eval", "--json"]
        command += ["--size", str(size), "--limit", str(limit), "--processes", "1"]
        with Console(stderr=True).status("rendering the meshes"):
            done = subprocess.run(command, capture_output=True, text=True)
        if not done.stdout:
            last = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
            raise UserError(last or f"{source} was not rendered: the renderer was killed")
        return _targets(RenderedObjects(folder), 0), json.loads(done.stdout)["failed"]


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
    models = {label: Generator.from_pretrained(path, device=device) for label, path in generators.items()}
    rows: dict[str, Predictor] = {
        "all white": all_white, "flat card": flat_card, "mean-colour blob": mean_color_blob
    }  # fmt: skip
    if teacher is not None:
        loaded = load(teacher, device)
        rows["teacher"] = teacher_predictor(loaded, seed, teacher_steps, guidance_scale, device)
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

    scores: dict[str, list[dict[str, Any]]] = {label: [] for label in rows}
    for target in track(targets, "objects"):
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
            for label, model in track(list(models.items()), "generators against quadruples")
        }
    write_csv(output / "objects.csv", scores)
    if sheet_objects:
        shown = {label: predictor for label, predictor in rows.items() if label != "all white"}
        write_sheet(output / "sheet.png", targets, shown, sheet_objects)
    with replacing(output / "evaluation.json") as part:
        part.write_text(json.dumps(report, indent=1))
    return report
