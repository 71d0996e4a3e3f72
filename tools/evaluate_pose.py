"""How good are 3D poses: `python -m tools.evaluate_pose cmu motion.npz -o out/pose.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dd3g.command.run import Json, run_command
from dd3g.command.setting import flattened, setting
from dd3g.errors import UserError
from dd3g.io.atomic import check_writable, write_text

if TYPE_CHECKING:
    from rich.table import Table

ACROSS = "errors in mm, root-relative; best: lowest error of m hypotheses, PA: after Procrustes alignment"


@dataclass(frozen=True)
class Comparison:
    """Which methods are compared on a data set, and how."""

    method: list[str] = setting(
        ["lifter", "fixed noise", "restoration", "ZeDO", "guided"], "Or recovery; may be repeated."
    )
    m: list[int] = setting([1, 5, 10, 50, 200], "Numbers of hypotheses; may be repeated.")
    protocol: str | None = setting(None, "Subset and convention; default: the first.")
    keypoints: str | None = setting(
        None, "NAME of data_2d_h36m_NAME.npz and the like; default: as published."
    )
    weights: Path | None = setting(None, "Folder of networks; default: the shipped ones.")
    limit: int = setting(0, "At most this many people, evenly spread; 0: all.", 0)
    bodies: int = setting(0, "CMU: people for recovery from perturbed bodies; 0: none.", 0)
    seed: int = setting(0, "Seed of cameras, detector and hypotheses.")
    chunk: int = setting(16, "People per batch.", 1)
    steps: int = setting(30, "Network calls of guided sampling.", 1)
    zedo_iterations: int = setting(200, "Steps of ZeDO's main loop.", 1)


def evaluate(dataset: str, source: Path, options: Comparison, output: Path | None = None) -> dict[str, Any]:
    """Run every method on a data set.

    Each draws the most hypotheses it may and is cut for the other numbers. The folder of `output`, which the
    caller writes, is tried before what takes long.

    Raises:
        UserError: unknown names, missing weights, files that are not as published, a folder that cannot be
            written to.
    """
    from dd3g.command.progress import Progress
    from dd3g.machine import provenance
    from dd3g.pose.data.motion import load_cmu
    from tools.pose_methods import make_methods, run_method
    from tools.pose_people import describe, load_people
    from tools.pose_recovery import evaluate_recovery

    o = options
    if not o.m or min(o.m) < 1:
        raise UserError(f"numbers of hypotheses must be positive, got {', '.join(map(str, o.m)) or 'none'}")
    if o.bodies and dataset != "cmu":
        raise UserError(f"perturbed bodies need true rotations, which {dataset} lacks: leave out --bodies")
    protocol, sentence, keypoints = describe(dataset, o.protocol, o.keypoints)
    runs = make_methods(o.method, o.weights, o.steps, o.zedo_iterations)
    people = load_people(dataset, source, protocol, keypoints, o.limit, o.seed)
    if output is not None:
        check_writable(output.parent)
    total = sum(map(len, people))
    report: dict[str, Any] = {
        **provenance("cpu"),
        "protocol": {
            "dataset": dataset, "name": protocol, "subset": sentence, "convention": ACROSS, "seed": o.seed,
            "people": total, "limit": o.limit, "source": str(source),
            "keypoints": keypoints,
            "guided_steps": o.steps, "zedo_iterations": o.zedo_iterations, "chunk": o.chunk,
            "weights": str(o.weights) if o.weights else "shipped",
        },
        "results": {},
    }  # fmt: skip
    with Progress() as progress:
        for name, (method, most, advice) in runs.items():
            progress.phase(f"people, {name}", total)
            drawn = sorted({min(m, most) for m in o.m})
            report["results"][name] = run_method(
                method, people, drawn, o.seed, o.chunk, progress.advance, advice
            )
    if o.bodies:
        test, train = (load_cmu(source, split) for split in ("test", "train"))
        report["recovery"] = evaluate_recovery(test, train, o.weights, o.bodies, o.seed)
    report["claims"] = claims(report)
    return report


def claims(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Comparisons that the results at hand allow: two values and whether the first is as it should be."""
    from dd3g.pose.methods import registry

    result: dict[str, dict[str, Any]] = {}
    scores = {(name, m): s for name, found in report["results"].items() for m, s in found["m"].items()}

    def claim(text: str, value: float | None, bound: float | None, strict: bool = True) -> None:
        if value is not None and bound is not None:
            holds = value < bound if strict else value <= bound + 1e-6
            result[text] = {"value": value, "bound": bound, "holds": holds}

    def best(method: str, m: int) -> float | None:
        return scores.get((method, str(m)), {}).get("best_pa")

    for method in ("guided", "restoration"):
        values = [s["best_pa"] for (name, _), s in scores.items() if name == method]
        falls = [b < a for a, b in zip(values[:-1], values[1:], strict=True)]
        if falls:
            result[f"{method}: best PA error falls with m"] = {"value": values, "holds": all(falls)}
    claim("guided below ZeDO, best PA of 50", best("guided", 50), best("ZeDO", 50))
    claim("restoration below fixed noise, best PA of 200", best("restoration", 200), best("fixed noise", 200))
    claim("restoration not above the lifter, m = 1", best("restoration", 1), best("lifter", 1), strict=False)
    baseline = scores.get(("lifter", "1"), {})
    for (name, m), s in scores.items():
        if name not in registry.METHODS:
            claim(f"{name}, m {m}: recommended not above average", s["recommended"], s["average"], False)
        else:
            for key in ("recommended", "recommended_pa"):
                claim(f"{name}, m {m}: {key} below the lifter's", s[key], baseline.get(key))
    bodies: dict[str, Any] = report.get("recovery", {})
    if single := bodies.get("single"):
        error = {name: found["pa_mpjpe"] for name, found in single.items() if isinstance(found, dict)}
        for name in ("recovery, fast", "recovery, published plan"):
            claim(f"{name}: PA error at most 70 % of the start's", error[name], 0.7 * error["start"], False)
            claim(f"{name}: PA error below fitting's", error[name], error["fitting (SMPLify-like)"])
    if views := bodies.get("views"):
        alone, together = views["single view"]["pa_mpjpe"], views["multi-view"]["pa_mpjpe"]
        claim("multi-view: PA error at most 75 % of the single view's", together, 0.75 * alone, False)
        combined = views["views combined (--views)"]["mpjpe"]
        claim("views combined: MPJPE below the single view's", combined, views["single view"]["mpjpe"])
    if video := bodies.get("video"):
        alone, smooth = video["frame by frame"], video["video"]
        bound = 0.5 * alone["acceleration"]
        claim("video: acceleration error at most half", smooth["acceleration"], bound, False)
        claim("video: MPJPE not above frame by frame", smooth["mpjpe"], alone["mpjpe"], False)
    return result


SHOWN = {"best": "best", "best_pa": "best PA", "joint_best": "J-best", "jpma": "JPMA", "mean": "mean",
         "mean_pa": "mean PA", "lowest": "lowest E", "recommended": "advised", "recommended_pa": "advised PA",
         "expected": "expected", "bones": "bones %", "depth": "depth %",
         "pck": "PCK", "auc": "AUC", "pck_best": "best PCK", "pck17": "PCK17", "cps": "CPS",
         "symmetry": "symm.", "diversity": "spread"}  # fmt: skip


def print_report(report: dict[str, Any]) -> None:
    """The protocol and the means as tables."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, 220)  # a cut table is useless; a log has room
    protocol, results = report["protocol"], report["results"]
    seen = f", keypoints {protocol['keypoints']}" if protocol["keypoints"] else ""
    console.print(f"{protocol['dataset']} ({protocol['name']}): {protocol['subset']}.")
    console.print(f"{protocol['people']} people{seen}; {protocol['convention']}.")
    console.print(_means(results))
    for name, found in results.items():
        if c := found.get("calibration"):
            console.print(f"{name}: calibration error {c['error']:.3f} (m {c['m']}, {c['people']} people)")
    for m in dict.fromkeys(m for found in results.values() for m in found["m"]):
        console.print(_by_group(m, {name: f["m"][m] for name, f in results.items() if m in f["m"]}))
    if "recovery" in report:
        console.print(report["recovery"]["convention"])
        for part in ("single", "views", "video"):
            if report["recovery"][part]:
                console.print(_recovery(part, report["recovery"][part]))
    for text, found in report["claims"].items():
        values = found["value"] if isinstance(found["value"], list) else [found["value"]]
        against = f" against {found['bound']:.2f}" if "bound" in found else ""
        numbers = " ".join(f"{value:.2f}" for value in values)
        console.print(f"{'holds ' if found['holds'] else 'MISSED'} {text}: {numbers}{against}")


def _means(results: dict[str, Any]) -> Table:
    title = "Mean over people (errors in mm; PCK at 150 mm and AUC in % of the advised pose)"
    table = _table(title, ("m", *SHOWN.values(), "s/person"))
    for name, found in results.items():
        *_, last = found["m"]
        for m, block in found["m"].items():
            seconds = _cell(found["seconds_a_person"], 3) if m == last else ""
            table.add_row(name, m, *(_cell(block[key]) for key in SHOWN), seconds, end_section=m == last)
    return table


def _by_group(m: str, blocks: dict[str, Any]) -> Table:
    table = _table(f"By action or sequence, m = {m}: best error, in brackets after alignment", blocks)

    def add(name: str, errors: list[dict[str, float]]) -> None:
        table.add_row(name, *(f"{e['best']:.1f} ({e['best_pa']:.1f})" for e in errors))

    for group in next(iter(blocks.values()))["by_group"]["best"]:
        add(group, [{key: b["by_group"][key][group] for key in ("best", "best_pa")} for b in blocks.values()])
    table.add_section()
    add("mean of these", [b["mean_of_groups"] for b in blocks.values()])
    return table


def _recovery(part: str, found: dict[str, Any]) -> Table:
    errors = {name: value for name, value in found.items() if isinstance(value, dict)}
    columns = list(dict.fromkeys(column for row in errors.values() for column in row))
    sizes = ", ".join(f"{n} {what}" for what, n in found.items() if what not in errors)
    table = _table(f"Recovery, {part}: {sizes}", columns)
    for name, row in errors.items():
        table.add_row(name, *(_cell(row.get(column), 2) for column in columns))
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _cell(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@flattened
def main(
    dataset: Annotated[str, typer.Argument(help="cmu, h36m, 3dhp or 3dpw.")],
    source: Annotated[Path, typer.Argument(help="The archive, or the folder with the published files.")],
    options: Comparison,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write.")] = Path(
        "out/evaluation-pose.json"
    ),
    as_json: Json = False,
) -> None:
    """Compare the pose methods on a data set, by the protocols of the literature."""
    report = evaluate(dataset, source, options, output)
    write_text(output, json.dumps(report, indent=1, allow_nan=False))
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
        print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.evaluate_pose"))
