"""Differences of rows on the same objects, of one run or by `dd3g evaluate compare A.json B.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dd3g.command.run import Json, command_line
from dd3g.errors import UserError
from distill.evaluation.metrics import bootstrap_mean
from distill.evaluation.tables import HEADINGS, markdown

COMPARED = ("psnr", "ssim", "iou", "st_lpips", "lpips", "clip", "chamfer", "f_")  # of which rows are paired
DRAWS = 10_000


def paired_difference(
    a: Sequence[float | None], b: Sequence[float | None], seed: int = 0
) -> dict[str, float | int | None]:
    """Mean of a - b over objects with a 95 % bootstrap interval, and whether it could be chance.

    Both are of the same objects in the same order; pairs with a NaN or None are left out.

    Returns:
        mean, low, high and n as `bootstrap_mean`, and p: two-sided, of a sign-flip permutation test on the
        mean (exact up to 13 objects, 10,000 draws beyond); None without pairs.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    return bootstrap_mean(difference.tolist(), seed) | {"p": sign_flip_p(difference.tolist(), seed)}


def differences(
    columns: Mapping[str, Mapping[str, Sequence[float | None]]], name: str, seed: int = 0
) -> list[dict[str, Any]]:
    """Paired differences of every two rows of a table, later minus earlier.

    Args:
        columns: label of a row -> key -> one value an object.
        name: of the key in each result, beside the labels `a`, `b` and what `paired_difference` gives.
        seed: of the resamples.
    """
    labels = list(columns)
    return [
        {"a": a, "b": b, name: key, **paired_difference(columns[a][key], columns[b][key], seed)}
        for i, a in enumerate(labels)
        for b in labels[:i]
        for key in columns[a]
        if key in columns[b]
    ]


def sign_flip_p(difference: Sequence[float], seed: int = 0) -> float | None:
    """Share of sign patterns whose mean is at least as far from 0 as the one at hand."""
    x = np.asarray(difference, dtype=np.float64)
    if not len(x):
        return None
    # A little less than the mean at hand, so that rounding does not decide ties.
    bound = abs(x.mean()) * (1 - 1e-12)
    if len(x) <= 13:
        signs = np.array(list(product((1.0, -1.0), repeat=len(x))))
        return round(float((np.abs(signs @ x) / len(x) >= bound).mean()), 5)
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(DRAWS, len(x)))
    return round(float(((np.abs(signs @ x) / len(x) >= bound).sum() + 1) / (DRAWS + 1)), 5)


def compare_command(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS", help="evaluation.json of two or more runs, or their folders."),
    ],
    metric: Annotated[str, typer.Option(help="Metric whose paired differences are shown.")] = "psnr",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Put rows of several evaluations into one table, if they followed one protocol on the same objects."""
    reports = load_reports(results)
    joined = join(reports, [_name(path) for path in results])
    pairs = between(joined, metric, seed)
    if as_json:
        print(json.dumps({"rows": joined["rows"], "differences": pairs}))
        return
    print(markdown(joined))
    for d in pairs:
        p = "-" if d["p"] is None else f"{d['p']:.4f}"
        interval = f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        print(f"{d['a']} - {d['b']}: {metric} {interval}, p {p}, n {d['n']}")


def load_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reports that may share a table.

    Raises:
        UserError: a file that is none, or two whose protocols or objects differ.
    """
    if len(paths) < 2:
        raise UserError("give the evaluation.json of two runs or more")
    reports = [_load(path) for path in paths]
    first = reports[0]
    for path, report in zip(paths[1:], reports[1:], strict=True):
        a, b = first["protocol"], report["protocol"]
        if a["hash"] != b["hash"]:
            changed = [
                k for k in a if k in b and a[k] != b[k] and k not in ("hash", "rules", "about", "chosen")
            ]
            raise UserError(
                f"{paths[0]} follows protocol {a['name']} ({a['hash']}), {path} {b['name']} ({b['hash']}): "
                "their numbers do not compare (different: "
                f"{', '.join(changed) or 'the code of the metrics'}); evaluate both by one protocol"
            )
        if first["objects_hash"] != report["objects_hash"]:
            mine, theirs = ({(o["id"], o["hash"]) for o in r["objects"]} for r in (first, report))
            odd = sorted({id for id, _ in mine ^ theirs})
            raise UserError(
                f"{paths[0]} and {path} saw different objects ({len(mine)} and {len(theirs)}; different: "
                f"{', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}): evaluate both on the same"
            )
        for key in first["metrics"].keys() & report["metrics"].keys():
            nets = [(m["net"], m["weights"]) for r in (first, report) if "net" in (m := r["metrics"][key])]
            if len(set(nets)) > 1:
                raise UserError(
                    f"{paths[0]} measured {key} with {' '.join(nets[0])}, {path} with {' '.join(nets[1])}: "
                    "their numbers do not compare; evaluate both with the same weights"
                )
    return reports


def join(reports: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """One report with the rows of all; equal rows count once, others of one label get their run's name."""
    joined = reports[0] | {"rows": {}, "per_object": {}, "runs": {}}
    joined["metrics"] = {
        key: next((about for about in abouts if "missing" not in about), abouts[0])
        for key in reports[0]["metrics"]
        if (abouts := [r["metrics"][key] for r in reports])
    }
    for name, report in zip(names, reports, strict=True):
        for label, row in report["rows"].items():
            values = report["per_object"][label]
            others = [r["per_object"][label] for r in reports if label in r["rows"]]
            same = all(v == values for v in others)
            key = label if same else f"{label} ({name})"
            if key not in joined["rows"]:
                joined["rows"][key], joined["per_object"][key], joined["runs"][key] = row, values, name
    return joined


def between(joined: dict[str, Any], metric: str, seed: int) -> list[dict[str, Any]]:
    """Paired differences of each row to those of earlier runs.

    Raises:
        UserError: when no row has the metric.
    """
    columns = {k: {metric: v[metric]} for k, v in joined["per_object"].items() if metric in v}
    if not columns:
        there = sorted({m for v in joined["per_object"].values() for m in v if m.startswith(COMPARED)})
        raise UserError(
            f"no metric {metric!r} in these results: choose from {', '.join(there) or ', '.join(HEADINGS)}"
        )
    runs = joined["runs"]
    return [d for d in differences(columns, "metric", seed) if runs[d["a"]] != runs[d["b"]]]


def _load(path: Path) -> dict[str, Any]:
    file = path / "evaluation.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text("utf-8"))
        report["protocol"]["hash"], report["objects_hash"], report["per_object"]
        return report
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not an evaluation.json of this version ({error}): evaluate again"
        ) from error


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.parent.name if path.name == "evaluation.json" else path.stem


main = command_line(compare_command, "dd3g evaluate compare")
