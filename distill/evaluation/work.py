"""One object of an evaluation: every row of it predicted, drawn, scored, and stored in one file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dd3g.errors import UserError, first_line
from dd3g.fingerprint import fingerprint
from dd3g.io.atomic import write_text
from distill.evaluation.geometry import find_move, moved
from distill.evaluation.learned import Metric, load_metrics
from distill.evaluation.metrics import psnr
from distill.evaluation.outside import parse_predictions
from distill.evaluation.packing import (
    NOT_ON_SHEETS,
    evenly,
    packed,
    png,
    save_input,
    sheet_tiles,
    strip,
    titled_tiles,
    true_tiles,
    turn,
)
from distill.evaluation.predictors import Drawing, Pictures, Predictor, Target
from distill.evaluation.protocol import Evaluation, load_protocol
from distill.evaluation.rows import make_rows
from distill.evaluation.scores import score, surface_score, true_features
from distill.evaluation.targets import Targets, open_targets
from distill.pictures import on_white


@dataclass
class Work:
    """Rows and metrics loaded once, then applied to one object after another."""

    source: Sequence[Path]  # folders, see `open_targets`
    options: Evaluation  # of the command
    output: Path  # folder of the evaluation
    code: str  # version and commit of this program

    def __post_init__(self) -> None:
        o, place = self.options, torch.device(self.options.device)
        if place.type == "cuda" and place.index is not None:
            torch.cuda.set_device(place)  # time and memory are measured there
        self.protocol = load_protocol(o.protocol, o.changes, o.size)
        rows = o.rows  # which may be none: known before the data are looked through
        self.targets, self.failed = open_targets(self.source, self.protocol, o.layout, o.limit)
        ids = self.targets.ids
        self.on_sheet = {ids[i] for i in evenly(len(ids), o.sheet_objects)}
        self.metrics, self.about_metrics = load_metrics(self.protocol.metrics)
        self.rows = make_rows(rows, o)
        self._others = [make_rows(rows, replace(o, seed=o.seed + k)) for k in range(1, o.seeds)]
        self._warm: set[str] = set()

    def stamp(self, words: str, id: str, data: str) -> str:
        """What must be the same for a stored row to be of use; `data` describes the object's files."""
        o = self.options
        rest = (*self.source, o.layout, o.seed, o.device, o.teacher_steps, o.guidance_scale, o.seeds, o.page)
        metrics = json.dumps(self.about_metrics, sort_keys=True)  # whose weights may have come or changed
        parts = (words, id, self.protocol.hash, metrics, *rest, id in self.on_sheet, self.code, data)
        return fingerprint("\n".join(map(str, (*parts, _listed(_read_by(words, id))))))

    def __call__(self, index: int) -> dict[str, Any]:
        """Results of one object: from its file where they are of this work, computed and stored otherwise."""
        id, data = self.targets.ids[index], _listed(self.targets.files(index))
        path = self.output / "objects" / f"{id.replace('/', '-')}.json"
        stamps = {words: self.stamp(words, id, data) for words in self.rows}
        stored = _stored(path)
        have = {words: part for words in self.rows if (part := stored["rows"].get(stamps[words]))}
        if len(have) == len(self.rows):
            return stored | {"rows": have, "new": False}
        try:
            target = self.targets[index]
        except Exception as error:  # a stranger's mesh can make a loader fail in any way
            if isinstance(error, UserError) and isinstance(self.targets, Targets):
                raise  # a damaged shard holds more than this object
            return {"id": id, "failed": first_line(error)}
        expected = self.protocol.pinned().get(id) or target.hash
        if expected != target.hash:
            raise UserError(
                f"{id} is not the object that the protocol means: its hash is {target.hash}, not {expected}; "
                "the file is another version, or was converted"
            )
        if stored.get("hash") != target.hash:
            stored, have = {"rows": {}}, {}
        truths = true_features(target, self.metrics)
        stored |= {"id": id, "style": target.style, "hash": target.hash, "novel": len(target.novel)}
        stored["truth"] = {
            m.key: packed(truths[m.key]) for m in self.metrics if m.compare is None and m.key in truths
        }
        save_input(target, self.output / "inputs", path.stem)
        if id in self.on_sheet:
            stored["tiles"] = png(titled_tiles(target))
        if self.options.page:
            stored["strip"] = strip(true_tiles(target))
        for words, rows in self.rows.items():
            if words not in have:
                have[words] = {label: self._row(words, label, target, truths) for label in rows}
                stored["rows"][stamps[words]] = have[words]
                path.parent.mkdir(parents=True, exist_ok=True)
                # After each row: one that is slow should not be repeated because of another.
                write_text(path, json.dumps(stored))
        return stored | {"rows": have, "new": True}

    def _row(self, words: str, label: str, target: Target, truths: dict[str, Any]) -> dict[str, Any]:
        predictor, options = self.rows[words][label], self.options
        if label not in self._warm:  # compiling and first touches are not latency
            self._warm.add(label)
            _predicted(predictor, target)
        peak, start = peak_memory(options.device), time.perf_counter()
        drawing = _predicted(predictor, target)
        seconds, megabytes = time.perf_counter() - start, peak()
        drawing, alignment = self._aligned(label, drawing, target)
        result = score(target, drawing, self.metrics, truths)
        result |= {"seconds": seconds, "peak_mb": megabytes, "alignment": alignment}
        if self.protocol.geometry:
            result["surface"] = surface_score(target, drawing, self.protocol)
        if self._others:
            more = (_predicted(rows[words][label], target) for rows in self._others)
            others = [self._aligned(label, other, target)[0] for other in more]
            result["seeds"] = seed_scores(target, [drawing, *others], self.metrics)
        features = result.pop("features", {})
        result["sets"] = {key: packed(value) for key, value in features.items()}
        if target.id in self.on_sheet and label not in NOT_ON_SHEETS:
            result["tiles"] = png(sheet_tiles(target, drawing))
        if options.page:
            result["strip"] = strip(sheet_tiles(replace(target, finer=()), drawing))
            result["turn"] = turn(target, drawing)
        return result

    def _aligned(self, label: str, drawing: Drawing, target: Target) -> tuple[Drawing, dict[str, float]]:
        if self.protocol.alignment == "none":
            return drawing, {}
        if isinstance(drawing, Pictures):
            raise UserError(
                f"{label} consists of pictures, which cannot be moved in space, but the protocol aligns "
                "every row: leave the row out, or give --set alignment=none for all rows"
            )
        move = find_move(drawing, target)
        shift = float(move.shift.norm())
        found = {"scale": move.scale, "shift": shift, "residual": move.residual}
        return moved(drawing, move.scale, move.shift), found


def seed_scores(target: Target, drawings: Sequence[Drawing], metrics: Sequence[Metric]) -> dict[str, float]:
    """What several noises give: how different, how good on average, and how good the best of them.

    Returns:
        psnr_mean and psnr_best of the novel views over seeds; psnr_apart, mean PSNR between two seeds (higher
        is less diverse); K_diversity for each metric K with a comparison, its mean between two seeds.
    """
    shown = [drawing(target, target.novel) for drawing in drawings]
    true = on_white(target.rgba[target.novel])
    values = [float(psnr(s.rgb, true).mean()) for s in shown if len(s.views) == len(target.novel)]
    if len(values) < 2:
        return {}
    pairs = [(a, b) for i, a in enumerate(shown) for b in shown[:i]]
    result = {
        "psnr_mean": float(np.mean(values)),
        "psnr_best": max(values),
        "psnr_apart": float(np.mean([float(psnr(a.rgb, b.rgb).mean()) for a, b in pairs])),
    }
    for metric in metrics:
        if metric.compare is not None and target.size >= metric.smallest:
            result[f"{metric.key}_diversity"] = metric.apart([s.rgb for s in shown])
    return result


def peak_memory(device: str) -> Callable[[], float | None]:
    """Begin to watch the highest memory: the device's on CUDA, else this process's, where Linux reports it.

    Returns:
        a function that gives it in MB, None where it is unknown.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return lambda: torch.cuda.max_memory_allocated() / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    except OSError:
        return lambda: None

    def resident() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM"))

    return resident


def _predicted(predictor: Predictor, target: Target) -> Drawing:
    with torch.inference_mode():
        drawing = predictor(target)
    if torch.cuda.is_initialized():  # by a network; that of a GPU which no row uses takes its memory
        torch.cuda.synchronize()
    return drawing


def _stored(path: Path) -> dict[str, Any]:
    """Results of an earlier run; a file that was torn counts as none."""
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found.get("rows"), dict) else {"rows": {}}
    except (OSError, ValueError, AttributeError):
        return {"rows": {}}


def _read_by(words: str, id: str) -> list[Path]:
    """Files that a row reads to predict an object, so that changed ones are not taken for the old ones."""
    from dd3g.nn.checkpoint import SHIPPED
    from dd3g.pepd.elevation import SHIPPED as ESTIMATOR

    kind, _, value = words.partition("=")
    if kind == "predictions":
        place = parse_predictions(value).find(id)
        return [] if place is None else _files_of(place)
    found = _files_of(SHIPPED / ESTIMATOR) if kind == "elevation" else []
    for name in (value.partition("=")[2] or value).split("+"):  # LABEL=PATH, or TEACHER+LGM
        places = (path for path in (Path(name), SHIPPED / name) if name not in ("", ".") and path.exists())
        if place := next(places, None):
            found += _files_of(place)
    return found


def _files_of(place: Path) -> list[Path]:
    return sorted(p for p in (place.rglob("*") if place.is_dir() else [place]) if p.is_file())


def _listed(files: Sequence[Path]) -> str:
    """Names, sizes and times of files."""
    about = [(path, path.stat()) for path in files]
    return "\n".join(f"{path} {s.st_size} {s.st_mtime_ns}" for path, s in about)
