"""Simulate a teacher's ODE: pictures in, noise-camera-input-output quadruples out.

dd3g simulate INPUTS --teacher PATH --output DIR
dd3g simulate verify DIR --teacher PATH
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dd3g.command.run import Json, dispatch
from dd3g.command.setting import flattened
from dd3g.errors import UserError
from distill.config import BELIEVED, Simulation, TeacherOptions

if TYPE_CHECKING:
    import torch

    from distill.teachers import Teacher


def _partial_state(device: str) -> tuple[Any, torch.device]:
    """This process among those that accelerate launched, and its device."""
    import torch
    from accelerate import PartialState

    from dd3g.nn.checkpoint import find_device

    # First, because it makes the process's own GPU the current one: "cuda" would be the first for all.
    # Without CUDA, cpu=True lets torchrun start several processes, which else would not know of each other.
    cpu = device.startswith("cpu") or (device == "auto" and not torch.cuda.is_available())
    # Who ends first waits for the slowest when the results are gathered, perhaps for hours.
    state = PartialState(cpu=cpu, timeout=timedelta(days=60))
    place = state.device if device == "auto" else find_device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)  # mattes follow
    return state, place


def _loaded(teacher: str, how: TeacherOptions) -> tuple[Teacher, Any, torch.device]:
    """A teacher, this process and its device."""
    from distill.teachers import load

    state, place = _partial_state(how.device)
    return load(teacher, place, how.precision, how.elevation, how.attention), state, place


Which = Annotated[
    str,
    typer.Option(
        help="A teacher's folder, a shipped name, 'analytic', or a published one: NAME[@revision] of "
        "`dd3g models list`, or owner/name[@revision] of the hub."
    ),
]


@flattened
def simulate_command(
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="PICTURES",
            help="Pictures, shards or parquet files of them, or rendered objects: a folder, or one file.",
        ),
    ],
    teacher: Which,
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the shards.")],
    options: Simulation,
    how: TeacherOptions,
    as_json: Json = False,
) -> None:
    """Make noise-camera-input-output quadruples; stop it at any time and start it again to resume.

    `verify DIR --teacher PATH` recomputes some of a finished set. Under `accelerate launch` processes share
    the work. Exit code 1: some pictures could not be used.
    """
    start = time.monotonic()
    if "://" in output:
        raise UserError(
            f"{output} is a URL: give a folder of this machine, and copy it there when it is done"
        )
    if not -(2**63) <= options.seed < 2**64:  # torch knows no others
        raise UserError(f"--seed {options.seed} is out of range: give 0 to 2**64 - 1")
    if not math.isfinite(scale := options.guidance_scale or 0):
        raise UserError(f"--guidance-scale {scale} is not a strength: give a number, 1 is none")
    from dd3g.training.processes import held_by_main
    from distill.simulation.generate_shards import ShardSet, generate_shards
    from distill.simulation.inputs import open_inputs
    from distill.simulation.mattes import matte_model

    pictures = open_inputs(inputs, options.matte, output)
    model, state, place = _loaded(teacher, how)
    options = replace(
        options,
        steps=model.default_steps if options.steps is None else options.steps,
        guidance_scale=model.default_guidance if options.guidance_scale is None else options.guidance_scale,
        view_matte=matte_model(options.view_matte),
    )
    wanted = ShardSet(model, pictures, Path(output), place, options)
    with held_by_main(wanted.output):
        report = generate_shards(wanted, state, not as_json)
    report["seconds"] = round(time.monotonic() - start, 1)
    if state.is_main_process:
        for message in report["failed"]:
            print(f"error: {message}", file=sys.stderr)
        if report["unsure_mattes"] > report["mattes"] / 2:
            print(
                f"warning: {report['unsure_mattes']} of {report['mattes']} views have a matte of confidence "
                f"below {BELIEVED} and teach colour alone: look at some outputs.png, and at --view-matte",
                file=sys.stderr,
            )
        left = report["shards"] - report["present"] - report["written"]
        print(
            json.dumps(report)
            if as_json
            else f"wrote {report['quadruples']} quadruples in {report['written']} shards to {output}; "
            f"{report['present']} shards existed, {left} remain ({report['seconds']} s)"
        )
    if report["failed"]:
        raise typer.Exit(1)


@flattened
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="QUADRUPLES", help="Folder of quadruple shards.")],
    teacher: Which,
    how: TeacherOptions,
    samples: Annotated[int, typer.Option(min=1, help="Quadruples to recompute.")] = 8,
    as_json: Json = False,
) -> None:
    """Recompute some quadruples and say whether the teacher still gives them.

    Exit code 1: it does not, or shards are missing.
    """
    from distill.simulation.verify import verify

    model, _, place = _loaded(teacher, how)
    report = verify(folder, model, samples, str(place))
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{'agree' if report['agrees'] else 'DIFFER'}: {report['checked']} of {report['quadruples']} "
            f"recomputed, mean difference {report['mean_difference']:.5f}, "
            f"largest {report['max_difference']:.5f}; "
            f"teacher {'the same' if report['teacher'] else 'ANOTHER'}, "
            f"noise {'follows' if report['noise'] else 'DOES NOT FOLLOW'} from the seeds"
        )
    if report["missing"]:
        print(
            f"error: {len(report['missing'])} shards of {folder} are missing, first {report['missing'][0]}: "
            "make them with the command that started the set",
            file=sys.stderr,
        )
    if report["missing"] or not report["agrees"]:
        raise typer.Exit(1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    about = "Simulate a teacher: pictures in, quadruples out."
    return dispatch({"verify": verify_command}, argv, "dd3g simulate", about, otherwise=simulate_command)


if __name__ == "__main__":
    sys.exit(main())
