"""Every row of an evaluation on the same objects, several at a time; a run that stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dd3g
from dd3g.command.progress import Progress, track
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.atomic import check_writable, only_user, write_text
from dd3g.machine import provenance
from dd3g.processes import map_in_processes, usable_cores
from distill.evaluation.learned import frechet_distance, kernel_distance
from distill.evaluation.metrics import bootstrap_mean
from distill.evaluation.outside import Predictions
from distill.evaluation.packing import from_png, save_sheets, unpacked
from distill.evaluation.paired import COMPARED, differences
from distill.evaluation.protocol import RULES, Evaluation
from distill.evaluation.scores import BANDS, FINE_INPUT, FINE_VIEWS, compare_with_quadruples, summarise
from distill.evaluation.tables import latex, markdown, save_page, write_csv
from distill.evaluation.work import Work


def evaluate(source: Path | Sequence[Path], output: Path, options: Evaluation) -> dict[str, Any]:
    """Run every row, and write evaluation.json, objects.csv, tables, a page and sheets into `output`.

    What each object gives is stored in `output`/objects as soon as it is known: a run that was stopped goes
    on with the same command, and one with more rows computes only those.

    The source is a folder of a data set, or of renders in one or more sizes; see `open_targets`.

    Raises:
        UserError: nothing to evaluate, unknown weights, a damaged shard, an output that cannot be written.
    """
    o, about = options, provenance(options.device)
    sources = [source] if isinstance(source, Path) else list(source)
    begin = partial(Work, sources, o, output, f"{dd3g.__version__} {about['commit']}")
    work = begin()  # here too: what cannot be loaded is reported before other processes start
    for predictor in (p for rows in work.rows.values() for p in rows.values()):
        if isinstance(predictor, Predictions):
            predictor.check(work.targets.ids)
    models = _quadruple_models(o)
    check_writable(output)
    processes = _processes(o, len(work.targets))
    with only_user(output):
        found = list(_results(begin, work, processes))
    failed = work.failed | {one["id"]: one["failed"] for one in found if "failed" in one}
    results = [one for one in found if "failed" not in one]
    if not results:
        raise UserError(f"no object could be drawn: {'; '.join(f'{k}: {v}' for k, v in failed.items())}")
    scores: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        for label, row in _by_label(one).items():
            scores.setdefault(label, []).append(row)

    report = about | _described(work, results) | _compared(results, scores, o.seed)
    report["data"] |= {"failed": failed, "processes": processes}
    sheets = save_sheets(output, _on_sheets(results))
    report |= {"generators": o.generators, "teacher": o.teacher, "sheets": [sheet.name for sheet in sheets]}
    if o.quadruples is not None:
        report["against_teacher"] = {
            label: compare_with_quadruples(model, o.quadruples, o.limit, o.seed)
            for label, model in track(list(models.items()), "generators against quadruples")
        }
    write_csv(output / "objects.csv", scores)
    write_text(output / "objects.txt", "".join(f"{one['id']} {one['hash']}\n" for one in results))
    write_text(output / "table.md", markdown(report))
    write_text(output / "table.tex", latex(report))
    if o.page:
        save_page(report, results, output / "index.html")
    write_text(output / "evaluation.json", json.dumps(report, indent=1))
    return report


def _by_label(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of one object."""
    return {label: row for part in result["rows"].values() for label, row in part.items()}


def _described(work: Work, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Protocol, metrics and objects of a report."""
    o, used = work.options, work.targets.protocol(work.protocol)
    first_size = used.sizes[0]
    objects = [{key: result[key] for key in ("id", "style", "hash")} for result in results]
    return {
        "protocol": {
            "name": used.name, "hash": used.hash, **asdict(used), "rules": RULES, "seed": o.seed,
            "seeds": o.seeds, "teacher_steps": o.teacher_steps, "guidance_scale": o.guidance_scale,
        },
        "objects": objects,
        "objects_hash": fingerprint("\n".join(f"{one['id']} {one['hash']}" for one in objects)),
        "metrics": work.about_metrics,
        "data": {
            "source": " ".join(map(str, work.source)),
            "layout": work.targets.layout,
            "objects": len(results),
            "size": first_size,
            "fine_size": FINE_VIEWS if FINE_VIEWS in used.sizes[1:] else first_size,
            "input_size": FINE_INPUT if FINE_INPUT in used.sizes[1:] else None,
            "novel_views": results[0]["novel"],
        },
    }  # fmt: skip


def _compared(
    results: list[dict[str, Any]], scores: dict[str, list[dict[str, Any]]], seed: int
) -> dict[str, Any]:
    """Means of each row, and differences between rows."""
    rows = {label: summarise(of_row, seed) for label, of_row in scores.items()}
    card = [s["novel"]["psnr"] for s in scores.get("flat card", ())]
    for label, of_row in scores.items():
        if card and "novel" in of_row[0]:
            gain = [s["novel"]["psnr"] - c for s, c in zip(of_row, card, strict=True)]
            rows[label]["psnr_over_flat_card"] = bootstrap_mean(gain, seed)
        rows[label]["sets"] = _sets(results, of_row)
    columns = {label: _columns(of_row) for label, of_row in scores.items()}
    paired = {
        label: {metric: values for metric, values in found.items() if metric.startswith(COMPARED)}
        for label, found in columns.items()
        if "novel" in scores[label][0]
    }
    return {
        "rows": rows,
        "differences": differences(paired, "metric", seed),
        "grouped_differences": grouped_differences(scores, seed),
        "per_object": columns,
    }


def grouped_differences(scores: dict[str, list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Paired differences in PSNR of every two rows by style and by band of azimuth, later minus earlier.

    Returns:
        as `differences`, for every `group` that both have: a style, where there are several, or a band of
        degrees from the input.
    """
    shown = {label: rows for label, rows in scores.items() if "novel" in rows[0]}
    styles = sorted({row["style"] for rows in shown.values() for row in rows})

    def column(rows: list[dict[str, Any]], group: str) -> list[float | None]:
        if group in BANDS:
            return [row.get("bands", {}).get(group, {}).get("psnr") for row in rows]
        return [row["novel"]["psnr"] if row["style"] == group else None for row in rows]

    groups = [*(styles if len(styles) > 1 else []), *BANDS]
    columns = {label: {group: column(rows, group) for group in groups} for label, rows in shown.items()}
    return [found for found in differences(columns, "group", seed) if found["n"]]


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Metric -> its value of each object, None where there is none."""
    flat = [row.get("novel", {}) | row.get("surface", {}) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {
        name: [None if (v := row.get(name)) is None or np.isnan(v) else round(v, 6) for row in flat]
        for name in names
    }


def _sets(results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Distances of the set of a row's novel views from the set of true ones; None of a single view."""
    found: dict[str, float | None] = {}
    for key in rows[0].get("sets", {}):
        true = np.concatenate([unpacked(result["truth"][key]) for result in results])
        mine = np.concatenate([unpacked(row["sets"][key]) for row in rows])
        distance = kernel_distance if key == "kid" else frechet_distance
        found[key] = round(distance(mine, true), 5) if min(len(mine), len(true)) > 1 else None
    return found


def _on_sheets(results: list[dict[str, Any]]) -> Iterator[list[tuple[str, Tensor]]]:
    """What sheets show of each object, see `save_sheets`."""
    for found in results:
        if "tiles" in found:
            rows = _by_label(found).items()
            tiles = [(label, from_png(row["tiles"])) for label, row in rows if "tiles" in row]
            yield [(found["id"], from_png(found["tiles"])), *tiles]


def _quadruple_models(options: Evaluation) -> dict[str, Any]:
    """Generators that are compared with quadruples, by label; refused when they take other noise."""
    if options.quadruples is None:
        return {}
    from dd3g.pepd import Generator
    from distill.quadruples import Quadruples

    shape, models = tuple(Quadruples(options.quadruples)[0].noise.shape), {}
    for label, path in options.generators.items():
        models[label] = Generator.from_pretrained(path, device=options.device)
        wanted = tuple(models[label].config.latent_shape)
        if shape != wanted:
            raise UserError(
                f"{options.quadruples} holds noise of {shape}, and {label} takes {wanted}: give quadruples "
                "of its teacher"
            )
    return models


def _processes(options: Evaluation, objects: int) -> int:
    if options.processes:
        return min(options.processes, objects)
    # A worker takes some seconds to start, and one GPU is not faster in parts.
    return 1 if options.device != "cpu" or objects < 8 else min(usable_cores(), objects)


def _results(begin: Callable[[], Work], work: Work, processes: int) -> Iterator[dict[str, Any]]:
    """Results of all objects."""
    indices = range(len(work.targets))
    found: Iterator[dict[str, Any]] = map(work, indices)
    if processes > 1:
        found = map_in_processes(_do, indices, processes, partial(_start, begin, processes))
    with Progress(total=len(indices), name="objects") as progress:
        yield from progress.each(found)


_work: Work  # of a worker process


def _start(begin: Callable[[], Work], processes: int) -> None:
    import numba

    threads = max(1, usable_cores() // processes)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    global _work
    _work = begin()


def _do(index: int) -> dict[str, Any]:
    return _work(index)
