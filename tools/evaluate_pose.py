"""How good are 3D poses: `python -m tools.evaluate_pose cmu motion.npz -o out/pose.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command import check_writable, run_command
from dd3g.errors import UserError
from dd3g.io.atomic import replacing

COUNTS = (1, 5, 10, 50, 200)
ACROSS = "errors in mm, root-relative; best: lowest error of m hypotheses, PA: after Procrustes alignment"


def evaluate(
    dataset: str,
    source: Path,
    methods: list[str],
    counts: tuple[int, ...] = COUNTS,
    protocol: str | None = None,
    keypoints: str | None = None,
    weights: Path | None = None,
    limit: int = 0,
    seed: int = 0,
    chunk: int = 16,
    bodies: int = 0,
    steps: int = 30,
    zedo_iterations: int = 200,
    output: Path | None = None,
) -> dict[str, Any]:
    """Run every row.

    Args:
        dataset: "cmu", "h36m", "3dhp" or "3dpw".
        source: its file or folder.
        methods: of `tools.pose_rows.ROWS`.
        counts: numbers of hypotheses; each row draws the most it may and is cut for the others.
        protocol: of the data set; None its first.
        keypoints: whose, see `tools.pose_people.detector`.
        weights: folder of networks; None: the shipped ones.
        limit: at most so many people, evenly spread; 0: all.
        seed: of cameras, detector and hypotheses.
        chunk: people a batch.
        bodies: people for the tables of recovery from perturbed starts, on CMU only; 0: no such tables.
        steps: network calls of guided sampling.
        zedo_iterations: of ZeDO.
        output: what the caller will write; its folder is tried before anything that takes long.

    Raises:
        UserError: unknown names, missing weights, files that are not as published, a folder that cannot be
            written to.
    """
    from rich.console import Console
    from rich.progress import Progress

    from dd3g.machine import provenance
    from dd3g.pose.data.motion import load_cmu
    from tools.pose_people import describe, detector, load_people
    from tools.pose_rows import Limits, make_rows, run_row, summarise

    if not counts or min(counts) < 1:
        raise UserError(
            f"numbers of hypotheses must be positive, got {', '.join(map(str, counts)) or 'none'}"
        )
    if bodies and dataset != "cmu":
        raise UserError(f"perturbed bodies need true rotations, which {dataset} has not: leave out --bodies")
    protocol, sentence = describe(dataset, protocol)
    keypoints = detector(dataset, protocol, keypoints)
    rows = make_rows(methods, weights, Limits(steps, zedo_iterations))
    people = load_people(dataset, source, protocol, keypoints, limit, seed)
    if output is not None:
        check_writable(output.parent)
    total = sum(map(len, people))
    report: dict[str, Any] = {
        **provenance("cpu"),
        "protocol": {
            "dataset": dataset, "name": protocol, "subset": sentence, "convention": ACROSS, "seed": seed,
            "people": total, "limit": limit, "source": str(source),
            "keypoints": keypoints,
            "guided_steps": steps, "zedo_iterations": zedo_iterations, "chunk": chunk,
            "weights": str(weights) if weights else "shipped",
        },
        "rows": {},
    }  # fmt: skip
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name, (row, most) in rows.items():
            task = progress.add_task(name, total=total)
            drawn = sorted({min(m, most) for m in counts})
            found = run_row(row, people, drawn, seed, chunk, lambda n: progress.advance(task, n))  # noqa: B023
            report["rows"][name] = summarise(found, drawn)
    if bodies:
        from tools.pose_recovery import evaluate_recovery

        test, train = (load_cmu(source, split) for split in ("test", "train"))
        report["recovery"] = evaluate_recovery(test, train, weights, bodies, seed)
    report["claims"] = claims(report)
    return report


def claims(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Comparisons that the rows at hand allow: two values and whether the first is as it should be."""
    result: dict[str, dict[str, Any]] = {}

    def claim(text: str, value: float | None, bound: float | None, strict: bool = True) -> None:
        if value is not None and bound is not None:
            result[text] = {
                "value": value,
                "bound": bound,
                "holds": value < bound if strict else value <= bound + 1e-6,
            }

    def at(row: str, m: int, name: str = "best_pa") -> float | None:
        return report["rows"].get(row, {}).get("m", {}).get(str(m), {}).get(name)

    for row in ("guided", "restoration"):
        values = [block["best_pa"] for block in report["rows"].get(row, {}).get("m", {}).values()]
        falls = [b < a for a, b in zip(values[:-1], values[1:], strict=True)]
        if falls:
            result[f"{row}: best PA error falls with m"] = {"value": values, "holds": all(falls)}
    claim("guided below ZeDO, best PA of 50", at("guided", 50), at("ZeDO", 50))
    claim("restoration below fixed noise, best PA of 200", at("restoration", 200), at("fixed noise", 200))
    claim("restoration not above the lifter, m = 1", at("restoration", 1), at("lifter", 1), strict=False)
    for row, found in report["rows"].items():
        for m, block in found["m"].items():
            claim(
                f"{row}, m {m}: recommended not above average", block["recommended"], block["average"], False
            )
    bodies = report.get("recovery", {})
    if single := bodies.get("single"):
        error = {name: row["pa_mpjpe"] for name, row in single.items() if isinstance(row, dict)}
        for name in ("recovery, fast", "recovery, published plan"):
            claim(f"{name}: PA error at most 70 % of the start's", error[name], 0.7 * error["start"], False)
            claim(f"{name}: PA error below fitting's", error[name], error["fitting (SMPLify-like)"])
    if views := bodies.get("views"):
        alone, together = views["single view"]["pa_mpjpe"], views["multi-view"]["pa_mpjpe"]
        claim("multi-view: PA error at most 75 % of the single view's", together, 0.75 * alone, False)
    if video := bodies.get("video"):
        alone, smooth = video["frame by frame"], video["video"]
        claim(
            "video: acceleration error at most half",
            smooth["acceleration"],
            0.5 * alone["acceleration"],
            False,
        )
        claim("video: MPJPE not above frame by frame", smooth["mpjpe"], alone["mpjpe"], False)
    return result


def print_report(report: dict[str, Any]) -> None:
    """The protocol and the means as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 190)  # a cut table says nothing; a log has room
    protocol = report["protocol"]
    console.print(f"{protocol['dataset']} ({protocol['name']}): {protocol['subset']}.", highlight=False)
    seen = f", keypoints {protocol['keypoints']}" if protocol["keypoints"] else ""
    console.print(f"{protocol['people']} people{seen}; {protocol['convention']}.", highlight=False)

    def cell(value: float | None, digits: int = 1) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    shown = {"best": "best", "best_pa": "best PA", "joint_best": "J-best", "jpma": "JPMA", "mean": "mean",
             "mean_pa": "mean PA", "lowest": "lowest E", "recommended": "advised", "expected": "expected",
             "pck": "PCK", "auc": "AUC", "pck_best": "best PCK", "pck17": "PCK17", "cps": "CPS",
             "symmetry": "symm.", "diversity": "spread"}  # fmt: skip
    table = Table(title="Mean over people (errors in mm; PCK at 150 mm and AUC in % of the advised pose)")
    for column in ("", "m", *shown.values(), "s/person"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in report["rows"].items():
        for m, block in row["m"].items():
            last = m == list(row["m"])[-1]
            seconds = cell(row["seconds_a_person"], 3) if last else ""
            table.add_row(name, m, *(cell(block[key]) for key in shown), seconds, end_section=last)
    console.print(table)
    for name, row in report["rows"].items():
        if "calibration" in row:
            c = row["calibration"]
            console.print(f"{name}: calibration error {c['error']:.3f} (m {c['m']}, {c['people']} people)")

    counts = list(dict.fromkeys(m for row in report["rows"].values() for m in row["m"]))
    for m in counts:
        rows = {name: row["m"][m] for name, row in report["rows"].items() if m in row["m"]}
        groups = list(next(iter(rows.values()))["by_group"]["best"])
        table = Table(title=f"By action or sequence, m = {m}: best error, in brackets after alignment")
        for column in ("", *rows):
            table.add_column(column, justify="left" if not column else "right")
        for group in groups:
            pairs = [(b["by_group"]["best"][group], b["by_group"]["best_pa"][group]) for b in rows.values()]
            table.add_row(group, *(f"{a:.1f} ({b:.1f})" for a, b in pairs))
        table.add_section()
        means = [b["mean_of_groups"] for b in rows.values()]
        table.add_row("mean of these", *(f"{g['best']:.1f} ({g['best_pa']:.1f})" for g in means))
        console.print(table)

    if "recovery" in report:
        console.print(report["recovery"]["convention"], highlight=False)
        for title in ("single", "views", "video"):
            found = report["recovery"][title]
            rows = {k: v for k, v in found.items() if isinstance(v, dict)}
            if not rows:
                continue
            names = list(dict.fromkeys(key for row in rows.values() for key in row))
            sizes = ", ".join(f"{n} {what}" for what, n in found.items() if what not in rows)
            table = Table(title=f"Recovery, {title}: {sizes}")
            for column in ("", *names):
                table.add_column(column, justify="left" if not column else "right")
            for name, row in rows.items():
                table.add_row(name, *(cell(row.get(key), 2) for key in names))
            console.print(table)
    for text, found in report["claims"].items():
        values = [found[k] for k in ("value", "bound") if k in found]
        numbers = " against ".join(
            " ".join(f"{x:.2f}" for x in v) if isinstance(v, list) else f"{v:.2f}" for v in values
        )
        console.print(f"{'holds ' if found['holds'] else 'MISSED'} {text}: {numbers}", highlight=False)


def main(
    dataset: Annotated[str, typer.Argument(help="cmu, h36m, 3dhp or 3dpw.")],
    source: Annotated[Path, typer.Argument(help="The archive, or the folder with the published files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write.")] = Path(
        "out/evaluation-pose.json"
    ),
    method: Annotated[
        list[str] | None,
        typer.Option(help="lifter, fixed noise, restoration, ZeDO, guided or recovery; may be repeated."),
    ] = None,
    m: Annotated[list[int] | None, typer.Option(help="Numbers of hypotheses; may be repeated.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Subset and convention; default: the first.")] = None,
    keypoints: Annotated[
        str | None, typer.Option(help="NAME of data_2d_h36m_NAME.npz and the like; default: as published.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of networks; default: the shipped.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many people, evenly spread; 0: all.")] = 0,
    bodies: Annotated[
        int, typer.Option(min=0, help="CMU: people for recovery from perturbed bodies; 0: none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of cameras, detector and hypotheses.")] = 0,
    chunk: Annotated[int, typer.Option(min=1, help="People a batch.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Network calls of guided sampling.")] = 30,
    zedo_iterations: Annotated[int, typer.Option(min=1, help="Of ZeDO's main loop.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON instead of tables.")] = False,
) -> None:
    """Compare the pose methods on a data set, by the protocols of the literature."""
    methods = method or ["lifter", "fixed noise", "restoration", "ZeDO", "guided"]
    report = evaluate(
        dataset, source, methods, tuple(sorted(set(m or COUNTS))), protocol, keypoints, weights, limit,
        seed, chunk, bodies, steps, zedo_iterations, output,
    )  # fmt: skip
    with replacing(output) as part:
        part.write_text(json.dumps(report, indent=1, allow_nan=False))
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
        print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.evaluate_pose"))
