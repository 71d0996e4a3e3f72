"""The paper's central claim, put to the test: `dd3g claim --renders R --quadruples Q --test T -o runs/claim`.

DD3G says that a student distilled from a teacher generalises better than the same network trained on 3D data
only. Two students start alike and make the same steps on batches of the same size; one sees rendered meshes,
the other a teacher's quadruples of pictures that no mesh has beside them. Both are evaluated on the same test
objects, apart by whether the training meshes held their kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dd3g.command.run import Json, command_line
from dd3g.io.atomic import write_text
from distill.recipe import describe_machine, run_stage

MESHES, BOTH = "meshes", "meshes and quadruples"  # the two students
METRICS = {"psnr": "PSNR", "ssim": "SSIM", "iou": "IoU", "st_lpips_128": "ST-LPIPS 128"}
ROWS = {"solid": "", "raw": " (raw)"}  # of an evaluation: what follows a student's name
HEAD = "| kinds | splats | metric | {a} | {b} | difference [95 %] | p | n |\n" + "|---" * 8 + "|"


def claim_command(
    renders: Annotated[list[Path], typer.Option(help="Shards of `dd3g data render`; may be repeated.")],
    quadruples: Annotated[
        list[Path],
        typer.Option(help="Shards of `dd3g simulate` on pictures without a mesh; may be repeated."),
    ],
    test: Annotated[
        Path,
        typer.Option(
            help="Folder to evaluate on, in any layout; best with other kinds of objects than the renders'."
        ),
    ],
    steps: Annotated[int, typer.Option(min=2, help="Training steps of each student.")] = 1500,
    config: Annotated[
        str, typer.Option(help="Configuration of both students, see configs/distill.")
    ] = "nano",
    options: Annotated[list[str] | None, typer.Option("--train", help="KEY=VALUE for both students.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for all results.")] = Path(
        "runs/claim"
    ),
    as_json: Json = False,
) -> None:
    """Train a student with and one without a teacher's quadruples, at equal compute, and compare them.

    A run that was stopped goes on with the same command.
    """
    from dd3g.training.checkpoints import checkpoints

    kinds = kinds_of(renders)
    shown = [f"renders={json.dumps([str(r) for r in renders])}", f"max_train_steps={steps}"]
    taught = f"quadruples={json.dumps([str(q) for q in quadruples])}"
    folders = {MESHES: output / "meshes", BOTH: output / "both"}
    for name, folder in folders.items():
        words = [
            *shown,
            taught if name == BOTH else "quadruples=[]",
            f"output_dir={folder}",
            *(options or []),
        ]
        if checkpoints(folder):
            words.append("resume=latest")
        run_stage("distill.train", "--config", config, "report_to=none", *words)
    place = output / "evaluation"
    rows = [word for name, f in folders.items() for word in ("--generator", f"{name}={f / 'model'}")]
    run_stage("distill.evaluation", str(test), *rows, "-o", str(place))
    report = json.loads((place / "evaluation.json").read_text())
    found = compared(report, kinds)
    text = describe(found, report, steps, kinds, renders, quadruples)
    for path, content in ((output / "claim.md", text), (output / "claim.json", json.dumps(found, indent=1))):
        write_text(path, content + "\n")
    print(json.dumps({"differences": found}) if as_json else text)


def kinds_of(renders: Sequence[Path]) -> set[str]:
    """Styles of the objects that are trained on."""
    from distill.samples.renders import RenderedObjects, described

    objects = RenderedObjects(renders, tolerant=True)
    return {meta["style"] for _, meta in described(objects) if meta is not None}


def compared(report: dict[str, Any], kinds: set[str]) -> list[dict[str, Any]]:
    """Means of both students of a report and paired differences, with quadruples minus without.

    Returns:
        For all test objects, those of these kinds and the others, where there are any: kinds, splats
        ("solid", "raw"), metric, `a` and `b` (means without and with quadruples), and what
        `paired_difference` gives.
    """
    from distill.evaluation.paired import paired_difference

    seen = np.array([about["style"] in kinds for about in report["objects"]])
    groups = {"all": seen | True, "seen": seen, "unseen": ~seen}
    found = []
    for group, members in groups.items():
        if not members.any() or (group != "all" and members.all()):
            continue
        for splats, suffix in ROWS.items():
            for metric in METRICS:
                columns = [report["per_object"].get(name + suffix, {}).get(metric) for name in (MESHES, BOTH)]
                if None in columns:
                    continue
                without, taught = (np.array(c, dtype=np.float64)[members] for c in columns)
                about: dict[str, Any] = {"kinds": group, "splats": splats, "metric": metric}
                about |= {"a": float(np.nanmean(without)), "b": float(np.nanmean(taught))}
                found.append(about | paired_difference(taught.tolist(), without.tolist()))
    return found


def describe(
    found: list[dict[str, Any]],
    report: dict[str, Any],
    steps: int,
    kinds: set[str],
    renders: Sequence[Path],
    quadruples: Sequence[Path],
) -> str:
    """The table in Markdown, and what it was measured on."""
    lines = [
        f"Two students of {steps} steps each on {describe_machine()}. Renders: "
        f"{', '.join(map(str, renders))} ({', '.join(sorted(kinds))}); quadruples: "
        f"{', '.join(map(str, quadruples))}. {report['data']['objects']} test objects of "
        f"{report['data']['source']}, protocol {report['protocol']['name']} {report['protocol']['hash']}. "
        "A difference is with minus without quadruples, paired by object.",
        "",
        HEAD.format(a=MESHES, b=BOTH),
    ]
    for d in found:
        interval = f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        p = "-" if d["p"] is None else f"{d['p']:.4f}"
        lines.append(
            f"| {d['kinds']} | {d['splats']} | {METRICS[d['metric']]} | {d['a']:.3f} | {d['b']:.3f} "
            f"| {interval} | {p} | {d['n']} |"
        )
    return "\n".join(lines)


main = command_line(claim_command, "dd3g claim")

if __name__ == "__main__":
    sys.exit(main())
