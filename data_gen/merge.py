"""Several sets to one.

dd3g data merge SET SET … --output SET
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import typer

from data_gen.config import check_options, read_options
from data_gen.duplicates import near_duplicates
from data_gen.filters import DUPLICATE
from data_gen.index import INDEX, missing_sentence, write_index
from data_gen.job import store_prompts, stored_prompts
from data_gen.progress import Progress
from data_gen.prompt_lists import Prompt
from data_gen.sidecar import Sidecar, finished_shards, tally
from data_gen.storage import Storage
from dd3g.command import run_command
from dd3g.errors import UserError
from dd3g.io.shards import Shards

SHOWN = 10  # colliding ids that are printed


@dataclass(frozen=True)
class _Choice:
    """What the merged set takes.

    Args:
        shards: (source, its shard), in the order of the merged set.
        kept: ids of pictures -> shard of the merged set that takes them.
        missing: ids without a picture -> shard of the merged set that tells so, and the reason.
        colliding: ids with a picture in more than one source.
        duplicates: ids of pictures that nearly repeat one of an earlier source.
    """

    shards: list[tuple[int, int]]
    kept: dict[str, int]
    missing: dict[str, tuple[int, str]]
    colliding: list[str]
    duplicates: list[str]


def merge(
    sources: Sequence[Storage], output: Storage, distance: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Copy sets into a new one; killed and started again, it goes on.

    Where several sets have a picture of one id, and where pictures of several sets are near duplicates, that
    of the first stays.

    Args:
        sources: complete sets.
        output: of the merged set.
        distance: differing bits of the perceptual hash up to which two pictures are near duplicates; below 0
            they are not looked for.
        progress: is told how many pictures are copied.

    Returns:
        What `write_index` returns, and "output", "collisions" (ids) and "duplicates" (ids).

    Raises:
        UserError: for a source that is not complete or damaged, or an output of another merge.
    """
    progress = progress or Progress(show=False)
    if str(output) in map(str, sources):
        raise UserError(f"{output} is one of the sets to merge: give another --output")
    checksums = [_checksums(source) for source in sources]
    choice = _choose(sources, distance)
    options = {"sets": checksums, "shards": len(choice.shards), "filters.duplicate_distance": distance}
    check_options(output, options, write=True)
    _write_prompts(sources, output)
    present = set(finished_shards(output))
    with progress:
        progress.phase("pictures", len(choice.kept))
        for number, (source, shard) in enumerate(choice.shards):
            old = Sidecar.read(sources[source], shard)
            if number not in present:
                _copy(sources[source], old, output, number, choice)
            progress.advance(sum(choice.kept.get(r["id"]) == number for r in old.records))
    output.sweep("")
    report = {"output": str(output), "collisions": choice.colliding, "duplicates": choice.duplicates}
    return report | write_index(output)


def _checksums(source: Storage) -> str:
    """What identifies a set: a hash of the checksums of its shards."""
    read_options(source)
    if not source.exists(INDEX):
        raise UserError(f"{source} is not complete, it has no {INDEX}: run the command that makes it again")
    try:
        shards = json.loads(source.read(INDEX))["shards"]
        return hashlib.sha256("\n".join(s["sha256"] for s in shards).encode()).hexdigest()[:16]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source}/{INDEX} is damaged ({error}): write it with dd3g data verify --write-index"
        ) from error


def _choose(sources: Sequence[Storage], distance: int) -> _Choice:
    shards: list[tuple[int, int]] = []
    kept: dict[str, int] = {}  # first id -> shard of the merged set
    hashes: list[int] = []
    missing: dict[str, tuple[int, str]] = {}
    colliding: dict[str, None] = {}
    for number, source in enumerate(sources):
        for shard in finished_shards(source):
            shards.append((number, shard))
            sidecar = Sidecar.read(source, shard)
            for record in sidecar.records:
                if record["id"] in kept:
                    colliding[record["id"]] = None
                else:
                    kept[record["id"]] = len(shards) - 1
                    hashes.append(int(record["hash"], 16))
            for id, reason in sidecar.missing.items():
                missing.setdefault(id, (len(shards) - 1, reason))
    duplicates: dict[str, int] = {}  # id -> shard of the merged set
    if distance >= 0:
        twins = near_duplicates(np.array(hashes, np.uint64), distance)
        ids = list(kept)
        duplicates = {ids[i]: kept.pop(ids[i]) for i in np.flatnonzero(twins >= 0).tolist()}
    missing = {id: at for id, at in missing.items() if id not in kept and id not in duplicates}
    missing |= {id: (shard, DUPLICATE) for id, shard in duplicates.items()}
    return _Choice(shards, kept, missing, list(colliding), list(duplicates))


def _write_prompts(sources: Sequence[Storage], output: Storage) -> None:
    prompts: dict[str, Prompt] = {}
    for source in sources:
        for prompt in stored_prompts(source):
            prompts.setdefault(prompt.id, prompt)
    store_prompts(output, prompts.values())


def _copy(source: Storage, old: Sidecar, output: Storage, number: int, choice: _Choice) -> None:
    """Write shard `number` of the merged set: what it takes of a shard of a source."""
    records = [r for r in old.records if choice.kept.get(r["id"]) == number]
    new = replace(old, shard=number, count=len(records), records=records)
    mine = [i for i in (*old.missing, *(r["id"] for r in old.records)) if i in choice.missing]
    new.missing = {i: choice.missing[i][1] for i in mine if choice.missing[i][0] == number}
    made: list[dict[str, Any]] = []
    wanted = {r["id"] for r in records}
    with source.reading(old.tar) as [path]:
        shards = Shards(path)
        if lacking := wanted - {shards.key(i) for i in range(len(shards))}:
            raise UserError(f"{source}/{old.tar} lacks {min(lacking)}: dd3g data verify tells more")

        def samples() -> Iterator[dict[str, bytes | str]]:
            for i in range(len(shards)):
                if shards.key(i) in wanted:
                    sample = shards[i]
                    made.append(json.loads(sample["json"]))
                    yield sample

        new.bytes, new.sha256 = output.write_shard(new.tar, samples())
    new.made = tally(made, old.made)
    new.write(output)


def merge_command(
    sets: Annotated[list[str], typer.Argument(metavar="SET…", help="Complete sets, the most wanted first.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder or bucket prefix of the merged set.")],
    distance: Annotated[
        int | None,
        typer.Option(
            min=-1, max=62, help="Differing bits of near duplicates; -1: none are. Default: the first set's."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Copy sets into one; of pictures with one id, and of near duplicates, that of the first set stays."""
    start = time.perf_counter()
    sources = [Storage(s) for s in sets]
    if distance is None:
        distance = read_options(sources[0]).get("filters.duplicate_distance", -1)
    report = merge(sources, Storage(output), distance, Progress(not as_json))
    report["seconds"] = round(time.perf_counter() - start, 1)
    if as_json:
        print(json.dumps(report))
        return
    collisions = report["collisions"]
    for id in collisions[:SHOWN]:
        print(f"warning: {id} is in more than one set: kept that of the first", file=sys.stderr)
    if len(collisions) > SHOWN:
        print(f"warning: {len(collisions) - SHOWN} ids more are; --json lists all", file=sys.stderr)
    missing = missing_sentence(report["missing"])
    print(
        f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in {output}; "
        f"{len(collisions)} ids collided, {len(report['duplicates'])} near duplicates left out"
        f"{'; ' + missing if missing else ''} ({report['seconds']} s)"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 with one line when something is wrong."""
    return run_command(merge_command, argv, "dd3g data merge")
