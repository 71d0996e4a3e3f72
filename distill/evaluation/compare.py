"""Every row of an evaluation on the same objects, several at a time; a run that stopped goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dd3g
from dd3g.command import check_writable
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.atomic import replacing
from dd3g.machine import provenance
from dd3g.progress import Progress, track
from distill.evaluation.learned import frechet_distance, kernel_distance, load_metrics
from distill.evaluation.metrics import bootstrap_mean
from distill.evaluation.outside import parse_predictions
from distill.evaluation.page import save_page
from distill.evaluation.protocol import RULES, load_protocol
from distill.evaluation.report import Sheet, evenly, write_csv
from distill.evaluation.rows import Settings, labelled
from distill.evaluation.scores import (
    BANDS,
    FINE_INPUT,
    FINE_VIEWS,
    check_quadruples,
    compare_with_quadruples,
    summarise,
)
from distill.evaluation.statistics import paired_difference
from distill.evaluation.tables import save_tables
from distill.evaluation.targets import FoundTargets, Targets, open_targets
from distill.evaluation.work import Job, Work, from_png, unpacked

COMPARED = ("psnr", "ssim", "iou", "st_lpips", "lpips", "clip", "chamfer", "f_")  # of which rows are paired


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
    size: int = 0,
    limit: int = 0,
    seed: int = 0,
    device: str = "cpu",
    sheet_objects: int = 10,
    more_rows: Sequence[str] = (),
    protocol: str = "house",
    changes: Sequence[str] = (),
    layout: str = "auto",
    baselines: bool = True,
    seeds: int = 1,
    processes: int = 0,
    page: bool = True,
) -> dict[str, Any]:
    """Run every row, and write evaluation.json, objects.csv, tables, a page and sheets into `output`.

    What each object gives is stored in `output`/objects as soon as it is known: a run that was stopped goes
    on with the same command, and one with more rows computes only those.

    Args:
        source: a folder of a data set, or of renders in one or more sizes; see `open_targets`.
        output: folder for the results.
        generators: names or folders by label; each makes a row, and one of its raw splats.
        teacher: whose own views make a row.
        teacher_steps: DDIM steps.
        guidance_scale: of the teacher.
        quadruples: held-out ones, on whose noise generators are compared with the teacher.
        size: pixels a side of what is scored; 0: the protocol's.
        limit: only the first objects and quadruples; 0 for all.
        seed: of the noise and the bootstrap.
        device: of teacher and generators.
        sheet_objects: how many are drawn on sheets.
        more_rows: "KIND=VALUE" each, see `make_rows`.
        protocol: name or file.
        changes: "key=value" each, of the protocol; they change its hash.
        layout: of the data set.
        baselines: whether the rows without a network are there.
        seeds: noises each row is tried with; more than one adds diversity and best-of-K.
        processes: objects at a time; 0: as many as there are cores, one on a GPU or for few objects.
        page: write index.html.

    Raises:
        UserError: nothing to evaluate, unknown weights, a damaged shard, an output that cannot be written.
    """
    asked = load_protocol(protocol, list(changes))
    if size:
        asked = replace(asked, sizes=sorted({size, *(s for s in asked.sizes[1:] if s > size)}))
    rows = [*(["baseline"] if baselines else []), *([f"teacher={teacher}"] if teacher else []), *more_rows]
    rows += [f"generator={label}={path}" for label, path in generators.items()]
    if not rows:
        raise UserError("there is nothing to evaluate: give --generator, --predictions or --row")
    targets, failed = open_targets(source, asked, layout, limit)
    protocol_used = targets.protocol(asked)
    _check_predictions(rows, targets)
    settings = Settings(seed, device, teacher_steps, guidance_scale)
    about = provenance(device)
    on_sheet = frozenset(targets.ids[i] for i in evenly(len(targets), sheet_objects))
    sources = (source,) if isinstance(source, Path) else tuple(source)
    code = f"{dd3g.__version__} {about['commit']}"
    job = Job(sources, layout, limit, asked, tuple(rows), settings, seeds, output, page, on_sheet, code)
    work = Work(job)  # here too: what cannot be loaded is told before other processes start
    models = _quadruple_models(generators, quadruples, device)
    check_writable(output)
    results, first_size = [], asked.sizes[0] if isinstance(targets, FoundTargets) else targets[0].size
    for found in _results(job, work, len(targets), processes):
        if "failed" in found:
            failed[found["id"]] = found["failed"]
        else:
            results.append(found)
    if not results:
        raise UserError(f"no object could be drawn: {'; '.join(f'{k}: {v}' for k, v in failed.items())}")

    order = {id: k for k, id in enumerate(targets.ids)}
    results.sort(key=lambda found: order[found["id"]])
    scores: dict[str, list[dict[str, Any]]] = {}
    for found in results:
        for part in found["rows"].values():
            for label, row in part.items():
                scores.setdefault(label, []).append(row)
    objects = [{key: found[key] for key in ("id", "style", "hash")} for found in results]
    sizes = protocol_used.sizes
    report: dict[str, Any] = {
        **about,
        "protocol": {
            "name": protocol_used.name, "hash": protocol_used.hash, **asdict(protocol_used), "rules": RULES,
            "seed": seed, "seeds": seeds, "teacher_steps": teacher_steps, "guidance_scale": guidance_scale,
        },
        "objects_hash": fingerprint("\n".join(f"{o['id']} {o['hash']}" for o in objects)),
        "metrics": load_metrics(asked.metrics)[1],
        "data": {
            "source": " ".join(map(str, sources)),
            "layout": targets.found[0].layout.title if isinstance(targets, FoundTargets) else "renders",
            "objects": len(results),
            "size": first_size,
            "fine_size": FINE_VIEWS if FINE_VIEWS in sizes[1:] else first_size,
            "input_size": FINE_INPUT if FINE_INPUT in sizes[1:] else None,
            "novel_views": results[0]["novel"],
            "failed": failed,
            "processes": _processes(processes, device, len(targets)),
        },
        "generators": generators,
        "teacher": teacher,
        "rows": {label: summarise(s, seed) for label, s in scores.items()},
    }  # fmt: skip
    card = [s["novel"]["psnr"] for s in scores.get("flat card", ())]
    for label, found_scores in scores.items():
        if card and "novel" in found_scores[0]:
            gain = [s["novel"]["psnr"] - c for s, c in zip(found_scores, card, strict=True)]
            report["rows"][label]["psnr_over_flat_card"] = bootstrap_mean(gain, seed)
        report["rows"][label]["sets"] = _sets(results, found_scores)
    report["differences"] = differences(scores, seed)
    report["grouped_differences"] = grouped_differences(scores, seed)
    report["objects"] = objects
    report["per_object"] = {label: _columns(rows) for label, rows in scores.items()}
    if quadruples is not None:
        report["against_teacher"] = {
            label: compare_with_quadruples(model, quadruples, limit, seed)
            for label, model in track(list(models.items()), "generators against quadruples")
        }
    report["sheets"] = _sheets(results, output)
    write_csv(output / "objects.csv", scores)
    with replacing(output / "objects.txt") as part:
        part.write_text("".join(f"{o['id']} {o['hash']}\n" for o in objects))
    save_tables(report, output)
    if page:
        save_page(report, results, output / "index.html")
    with replacing(output / "evaluation.json") as part:
        part.write_text(json.dumps(report, indent=1))
    return report


def differences(scores: dict[str, list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Paired differences of every two rows, later minus earlier, by metric."""
    columns = {label: _columns(rows) for label, rows in scores.items() if "novel" in rows[0]}
    labels, found = list(columns), []
    for i, a in enumerate(labels):
        for b in labels[:i]:
            for metric in columns[a]:
                if metric in columns[b] and metric.startswith(COMPARED):
                    x, y = columns[a][metric], columns[b][metric]
                    found.append({"a": a, "b": b, "metric": metric, **paired_difference(x, y, seed)})
    return found


def grouped_differences(scores: dict[str, list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Paired differences in PSNR of every two rows by style and by band of azimuth, later minus earlier.

    Returns:
        a, b, group (a style, where there are several, or a band of degrees from the input), and what
        `paired_difference` gives.
    """
    shown = {label: rows for label, rows in scores.items() if "novel" in rows[0]}
    styles = sorted({row["style"] for rows in shown.values() for row in rows})

    def column(rows: list[dict[str, Any]], group: str) -> list[float | None]:
        if group in BANDS:
            return [row.get("bands", {}).get(group, {}).get("psnr") for row in rows]
        return [row["novel"]["psnr"] if row["style"] == group else None for row in rows]

    labels, found = list(shown), []
    for i, a in enumerate(labels):
        for b in labels[:i]:
            for group in [*(styles if len(styles) > 1 else []), *BANDS]:
                difference = paired_difference(column(shown[a], group), column(shown[b], group), seed)
                if difference["n"]:
                    found.append({"a": a, "b": b, "group": group, **difference})
    return found


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Metric -> its value of each object, None where there is none."""
    flat = [row.get("novel", {}) | row.get("surface", {}) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {
        name: [None if (v := row.get(name)) is None or np.isnan(v) else round(v, 6) for row in flat]
        for name in names
    }


def _sets(results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Distances of the set of a row's novel views from the set of true ones."""
    found = {}
    for key in rows[0].get("sets", {}):
        true = np.concatenate([unpacked(result["truth"][key]) for result in results])
        mine = np.concatenate([unpacked(row["sets"][key]) for row in rows])
        distance = kernel_distance if key == "kid" else frechet_distance
        found[key] = round(distance(mine, true), 5)
    return found


def _sheets(results: list[dict[str, Any]], output: Path) -> list[str]:
    sheet = Sheet(output)
    for found in results:
        if "tiles" in found:
            rows = {label: row for part in found["rows"].values() for label, row in part.items()}
            shown = {label: from_png(row["tiles"]) for label, row in rows.items() if "tiles" in row}
            sheet.add(found["id"], {"": from_png(found["tiles"])} | shown)
    sheet.finish()
    return [path.name for path in sheet.paths]


def _check_predictions(rows: Sequence[str], targets: Targets | FoundTargets) -> None:
    for words in rows:
        kind, _, value = words.partition("=")
        if kind == "predictions":
            parse_predictions(value).check(targets.ids)


def _quadruple_models(generators: dict[str, str], quadruples: Path | None, device: str) -> dict[str, Any]:
    if quadruples is None:
        return {}
    from dd3g.pepd import Generator

    models = {label: Generator.from_pretrained(path, device=device) for label, path in generators.items()}
    check_quadruples(models, quadruples)
    return models


def _processes(asked: int, device: str, objects: int) -> int:
    if asked:
        return min(asked, objects)
    # A worker takes some seconds to start, and one GPU is not faster in parts.
    return 1 if device != "cpu" or objects < 8 else min(os.cpu_count() or 1, objects)


def _results(job: Job, work: Work, count: int, processes: int) -> Iterator[dict[str, Any]]:
    """Results of all objects, in any order."""
    processes = _processes(processes, job.settings.device, count)
    with Progress() as progress:
        progress.phase("objects", count)
        if processes <= 1:
            for index in range(count):
                yield work(index)
                progress.advance()
            return
        spawn = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(processes, spawn, _start, (job, processes)) as pool:
                for future in as_completed([pool.submit(_do, index) for index in range(count)]):
                    yield future.result()
                    progress.advance()
        except BrokenProcessPool as error:
            raise UserError(
                "a process was killed, perhaps for lack of memory: run the same command again, with fewer "
                "--processes; what is finished is kept"
            ) from error


_work: Work  # of a worker process


def _start(job: Job, processes: int) -> None:
    import threading

    import numba

    threads = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    parent = multiprocessing.parent_process()

    def watch() -> None:  # no orphan when the parent is killed
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    global _work
    _work = Work(job)


def _do(index: int) -> dict[str, Any]:
    return _work(index)
