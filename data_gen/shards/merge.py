"""Several datasets to one.

dd3g data merge SET SET … --output SET
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer

from data_gen.filters.duplicates import near_duplicates
from data_gen.filters.rules import DUPLICATE
from data_gen.prompts.lists import Prompt, to_jsonl
from data_gen.shards.dataset import PROMPTS, check_options, read_options, stored_prompts
from data_gen.shards.index import INDEX, missing_sentence, write_index
from data_gen.shards.manifest import ShardManifest, finished_shards
from data_gen.shards.storage import Storage
from dd3g.command.progress import Progress, print_first
from dd3g.command.run import Json, command_line
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.shards import Shards

SHOWN = 10  # colliding ids that are printed


def merge(
    sources: Sequence[Storage], output: Storage, distance: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Copy datasets into a new one; killed and started again, it resumes.

    Where several datasets have a picture of one id, and where pictures of several are near duplicates, that
    of the first stays. Near duplicates differ in up to `distance` bits of their perceptual hashes; below 0
    they are not looked for.

    Returns:
        What `write_index` returns, and "output", "collisions" (ids) and "duplicates" (ids).

    Raises:
        UserError: for a source that is not complete or damaged, or an output of another merge.
    """
    progress = progress or Progress(show=False)
    if str(output) in map(str, sources):
        raise UserError(f"{output} is one of the sets to merge: give another --output")
    checksums = [_checksums(source) for source in sources]
    shards = [(source, number) for source in sources for number in finished_shards(source)]
    taken, collisions, duplicates = _choose((ShardManifest.read(*shard) for shard in shards), distance)
    # The first one always; of another, earlier sets may have all.
    used = sorted({*range(len(shards[:1])), *(at for at, _ in taken.values())})
    options = {"sets": checksums, "shards": len(used), "filters.duplicate_distance": distance}
    check_options(output, options, write=True)
    prompts: dict[str, Prompt] = {}
    for source in sources:
        prompts = {p.id: p for p in stored_prompts(source)} | prompts
    output.write(PROMPTS, to_jsonl(prompts.values()))
    present = set(finished_shards(output))
    with progress:
        progress.phase("pictures", sum(not reason for _, reason in taken.values()))
        for number, at in enumerate(used):
            source, shard = shards[at]
            old = ShardManifest.read(source, shard)
            records = [record for record in old.records if taken[record["id"]] == (at, "")]
            if number not in present:
                listed = (*old.missing, *(record["id"] for record in old.records))
                missing = {id: taken[id][1] for id in listed if taken[id][0] == at and taken[id][1]}
                new = replace(old, shard=number, records=records, missing=missing, made=dict(old.made))
                _copy(source, old, output, new)
            progress.advance(len(records))
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
            f"{source}/{INDEX} is damaged ({error}): write it with dd3g data verify --write-index"
        ) from error


def _choose(
    manifests: Iterable[ShardManifest], distance: int
) -> tuple[dict[str, tuple[int, str]], list[str], list[str]]:
    """What the merged dataset takes.

    Returns:
        id -> number of the manifest it is taken from, and why it has no picture, "" where it has one; ids
        with a picture in more than one manifest; ids of pictures that nearly repeat an earlier one.
    """
    taken: dict[str, tuple[int, str]] = {}
    hashes: dict[str, int] = {}  # of those with a picture
    collisions: dict[str, None] = {}
    for number, manifest in enumerate(manifests):
        for record in manifest.records:
            if record["id"] in hashes:
                collisions[record["id"]] = None
            else:
                taken[record["id"]], hashes[record["id"]] = (number, ""), int(record["hash"], 16)
        for id, reason in manifest.missing.items():
            taken.setdefault(id, (number, reason))
    duplicates: list[str] = []
    if distance >= 0:
        twins = near_duplicates(np.array([*hashes.values()], np.uint64), distance)
        duplicates = [id for id, twin in zip(hashes, twins.tolist(), strict=True) if twin >= 0]
    taken |= {id: (taken[id][0], DUPLICATE) for id in duplicates}
    return taken, list(collisions), duplicates


def _copy(source: Storage, old: ShardManifest, output: Storage, new: ShardManifest) -> None:
    """Write a shard of the merged dataset: what it takes of a shard of a source."""
    wanted = {record["id"] for record in new.records}
    with source.reading(old.tar) as [path]:
        shards = Shards(path)
        at = {shards.key(i): i for i in range(len(shards)) if shards.key(i) in wanted}
        if lacking := wanted - set(at):
            raise UserError(f"{source}/{old.tar} lacks {min(lacking)}: dd3g data verify explains it")
        new.write_tar(output, (shards[i] for i in at.values()))
    new.write(output)


def merge_command(
    sets: Annotated[list[str], typer.Argument(metavar="SET", help="Complete sets, the most wanted first.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder or bucket prefix of the merged set.")],
    distance: Annotated[
        int | None,
        typer.Option(
            min=-1, max=62, help="Differing bits of near duplicates; -1: none are. Default: the first set's."
        ),
    ] = None,
    as_json: Json = False,
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
    lines = [f"warning: {id} is in more than one set: kept that of the first" for id in collisions]
    print_first(lines, SHOWN, "warning: so are {} more ids; --json lists all")
    missing = missing_sentence(report["missing"])
    print(
        f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in {output}; "
        f"{len(collisions)} ids collided, {len(report['duplicates'])} near duplicates left out"
        f"{'; ' + missing if missing else ''} ({report['seconds']} s)"
    )


main = command_line(merge_command, "dd3g data merge")
