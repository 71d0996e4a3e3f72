"""Every row of an evaluation: baselines, a teacher and generators on the same objects."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dd3g.command import check_writable
from dd3g.errors import UserError
from dd3g.io.atomic import replacing
from dd3g.machine import provenance
from dd3g.models import model_path
from dd3g.progress import track
from distill.evaluation.metrics import bootstrap_mean, on_white
from distill.evaluation.report import Sheet, evenly, write_csv
from distill.evaluation.rows import Settings, labelled, make_rows
from distill.evaluation.scores import (
    check_quadruples,
    compare_with_quadruples,
    fine_input,
    fine_views,
    score,
    summarise,
)
from distill.evaluation.stlpips import STLPIPS
from distill.evaluation.targets import opened

NOT_ON_SHEETS = ("all white", "flat card", "mean-colour blob", "true shape in our decoder")
PROTOCOL = {
    "novel": "free views only, the input view is never among them; mean over views, then over objects",
    "psnr": "dB of RGB over white, per view; Gaussians are drawn antialiased, as their low-pass asks for",
    "foreground": "fg_psnr and fg_ssim over pixels whose true alpha exceeds 0.5",
    "ssim": "Gaussian window 11 x 11, sigma 1.5, full picture over white without the window's margin",
    "iou": "of alpha > 0.5",
    "holes": "share of the true mask with predicted alpha < 0.5; holes_eroded: mask shrunk by one pixel",
    "leak": "mean predicted alpha outside the true mask",
    "color_error": "mean absolute difference of the foregrounds' mean colours",
    "st_lpips": "ST-LPIPS with AlexNet (shift-tolerant; not LPIPS); st_lpips_S: at S pixels a side",
    "alpha_fuzz": "pixels with .05 < alpha < .95 beyond one pixel of the true and the predicted edge "
    "(alpha 0.5), by those of the true mask",
    "input": "the input view; psnr_S is measured at S pixels a side",
    "picture": "generators get the input as fine as it was rendered and reduce it themselves",
    "raw": "the network's own splats; without it, the solid body that `dd3g infer` writes",
    "inflated silhouette": "no network: the mask inflated, the picture in front and mirrored behind",
    "true shape in our decoder": "hull of all true masks, coloured in the same way: the ceiling",
    "seconds": "to predict an object, before any view of it is drawn",
    "bands": "by distance in azimuth from the input, degrees, lower end included",
    "interval": "95 % percentile bootstrap over objects, 2000 resamples",
    "rig": "front, sides (90 and 270 degrees) and back views at the input's elevation",
}


def named(values: list[str]) -> dict[str, str]:
    """["A=path", "nano"] -> {"A": "path", "nano": "nano"}.

    Raises:
        UserError: when two share a label.
    """
    result: dict[str, str] = {}
    for value in values:
        label, path = labelled(value)
        if label in result:
            raise UserError(f"two generators are called {label!r}: give each its own LABEL=PATH")
        result[label] = path
    return result


def evaluate(
    source: Path | Sequence[Path],
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
    more_rows: Sequence[str] = (),
) -> dict[str, Any]:
    """Run every row and write evaluation.json, objects.csv and sheet.png into `output`.

    Args:
        source: meshes, or renders in one or more sizes; see `opened`.
        output: folder for the results.
        generators: names or folders by label; each makes a row, and one of its raw splats.
        teacher: whose own views make a row.
        teacher_steps: DDIM steps.
        guidance_scale: of the teacher.
        quadruples: held-out ones, on whose noise generators are compared with the teacher.
        size: pixels a side of the protocol, where meshes are rendered now.
        limit: only the first objects and quadruples; 0 for all.
        seed: of the noise and the bootstrap.
        device: of teacher and generators.
        sheet_objects: how many are drawn on sheets.
        more_rows: "KIND=VALUE" each, see `make_rows`.

    Raises:
        UserError: nothing to evaluate, unknown weights, a damaged shard, an output that cannot be written.
    """
    from dd3g.pepd import Generator

    settings = Settings(seed, device, teacher_steps, guidance_scale)
    asked = ["baseline", *([f"teacher={teacher}"] if teacher else ()), *more_rows]
    rows = make_rows([*asked, *(f"generator={label}={path}" for label, path in generators.items())], settings)
    with opened(source, size, limit) as (targets, failed):
        # Not when all is computed.
        check_writable(output)
        models = {}
        if quadruples is not None:
            models = {k: Generator.from_pretrained(path, device=device) for k, path in generators.items()}
            check_quadruples(models, quadruples)
        first = targets[0]
        weights = model_path("stlpips_alex")
        # Below 32 pixels nothing is left of the picture in its deepest layer.
        perceptual = STLPIPS(weights) if weights and fine_views(first).size >= 32 else None
        scores: dict[str, list[dict[str, Any]]] = {label: [] for label in rows}
        sheet, on_sheet = Sheet(output), set(evenly(len(targets), sheet_objects))
        for i, target in enumerate(track(targets, "objects")):
            fine = fine_views(target)
            truth = perceptual.features(on_white(fine.rgba[target.novel])) if perceptual else None
            drawings = {}
            for label, predictor in rows.items():
                start = time.perf_counter()
                with torch.inference_mode():
                    drawings[label] = predictor(target)
                seconds = time.perf_counter() - start
                found = score(target, drawings[label], perceptual, truth)
                scores[label].append(found | {"seconds": seconds})
            if i in on_sheet:
                sheet.add(target, {k: d for k, d in drawings.items() if k not in NOT_ON_SHEETS})
        sheet.finish()
    fine_input_size = fine_input(first)
    report: dict[str, Any] = {
        **provenance(device),
        "protocol": PROTOCOL
        | {"seed": seed, "teacher_steps": teacher_steps, "guidance_scale": guidance_scale},
        "perceptual": "ST-LPIPS (AlexNet)" if perceptual else None,
        "data": {
            "source": str(source) if isinstance(source, Path) else " ".join(map(str, source)),
            "objects": len(targets),
            "size": first.size,
            "fine_size": fine_views(first).size,
            "input_size": fine_input_size.size if fine_input_size else None,
            "novel_views": len(first.novel),
            "failed": failed,
        },
        "sheets": [path.name for path in sheet.paths],
        "generators": generators,
        "teacher": teacher,
        "rows": {label: summarise(s, seed) for label, s in scores.items()},
    }
    card = [s["novel"]["psnr"] for s in scores["flat card"]]
    for label, found_scores in scores.items():
        if "novel" in found_scores[0]:
            gain = [s["novel"]["psnr"] - c for s, c in zip(found_scores, card, strict=True)]
            report["rows"][label]["psnr_over_flat_card"] = bootstrap_mean(gain, seed)
    if quadruples is not None:
        report["against_teacher"] = {
            label: compare_with_quadruples(model, quadruples, limit, seed)
            for label, model in track(list(models.items()), "generators against quadruples")
        }
    write_csv(output / "objects.csv", scores)
    with replacing(output / "evaluation.json") as part:
        part.write_text(json.dumps(report, indent=1))
    return report
