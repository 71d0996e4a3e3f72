"""Scores of predicted views: per object, and their means over objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.geometry import surface_scores, visible_points
from distill.evaluation.learned import Metric
from distill.evaluation.metrics import alpha_fuzz, azimuth_distance, bootstrap_mean, psnr, view_metrics
from distill.evaluation.predictors import Drawing, Pictures, Prediction, Target
from distill.evaluation.protocol import Protocol
from distill.evaluation.targets import probe_cameras
from distill.pictures import on_white

BANDS = {f"{a}-{a + 30}": (a, a + 30) for a in range(0, 180, 30)} | {"60-120": (60, 120)}
# Pixels per side of what is measured as people see it: novel views by ST-LPIPS and alpha fuzz, the input view
FINE_VIEWS, FINE_INPUT = 128, 256
RIG = {"front": [0], "sides": [1, 3], "back": [2]}


def score(
    target: Target, drawing: Drawing, learned: Sequence[Metric] = (), truths: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One object: means over its novel views, by band, of the input view and of the rig.

    What people see is measured with more pixels where there are such renders, and named after their number:
    st_lpips_S and alpha_fuzz_S of the novel views (`FINE_VIEWS`), psnr_S of the input view (`FINE_INPUT`).

    Learned metrics are of the novel views; `truths` are their `true_features`.

    Returns:
        id, style, novel, bands, input, rig, and features: key of a metric of sets -> (V, D), novel views.
    """
    prediction = drawing(target, list(range(len(target.rgba))))
    values = view_metrics(prediction.rgb, prediction.alpha, target.rgba[prediction.views])
    place = {view: k for k, view in enumerate(prediction.views)}
    result: dict[str, Any] = {"id": target.id, "style": target.style}
    if novel := [v for v in target.novel if v in place]:
        fine = target.at(FINE_VIEWS) or target
        shown = _only(prediction, novel) if fine is target else drawing(fine, novel)
        found, result["features"] = _seen(fine, shown, learned, truths)
        result["novel"] = _means(values, [place[v] for v in novel]) | found
        bands = ((name, [place[v] for v in _within(target, novel, name)]) for name in BANDS)
        result["bands"] = {name: _means(values, chosen) for name, chosen in bands if chosen}
    if target.rig[0] in place:
        result["input"] = _means(values, [place[target.rig[0]]])
        if front := target.at(FINE_INPUT):
            rgb = drawing(front, front.rig[:1]).rgb
            result["input"][f"psnr_{front.size}"] = float(psnr(rgb, on_white(front.image[None])))
    if len(target.rig) == 4 and all(v in place for v in target.rig):
        result["rig"] = {name: _means(values, [place[target.rig[k]] for k in ks]) for name, ks in RIG.items()}
    return result


def _only(shown: Prediction, views: list[int]) -> Prediction:
    """Some of the predicted views."""
    chosen = [shown.views.index(v) for v in views]
    return Prediction(views, shown.rgb[chosen], None if shown.alpha is None else shown.alpha[chosen])


def _within(target: Target, views: list[int], band: str) -> list[int]:
    """Those of the views that lie in a band of azimuth, the last one with 180 degrees."""
    (low, high), distance = BANDS[band], azimuth_distance(target.azimuth)
    return [v for v in views if low <= distance[v] < high + (high == 180)]


def surface_score(target: Target, drawing: Drawing, protocol: Protocol) -> dict[str, float]:
    """The predicted surface against the true one, see `surface_scores`; none where either is unknown."""
    if target.surface is None or isinstance(drawing, Pictures):
        return {}
    # As far as anything may lie, and not only as far as the truth does.
    probes = probe_cameras(1.2 * float(target.surface[:, :3].norm(dim=1).max()))
    blank = torch.zeros(len(probes), 4, probes.width, probes.width)
    at = replace(target, rgba=blank, cameras=probes, finer=())
    shown = drawing(at, list(range(len(probes))))
    if shown.depth is None or shown.alpha is None:
        return {}
    points = visible_points(shown.depth, shown.alpha > 0.5, probes)
    unit = protocol.geometry_side / target.side
    return surface_scores(points, target.surface, unit, protocol.thresholds, protocol.geometry_alignment)


def true_features(target: Target, learned: Sequence[Metric]) -> dict[str, Any]:
    """Key of each metric -> its features of the true novel views, which every row needs."""
    fine = target.at(FINE_VIEWS) or target
    rgb = on_white(fine.rgba[target.novel])
    return {metric.key: metric.features(rgb) for metric in learned if fine.size >= metric.smallest}


def _seen(
    fine: Target, shown: Prediction, learned: Sequence[Metric], truths: Mapping[str, Any] | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Perceptual distances and haze of novel views, and features for metrics of sets."""
    result, sets = {}, {}
    for metric in learned:
        if fine.size < metric.smallest:
            continue
        features = metric.features(shown.rgb)
        if metric.compare is None:
            sets[metric.key] = features
            continue
        # Features of all true novel views serve a prediction of all of them only.
        whole = truths is not None and len(shown.views) == len(fine.novel)
        true = truths[metric.key] if truths and whole else metric.features(on_white(fine.rgba[shown.views]))
        result[f"{metric.key}_{fine.size}"] = float(metric.compare(features, true).mean())
    if shown.alpha is not None:
        fuzz = alpha_fuzz(shown.alpha, fine.rgba[shown.views, 3:])
        result[f"alpha_fuzz_{fine.size}"] = float(fuzz.double().nanmean())
    return result, sets


def _means(values: dict[str, Tensor], views: list[int]) -> dict[str, float]:
    return {name: float(v[views].double().nanmean()) for name, v in values.items()}


def summarise(scores: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means with intervals over objects: novel, by style, by band, input view and rig."""

    def block(rows: Sequence[dict[str, Any]], *path: str) -> dict[str, Any]:
        found = []
        for row in rows:
            for step in path:
                row = row.get(step, {})
            if row:
                found.append(row)
        names = dict.fromkeys(name for r in found for name in r)
        return {name: bootstrap_mean([r.get(name, math.nan) for r in found], seed) for name in names}

    styles = sorted({s["style"] for s in scores})
    seconds = [s["seconds"] for s in scores]
    peaks = [s["peak_mb"] for s in scores if s.get("peak_mb")]
    return {
        "objects": len(scores),
        "novel": block(scores, "novel"),
        "by_style": {style: block([s for s in scores if s["style"] == style], "novel") for style in styles},
        "bands": {band: block(scores, "bands", band) for band in BANDS},
        "input": block(scores, "input"),
        "rig": {name: block(scores, "rig", name) for name in RIG},
        "surface": block(scores, "surface"),
        "alignment": block(scores, "alignment"),
        "seeds": block(scores, "seeds"),
        "seconds_per_object": bootstrap_mean(seconds, seed),
        "latency": {f"p{q}": round(float(np.quantile(seconds, q / 100)), 5) for q in (50, 95)},
        "peak_mb": round(max(peaks), 1) if peaks else None,
    }


def compare_with_quadruples(generator: Any, folder: Path, limit: int, seed: int) -> dict[str, Any]:
    """A generator against the teacher's stored answers to the same noise.

    Returns:
        PSNR of views in front, at the sides and behind, where the rig has such, with intervals over
        quadruples, over white, or over the ground that a teacher without alpha draws; "other_noise" is the
        same with each quadruple's noise replaced by the next one's, which shows how much the generator uses
        it.
    """
    from dd3g.picture.loading import resize_rgba
    from dd3g.rasterizer import rasterize
    from distill.quadruples import Quadruples
    from distill.samples.datasets import front_camera

    quadruples = Quadruples(folder)
    count = min(limit or len(quadruples), len(quadruples))
    device = next(generator.parameters()).device
    kinds = ("same_noise", "other_noise")
    results: dict[str, dict[str, list[float]]] = {kind: {r: [] for r in RIG} for kind in kinds}
    for i in range(count):
        q = quadruples[i]
        truth = on_white(q.outputs)
        cameras, front = q.cameras.to(device), front_camera(q)[0].to(device)
        picture = resize_rgba(q.input, generator.config.size).to(device)
        away = q.cameras.azimuths.abs().rad2deg()
        views = {"front": away < 45, "sides": (away >= 45) & (away <= 135), "back": away > 135}
        ground = torch.ones(len(cameras), 3) if q.mattes is None else q.mattes.ground
        other = quadruples[(i + 1) % len(quadruples)].noise
        for name, noise in zip(kinds, (q.noise, other), strict=True):
            with torch.inference_mode():
                gaussians = generator(noise[None].to(device), cameras, picture[None], front=front)[0]
                render = rasterize(gaussians, cameras, background=0.0, antialiased=True)
            shown = render.rgb.cpu() + (1 - render.alpha.cpu()) * ground[..., None, None]
            values = psnr(shown.clamp(0, 1), truth)
            for view, those in views.items():
                if those.any():
                    results[name][view].append(float(values[those].mean()))
    return {
        "quadruples": count,
        **{name: {r: bootstrap_mean(v, seed) for r, v in rows.items()} for name, rows in results.items()},
    }
