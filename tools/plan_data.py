"""What a set of pictures will cost: GPU hours, disk and wall time, from a batch that was measured.

    dd3g data synthesize --config configs/data_gen/sdxl_turbo.yaml prompts=P.jsonl output=TRIAL
    python -m tools.plan_data TRIAL
    python -m tools.plan_data --seconds-per-picture 0.8 --bytes-per-picture 90e3 --acceptance 0.7

A trial of a few hundred prompts is enough. The hours leave out deduplication, which
begins when all shards stand. `tools/rehearse_data.py` runs every step at full size without a picture model.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from data_gen.filters.rules import DUPLICATE
from data_gen.reports.figures import read_figures
from data_gen.shards.storage import Storage
from dd3g.command.run import Json, run_command
from dd3g.errors import UserError

SIZES = (120_000, 10_000_000)
GPUS = (1, 8, 64)
SHARD = 1000  # pictures


@dataclass(frozen=True)
class Measured:
    """A batch that was measured."""

    seconds: float  # wall time of one process for one try, drawn, matted, filtered and stored
    bytes: float  # of one stored picture with its record
    acceptance: float  # share of tries that give a picture
    missing: float = 0.0  # share of prompts that end without one
    duplicates: float = 0.0  # share of tries that repeated another picture; grows with the set

    def __post_init__(self) -> None:
        for name in ("seconds", "bytes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} a picture must be above 0, got {getattr(self, name)}")
        if not 0 < self.acceptance <= 1:
            raise UserError(f"acceptance must be above 0 and at most 1, got {self.acceptance}")


@dataclass(frozen=True)
class Plan:
    """What a set costs."""

    pictures: int  # in the set
    gpus: int  # that draw at the same time, one process each
    tries: int  # pictures that will be drawn
    gpu_hours: float  # of all GPUs together
    # Until the last shard stands, without the deduplication after it; a shard is drawn by one GPU, so the
    # last shards leave some idle
    wall_hours: float
    gigabytes: float  # of the finished set
    shards: int  # of 1,000 pictures


def measure(place: str) -> Measured:
    """Figures of a set, finished or not.

    Raises:
        UserError: when no shard of it is finished, or none of its pictures passed.
    """
    figures = read_figures(Storage(place))
    kept = figures.pictures + figures.in_work
    if not figures.shards or not figures.seconds["wall"]:
        raise UserError(f"{place} has no finished shard: let one finish, or give a smaller shard_size")
    if not figures.pictures:
        raise UserError(
            f"{place} has no picture in its finished shards, its tries were rejected as "
            f"{', '.join(figures.rejected) or 'nothing'}: change the model or the filters and try again"
        )
    prompts = figures.pictures + sum(figures.missing.values())
    return Measured(
        figures.seconds["wall"] / figures.tries,
        figures.bytes / figures.pictures,
        kept / figures.tries,
        1 - figures.pictures / prompts,
        figures.rejected[DUPLICATE] / figures.tries,
    )


def plan(measured: Measured, pictures: int, gpus: int) -> Plan:
    """Extrapolate to `pictures` on `gpus`."""
    tries = pictures / measured.acceptance
    shards = -(-pictures // SHARD)
    per_shard = tries / shards * measured.seconds / 3600  # hours
    return Plan(
        pictures,
        gpus,
        round(tries),
        shards * per_shard,
        -(-shards // gpus) * per_shard,
        pictures * measured.bytes / 1e9,
        shards,
    )


def main(
    trial: Annotated[str, typer.Argument(metavar="SET", help="A set that was made for a trial.")] = "",
    seconds: Annotated[
        float | None,
        typer.Option("--seconds-per-picture", help="Seconds of one GPU per try, instead of a trial."),
    ] = None,
    size: Annotated[
        float | None,
        typer.Option("--bytes-per-picture", help="Bytes per picture with its record. [default: 80e3]"),
    ] = None,
    acceptance: Annotated[
        float | None, typer.Option(help="Share of tries that pass the filters. [default: 0.7]")
    ] = None,
    pictures: Annotated[list[int], typer.Option(min=1, help="Sizes of the set; repeatable.")] = list(SIZES),
    gpus: Annotated[list[int], typer.Option(min=1, help="Number of GPUs; may be repeated.")] = list(GPUS),
    as_json: Json = False,
) -> None:
    """Estimate GPU hours, disk and wall time of a set of pictures from a measured batch."""
    given = {"--seconds-per-picture": seconds, "--bytes-per-picture": size, "--acceptance": acceptance}
    if trial and (double := [k for k, v in given.items() if v is not None]):
        raise UserError(f"{trial} already holds what {double[0]} gives: pass either a set or figures")
    if trial:
        measured = measure(trial)
    elif seconds is None:
        raise UserError("give either a set that was made for a trial, or --seconds-per-picture")
    else:
        measured = Measured(
            seconds, 80e3 if size is None else size, 0.7 if acceptance is None else acceptance
        )
    plans = [plan(measured, n, g) for n in pictures for g in gpus]
    if as_json:
        print(json.dumps({"measured": asdict(measured), "plans": [asdict(p) for p in plans]}))
    else:
        _show(measured, plans)


def _show(measured: Measured, plans: list[Plan]) -> None:
    from rich.console import Console
    from rich.table import Table

    print(
        f"measured: {measured.seconds:.3g} s a try, {measured.acceptance:.1%} of tries accepted, "
        f"{measured.bytes / 1e3:.3g} kB a picture, {measured.missing:.2%} of prompts missing, "
        f"{measured.duplicates:.2%} of tries near duplicates (more in a larger set)"
    )
    table = Table(*Plan.__dataclass_fields__, box=None)
    for column in table.columns:
        column.justify = "right"
    for p in plans:
        table.add_row(*(_number(v) for v in asdict(p).values()))
    Console(width=110).print(table)
    print("wall_hours leave out deduplication, which begins when all shards stand")


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.plan_data", needs_words=False))
