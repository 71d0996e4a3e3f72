"""A page about a set of pictures, finished or not: counts, scores, pictures, speed, and what is left to do.

dd3g data stats SET -o stats.html
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from data_gen.config import read_options
from data_gen.job import PROMPTS
from data_gen.parts import JOURNAL
from data_gen.sidecar import Sidecar, finished_shards, shard_name
from data_gen.storage import Storage
from dd3g.command import run_command
from dd3g.errors import UserError
from dd3g.io.shards import Shards

SHEET_SHARDS = 8  # opened for the contact sheet, at most
PERCENTILES = (1, 25, 50, 75, 99)


@dataclass
class Group:
    """One group of prompts in figures; tries are counted of prompts in finished shards."""

    asked: int = 0
    pictures: int = 0
    missing: int = 0
    tries: int = 0


@dataclass
class Figures:
    """A set in figures.

    Args:
        place: where it lies.
        asked: prompts, all shards together.
        shards: that are finished.
        pictures: in finished shards.
        in_work: pictures in parts of shards that are not finished; counted only on this machine's disks.
        bytes: of the finished tars.
        missing: reason -> prompts of finished shards without a picture.
        rejected: reason -> tries.
        tries: pictures drawn, for finished shards and for parts.
        groups: name -> counts.
        made: model, licence, matte, size -> value -> pictures.
        accepted: score -> (N,) float32 of the pictures.
        refused: score -> (N,) float32 of the rejected tries.
        speed: (finished shard, seconds a try), in order.
        seconds: draw, finish and wall, of all tries.
        options: of the set.
        free: bytes left on the disk it lies on, None for a bucket.
    """

    place: str
    asked: int = 0
    shards: int = 0
    pictures: int = 0
    in_work: int = 0
    bytes: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    tries: int = 0
    groups: dict[str, Group] = field(default_factory=dict)
    made: dict[str, Counter[str]] = field(default_factory=dict)
    accepted: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    refused: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    speed: list[tuple[int, float]] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    options: dict[str, Any] = field(default_factory=dict)
    free: int | None = None

    @property
    def done(self) -> int:
        """Prompts that have a picture or no attempt left."""
        return self.pictures + sum(self.missing.values()) + self.in_work

    @property
    def left(self) -> int:
        """Prompts still to be done."""
        return max(0, self.asked - self.done)

    def hours_left(self, processes: int = 1) -> float | None:
        """Of wall time at the speed so far, None when there is none yet."""
        if not self.done or not self.seconds["wall"]:
            return None
        return self.left * self.seconds["wall"] / self.done / processes / 3600

    @property
    def bytes_left(self) -> float | None:
        """Of disk at the size so far; parts that are there are still to become tars."""
        if not self.pictures:
            return None
        share = self.pictures / (self.pictures + sum(self.missing.values()))
        return (self.left * share + self.in_work) * self.bytes / self.pictures


def read_figures(storage: Storage) -> Figures:
    """Read sidecars, journals of parts, and the prompts' groups; no pictures.

    Raises:
        UserError: when it is no set, or a sidecar is damaged.
    """
    figures = Figures(str(storage), options=read_options(storage))
    accepted: dict[str, list[NDArray[np.float32]]] = {}
    refused: dict[str, list[NDArray[np.float32]]] = {}
    tries: Counter[str] = Counter()  # by id, of prompts with rejected tries
    missing: set[str] = set()
    finished = finished_shards(storage)
    for number in finished:
        sidecar = Sidecar.read(storage, number)
        _add_shard(figures, sidecar)
        _add_scores(accepted, sidecar.records)
        _add_scores(refused, sidecar.rejections)
        tries.update(r["id"] for r in sidecar.rejections)
        missing |= sidecar.missing.keys()
    for journal in _journals(storage, {shard_name(n) for n in finished}):
        verdicts = journal["verdicts"]
        passed = [v for v in verdicts if not v["reason"]]
        failed = [v for v in verdicts if v["reason"]]
        figures.in_work += len(passed)
        figures.tries += len(verdicts)
        figures.rejected.update(v["reason"] for v in failed)
        figures.seconds.update(journal["seconds"])
        _add_scores(accepted, passed)
        _add_scores(refused, failed)
    figures.accepted = {k: np.concatenate(v) for k, v in accepted.items()}
    figures.refused = {k: np.concatenate(v) for k, v in refused.items()}
    _add_prompts(figures, storage, tries, missing)
    if storage.folder is not None:
        figures.free = shutil.disk_usage(storage.folder).free
    return figures


def _add_shard(figures: Figures, sidecar: Sidecar) -> None:
    tries = sidecar.count + len(sidecar.rejections)
    figures.shards += 1
    figures.pictures += sidecar.count
    figures.bytes += sidecar.bytes
    figures.tries += tries
    figures.missing.update(sidecar.missing.values())
    figures.rejected.update(sidecar.rejected)
    figures.seconds.update(sidecar.seconds)
    for key, counts in sidecar.made.items():
        figures.made.setdefault(key, Counter()).update(counts)
    for record in sidecar.records:
        group = figures.groups.setdefault(record["group"], Group())
        group.pictures += 1
        group.tries += 1
    if tries and sidecar.seconds.get("wall"):
        figures.speed.append((sidecar.shard, sidecar.seconds["wall"] / tries))


def _add_scores(into: dict[str, list[NDArray[np.float32]]], records: Sequence[dict[str, Any]]) -> None:
    for name in dict.fromkeys(k for r in records for k in r["scores"]):
        values = [r["scores"][name] for r in records if name in r["scores"]]
        into.setdefault(name, []).append(np.array(values, np.float32))


def _journals(storage: Storage, finished: set[str]) -> Iterable[dict[str, Any]]:
    """Of the parts of shards that are not finished; a part that vanishes meanwhile is passed over."""
    if storage.folder is None:
        return
    for shard in storage.names("parts"):
        for name in storage.names(f"parts/{shard}") if shard not in finished else ():
            try:
                part = Shards(storage.folder / "parts" / shard / name)
                [last] = [i for i in range(len(part)) if part.key(i) == JOURNAL]
                yield json.loads(part[last]["json"])
            except (UserError, ValueError, KeyError):
                continue


def _add_prompts(figures: Figures, storage: Storage, tries: Counter[str], missing: set[str]) -> None:
    """What was asked for, and the groups of prompts that have no record."""
    figures.asked = figures.done
    if not storage.exists(PROMPTS):
        return
    figures.asked = 0
    with storage.reading(PROMPTS) as [path], open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                prompt = json.loads(line)
                key, name = prompt["id"], prompt.get("group", "")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{storage}/{PROMPTS}, line {figures.asked + 1}, is damaged: delete the file and run the "
                    "command that makes the set again"
                ) from error
            group = figures.groups.setdefault(name, Group())
            figures.asked += 1
            group.asked += 1
            group.missing += key in missing
            group.tries += tries[key]


@dataclass(frozen=True)
class Shown:
    """A picture of the contact sheet: RGBA PNG, and its record."""

    png: bytes
    record: dict[str, Any]


def sample_pictures(storage: Storage, count: int) -> list[Shown]:
    """Pictures spread evenly over the finished shards; few shards are opened, and few of their pictures read.

    Raises:
        UserError: when a shard is damaged.
    """
    finished = finished_shards(storage)
    wanted = min(SHEET_SHARDS if storage.folder is not None else 2, len(finished), count)
    found: list[Shown] = []
    for i in range(wanted):
        number = finished[(2 * i + 1) * len(finished) // (2 * wanted)]
        with storage.reading(shard_name(number) + ".tar") as [path]:
            shards = Shards(path)
            due = min((count - len(found)) // (wanted - i), len(shards))
            for k in range(due):
                sample = shards[(2 * k + 1) * len(shards) // (2 * due)]
                found.append(Shown(sample["png"], json.loads(sample["json"])))
    return found


def report(figures: Figures, processes: int = 1) -> dict[str, Any]:
    """The figures as JSON-able values; scores by their percentiles."""
    hours = figures.hours_left(processes)
    return {
        "place": figures.place,
        "asked": figures.asked,
        "pictures": figures.pictures,
        "in_work": figures.in_work,
        "left": figures.left,
        "missing": dict(sorted(figures.missing.items())),
        "rejected": dict(sorted(figures.rejected.items())),
        "tries": figures.tries,
        "shards": figures.shards,
        "bytes": figures.bytes,
        "bytes_left": figures.bytes_left and round(figures.bytes_left),
        "bytes_free": figures.free,
        "seconds_per_try": {k: round(v / max(figures.tries, 1), 4) for k, v in figures.seconds.items()},
        "hours_left": hours and round(hours, 3),
        "groups": {k: vars(g) for k, g in sorted(figures.groups.items())},
        "made": {k: dict(v) for k, v in figures.made.items()},
        "scores": {
            k: {f"p{q}": round(float(np.percentile(v, q)), 4) for q in PERCENTILES}
            for k, v in figures.accepted.items()
        },
    }


def stats_command(
    folder: Annotated[str, typer.Argument(metavar="SET", help="Folder or bucket prefix of a set.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("stats.html"),
    pictures: Annotated[int, typer.Option(min=0, max=500, help="Pictures on the contact sheet.")] = 60,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that go on making the set; for the hours left.")
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object too.")
    ] = False,
) -> None:
    """Write one self-contained page about a set, finished or not. Only a few pictures are read."""
    from data_gen.stats_page import save_page

    storage = Storage(folder)
    figures = read_figures(storage)
    save_page(figures, sample_pictures(storage, pictures), output, processes)
    if as_json:
        print(json.dumps(report(figures, processes)))
    else:
        print(f"wrote {output}: {figures.pictures + figures.in_work} of {figures.asked} pictures")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 with one line when something is wrong."""
    return run_command(stats_command, argv, "dd3g data stats")
