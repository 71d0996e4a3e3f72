"""Several datasets to one.

python -m data_gen merge SET SET … --output SET
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer

from data_gen.filters.duplicates import near_duplicates
from data_gen.filters.rules import DUPLICATE
from data_gen.prompts.lists import Prompt, to_jsonl
from data_gen.shards.chunks import Sample
from data_gen.shards.dataset import PROMPTS, stored_prompts
from data_gen.shards.index import INDEX, missing_sentence, write_index
from data_gen.shards.manifest import ShardManifest, finished_shards, read_manifests, tally
from data_gen.shards.options import check_options, read_options
from data_gen.shards.storage import Storage
from dd3g.command import run_command
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.shards import Shards
from dd3g.progress import Progress

SHOWN = 10  # colliding ids that are printed


def merge(
    sources: Sequence[Storage], output: Storage, distance: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Copy datasets into a new one; killed and started again, it resumes.

    Where several datasets have a picture of one id, and where pictures of several are near duplicates, that
    of the first stays.

    Args:
        sources: complete datasets.
        output: of the merged one.
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
    shards = [(source, manifest) for source in sources for manifest in read_manifests(source)]
    merged, collisions, duplicates = _choose([manifest for _, manifest in shards], distance)
    options = {"sets": checksums, "shards": len(shards), "filters.duplicate_distance": distance}
    check_options(output, options, write=True)
    prompts: dict[str, Prompt] = {}
    for source in sources:
        prompts = {p.id: p for p in stored_prompts(source)} | prompts
    output.write(PROMPTS, to_jsonl(prompts.values()))
    present = set(finished_shards(output))
    with progress:
        progress.phase("pictures", sum(manifest.count for manifest in merged))
        for (source, old), new in zip(shards, merged, strict=True):
            if new.shard not in present:
                _copy(source, old, output, new)
            progress.advance(new.count)
    output.sweep("")
    report = {"output": str(output), "collisions": collisions, "duplicates": duplicates}
    return report | write_index(output)


def _checksums(source: Storage) -> str:
    """What identifies a dataset: a hash of the checksums of its shards."""
    read_options(source)
    if not source.exists(INDEX):
        raise UserError(f"{source} is not complete, it has no {INDEX}: run the command that makes it again")
    try:
        return fingerprint("\n".join(s["sha256"] for s in json.loads(source.read(INDEX))["shards"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source}/{INDEX} is damaged ({error}): write it with python -m data_gen verify --write-index"
        ) from error


def _choose(
    manifests: list[ShardManifest], distance: int
) -> tuple[list[ShardManifest], list[str], list[str]]:
    """Manifests of the merged shards, ids with a picture in several sources, and ids of near duplicates."""
    first: dict[str, tuple[int, int]] = {}  # id -> shard of the merged dataset that takes it, hash
    missing: dict[str, tuple[int, str]] = {}  # id -> the shard that tells so, and the reason
    collisions: dict[str, None] = {}
    for number, manifest in enumerate(manifests):
        for record in manifest.records:
            if first.setdefault(record["id"], (number, int(record["hash"], 16)))[0] != number:
                collisions[record["id"]] = None
        for id, reason in manifest.missing.items():
            missing.setdefault(id, (number, reason))
    duplicates: list[str] = []
    if distance >= 0:
        twins = near_duplicates(np.array([h for _, h in first.values()], np.uint64), distance)
        duplicates = [id for id, twin in zip(first, twins.tolist(), strict=True) if twin >= 0]
    missing = {id: at for id, at in missing.items() if id not in first}
    missing |= {id: (first.pop(id)[0], DUPLICATE) for id in duplicates}
    merged = []
    for number, old in enumerate(manifests):
        records = [r for r in old.records if first.get(r["id"], (-1,))[0] == number]
        ids = (*old.missing, *(r["id"] for r in old.records))
        lost = {id: missing[id][1] for id in ids if id in missing and missing[id][0] == number}
        merged.append(replace(old, shard=number, count=len(records), records=records, missing=lost))
    return merged, list(collisions), duplicates


def _copy(source: Storage, old: ShardManifest, output: Storage, new: ShardManifest) -> None:
    """Write a shard of the merged dataset: what it takes of a shard of a source."""
    made: list[dict[str, Any]] = []
    wanted = {record["id"] for record in new.records}
    with source.reading(old.tar) as [path]:
        shards = Shards(path)
        at = {shards.key(i): i for i in range(len(shards)) if shards.key(i) in wanted}
        if lacking := wanted - set(at):
            raise UserError(f"{source}/{old.tar} lacks {min(lacking)}: python -m data_gen verify tells more")

        def samples() -> Iterator[Sample]:
            for i in at.values():
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
    return run_command(merge_command, argv, "python -m data_gen merge")
