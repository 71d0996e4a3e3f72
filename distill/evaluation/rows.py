"""The rows of an evaluation: words of the command line become predictors.

To add a kind of row, write a function like those below and give it a line in `KINDS`: then
`dd3g evaluate OBJECTS --row KIND=VALUE` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.pepd.elevation import estimated_elevation
from distill.evaluation.outside import parse_predictions
from distill.evaluation.predictors import (
    Drawing,
    Pictures,
    Prediction,
    Predictor,
    Target,
    all_white,
    drawing_of,
    flat_card,
    inflated_silhouette_row,
    mean_color_blob,
    true_shape,
)
from distill.evaluation.protocol import Evaluation, labelled
from distill.evaluation.targets import frame
from distill.pictures import on_white

if TYPE_CHECKING:
    from dd3g.pepd import Generator


BASELINES: dict[str, Predictor] = {
    "all white": all_white,
    "flat card": flat_card,
    "mean-colour blob": mean_color_blob,
    "inflated silhouette": inflated_silhouette_row,
    "true shape in our decoder": true_shape,
}


def baseline_rows(value: str, options: Evaluation) -> dict[str, Predictor]:
    """One of `BASELINES`, or all of them for an empty value."""
    if value and value not in BASELINES:
        raise UserError(f"no baseline {value!r}: choose from {', '.join(BASELINES)}")
    return {value: BASELINES[value]} if value else dict(BASELINES)


def teacher_views(
    teacher: Any, seed: int, steps: int | None, guidance_scale: float | None, device: str = "cpu"
) -> Callable[[Target], Tensor]:
    """A teacher's views (4, 3 or 4, S, S) at a target's rig, from one noise for all; the last ones are kept.

    None takes the teacher's settings.
    """
    from distill.simulation.ode import views_of

    kept: dict[str, Tensor] = {}

    def views(target: Target) -> Tensor:
        if target.id not in kept:
            rig, own = target.cameras[target.rig], teacher.rig.to("cpu")
            free = teacher.follows_elevation and len(own) == len(rig)
            same = (
                own.viewmats.shape == rig.viewmats.shape and (own.viewmats - rig.viewmats).abs().max() < 0.02
            )
            if not (same or free):
                raise UserError(
                    f"the teacher's rig is not the one of {target.id} (4 views at elevation 10): its views "
                    "have no ground truth here; leave --teacher out"
                )
            image = (target if target.size >= teacher.picture_size else target.finest).image
            cameras = None if same else rig.resized(own.width)
            kept.clear()
            kept[target.id] = views_of(teacher, image, seed, steps, guidance_scale, cameras, device)
        return kept[target.id]

    return views


def teacher_predictor(views: Callable[[Target], Tensor]) -> Predictor:
    """What `teacher_views` gives, at the rig alone."""
    from dd3g.pepd.frustum import resize

    def predict(target: Target) -> Drawing:
        answer = views(target)

        def draw(at: Target, wanted: list[int]) -> Prediction:
            chosen = [v for v in at.rig if v in wanted]
            views = answer[[at.rig.index(v) for v in chosen]]
            if views.shape[1] == 3:
                rgb = F.interpolate(views, at.size, mode="bilinear", antialias=True)
                return Prediction(chosen, rgb, None)
            views = resize(views, at.size)
            return Prediction(chosen, on_white(views), views[:, 3:])

        return Pictures(draw)

    return predict


def lgm_predictor(views: Callable[[Target], Tensor], lgm: Any, size: int, device: str = "cpu") -> Predictor:
    """What LGM makes of `teacher_views`, which it sees at `size` pixels."""

    def predict(target: Target) -> Drawing:
        rig = target.cameras[target.rig].to(device)
        return drawing_of(lgm.reconstruct(views(target)[None].to(device), rig, size)[0])

    return predict


def teacher_rows(value: str, options: Evaluation) -> dict[str, Predictor]:
    """A teacher's own views, and for TEACHER+lgm also what LGM makes of them; names or folders."""
    o = options
    teacher, pair = _teacher(value, o.device)
    views = teacher_views(teacher, o.seed, o.teacher_steps, o.guidance_scale, o.device)
    rows = {"teacher": teacher_predictor(views)}
    return rows | ({"teacher + LGM": lgm_predictor(views, pair.lgm, pair.size, o.device)} if pair else {})


@cache  # shown with several seeds, it is loaded once
def _teacher(value: str, device: str) -> tuple[Any, Any]:
    """A teacher, and its pair with LGM where the value names one."""
    from distill.teachers import load
    from distill.two_stage import is_pair, load_two_stage

    pair = load_two_stage(value, device) if is_pair(value) else None
    return (pair.teacher if pair else load(value, device)), pair


@cache
def _generator(path: str, device: str) -> Generator:
    """Loaded once, however many rows show it."""
    from dd3g.pepd import Generator

    return Generator.from_pretrained(path, device=device).compiled()


def generator_rows(value: str, options: Evaluation) -> dict[str, Predictor]:
    """A generator's raw splats, and its solid body where it makes one; the value is LABEL=NAME_OR_FOLDER."""
    label, path = labelled(value)
    model = _generator(path, options.device)

    def row(raw: bool) -> Predictor:  # sees the input picture only, the finest there is
        return lambda at: drawing_of(model.generate(at.finest.image, seed=options.seed, raw=raw))

    if model.config.surface == "off":
        return {label: row(raw=True)}
    return {f"{label} (raw)": row(raw=True), label: row(raw=False)}


def elevation_rows(value: str, options: Evaluation) -> dict[str, Predictor]:
    """A generator that is given its input's elevation, or estimates it; the value is LABEL=NAME_OR_FOLDER."""
    label, path = labelled(value)
    model = _generator(path, options.device)

    def row(elevation: Callable[[Target], float]) -> Predictor:
        def predict(target: Target) -> Drawing:
            degrees = elevation(target)
            made = model.generate(target.finest.image, seed=options.seed, elevation=degrees)
            turn, _ = frame(Cameras.orbit([0.0], degrees, target.size), 0)
            return drawing_of(made.transformed(turn))

        return predict

    return {
        f"{label}, elevation given": row(lambda target: target.elevation),
        f"{label}, elevation estimated": row(lambda target: estimated_elevation(target.finest.image)),
    }


def prediction_rows(value: str, options: Evaluation) -> dict[str, Predictor]:
    """What another tool made; the value is that of `parse_predictions`, NAME=FOLDER with options."""
    row = parse_predictions(value)
    return {row.name: row}


# Kind -> (value, options) -> rows by label, in the order in which tables show them.
KINDS: dict[str, Callable[[str, Evaluation], dict[str, Predictor]]] = {
    "baseline": baseline_rows,
    "teacher": teacher_rows,
    "generator": generator_rows,
    "elevation": elevation_rows,
    "predictions": prediction_rows,
}


def make_rows(asked: Sequence[str], options: Evaluation) -> dict[str, dict[str, Predictor]]:
    """What rows "KIND=VALUE" or "KIND" stand for, see `KINDS`: predictors by label.

    Raises:
        UserError: an unknown kind, weights that are not there, or two rows of one label.
    """
    made: dict[str, dict[str, Predictor]] = {}
    taken: set[str] = set()
    for words in asked:
        kind, _, value = words.partition("=")
        if kind not in KINDS:
            raise UserError(f"no row {kind!r}: choose KIND=VALUE with a kind of {', '.join(KINDS)}")
        rows = KINDS[kind](value, options)
        for label in taken & rows.keys():
            raise UserError(f"{label!r} is the name of another row: give this one its own LABEL=PATH")
        taken |= rows.keys()
        made[words] = rows
    return made
