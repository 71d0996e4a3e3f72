"""Check a set: every picture decodes, counts and checksums agree, no id and no picture is there twice.

dd3g data verify SET
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from data_gen.config import OPTIONS, fingerprint, read_options
from data_gen.duplicates import SOLID, near_duplicates, perceptual_hash
from data_gen.index import CARD, INDEX, summarize, write_index
from data_gen.job import PROMPTS, stored_prompts
from data_gen.progress import Progress
from data_gen.sidecar import Sidecar, finished_shards, shard_name
from data_gen.storage import Storage
from dd3g.command import run_command
from dd3g.errors import UserError
from dd3g.io.shards import Shards

SHOWN = 20  # problems that are printed


def verify(
    storage: Storage, threads: int = 1, write: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Look at everything in a set.

    Args:
        storage: of the set.
        threads: shards looked at at once.
        write: write index.json and the card anew when all else is well.
        progress: is told how many pictures were looked at.

    Returns:
        {"output", "shards", "pictures", "missing", "problems" (sentences), "ok"}.

    Raises:
        UserError: when this is not a set.
    """
    progress = progress or Progress(show=False)
    options = read_options(storage)
    names = storage.names()
    problems = list(_strays(storage, names, options))
    sidecars, ids, hashes = [], [], []
    missing: dict[str, str] = {}
    for number in finished_shards(storage):
        try:
            sidecar = Sidecar.read(storage, number)
        except UserError as error:
            problems.append(str(error))
            continue
        sidecars.append(number)
        ids += [r["id"] for r in sidecar.records]
        hashes += [int(r["hash"], 16) for r in sidecar.records]
        missing |= sidecar.missing
        if "sets" not in options and sidecar.options != fingerprint(options):
            problems.append(f"{sidecar.tar} was made with other options than the set")
    problems += _doubles(ids, hashes, options)
    problems += _prompts(storage, ids, missing)
    with progress, ThreadPoolExecutor(threads) as pool:
        progress.phase("pictures", len(ids))
        for count, found in pool.map(lambda number: _look_at(storage, number), sidecars):
            progress.advance(count)
            problems += found
    if write and not problems:
        write_index(storage)
    elif not problems or INDEX in names:
        problems += _index(storage)
    return {
        "output": str(storage),
        "shards": len(sidecars),
        "pictures": len(ids),
        "missing": len(missing),
        "problems": problems,
        "ok": not problems,
    }


def _strays(storage: Storage, names: list[str], options: dict[str, Any]) -> Iterator[str]:
    """Shards that should be there and are not, and files of unfinished ones."""
    present = set(names)
    expected = options.get("shards", 0)
    if "shard_size" in options and PROMPTS in present:
        expected = -(-storage.read(PROMPTS).count(b"\n") // options["shard_size"])
    for number in range(expected):
        for suffix in (".tar", ".json"):
            if shard_name(number) + suffix not in present:
                yield f"{shard_name(number)}{suffix} is not there: {_GO_ON}"
    known = {shard_name(n) for n in range(expected)}
    for name in names:
        if name.startswith("pictures-") and name.rpartition(".")[0] not in known:
            yield f"{name} does not belong to the set: move it away"
    for name in storage.names("parts"):
        if storage.names(f"parts/{name}"):  # some file systems keep empty folders
            yield f"parts/{name} is of a shard that is being made: {_GO_ON}"


_GO_ON = "run the command that makes the set again"


def _doubles(ids: list[str], hashes: list[int], options: dict[str, Any]) -> list[str]:
    problems = [f"{i} is there {n} times" for i, n in Counter(ids).items() if n > 1]
    distance = options.get("filters.duplicate_distance", -1)
    if distance >= 0:
        twins = near_duplicates(np.array(hashes, np.uint64), distance)
        problems += [
            f"{ids[i]} nearly repeats {ids[twins[i]]}: {_GO_ON}" for i in np.flatnonzero(twins >= 0).tolist()
        ]
    return problems


def _prompts(storage: Storage, ids: list[str], missing: dict[str, str]) -> list[str]:
    """Each prompt has a picture or is known to be missing, and there is nothing else."""
    if not storage.exists(PROMPTS):
        return [f"{PROMPTS} is not there: {_GO_ON}"]
    try:
        asked = {p.id for p in stored_prompts(storage)}
    except UserError as error:
        return [str(error)]
    found = set(ids)
    problems = [f"{i} is no prompt of the set" for i in sorted((found | set(missing)) - asked)]
    problems += [f"{i} is both there and missing" for i in sorted(found & set(missing))]
    lost = sorted(asked - found - set(missing))
    if lost:
        problems.append(f"{len(lost)} prompts have neither picture nor reason, first {lost[0]}: {_GO_ON}")
    return problems


def _look_at(storage: Storage, number: int) -> tuple[int, list[str]]:
    """Pictures looked at, and what is wrong with a shard."""
    try:
        sidecar = Sidecar.read(storage, number)
        with storage.reading(sidecar.tar) as [path]:
            return sidecar.count, list(_shard_problems(path, sidecar))
    except UserError as error:
        return 0, [str(error)]


def _shard_problems(path: Path, sidecar: Sidecar) -> Iterator[str]:
    tar = sidecar.tar
    try:
        with open(path, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
    except OSError as error:
        yield f"{tar} cannot be read ({error.strerror or error}): delete it and its .json, then {_GO_ON}"
        return
    if size != sidecar.bytes or sha256 != sidecar.sha256:
        yield f"{tar} has another checksum than its .json: delete both, then {_GO_ON}"
    try:
        shards = Shards(path)
    except UserError:
        yield f"{tar} is torn or damaged: delete it and its .json, then {_GO_ON}"
        return
    if [shards.key(i) for i in range(len(shards))] != [r["id"] for r in sidecar.records]:
        yield f"{tar} holds other pictures than its .json tells: delete both, then {_GO_ON}"
        return
    for i, record in enumerate(sidecar.records):
        if problem := _sample_problem(shards[i], record):
            yield f"{record['id']} in {tar} {problem}"


def _sample_problem(sample: dict[str, Any], known: dict[str, Any]) -> str:
    try:
        record = json.loads(sample["json"])
        different = [k for k in ("id", "seed", "attempt", "hash") if record[k] != known[k]]
        if different:
            return f"has another {different[0]} than the shard's .json tells"
        with Image.open(io.BytesIO(sample["png"]), formats=("PNG",)) as image:
            mode, size = image.mode, image.size
            rgba = np.array(image)  # (S, S, 4)
    except Exception as error:  # Pillow's decoders raise nearly every type there is on damaged data
        return f"cannot be decoded ({error or type(error).__name__})"
    if mode != "RGBA" or size != (record["size"], record["size"]):
        return f"is {mode} of {size[0]}x{size[1]} pixels, not RGBA of {record['size']}x{record['size']}"
    if rgba[..., 3].max() < 128 or rgba[..., 3].min() >= SOLID:
        return f"has no valid matte: its alpha lies between {rgba[..., 3].min()} and {rgba[..., 3].max()}"
    if f"{perceptual_hash(rgba):016x}" != record["hash"]:
        return "has a hash that is not the picture's"
    return ""


def _index(storage: Storage) -> list[str]:
    advice = "write it with verify --write-index"
    if not storage.exists(INDEX) or not storage.exists(CARD):
        return [f"{INDEX} or {CARD} is not there: {advice}"]
    try:
        same = json.loads(storage.read(INDEX)) == json.loads(json.dumps(summarize(storage)))
    except ValueError:
        same = False
    except UserError:
        return []  # told already
    return [] if same else [f"{INDEX} does not tell of this set: {advice}"]


def verify_command(
    folder: Annotated[str, typer.Argument(metavar="SET", help=f"Folder or bucket prefix with {OPTIONS}.")],
    threads: Annotated[int, typer.Option(min=1, help="Shards looked at at once.")] = os.cpu_count() or 1,
    write: Annotated[
        bool, typer.Option("--write-index", help="Write index.json and README.md anew when all else is well.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Check every picture, count and checksum of a set. Exit code 1: something is wrong."""
    start = time.perf_counter()
    report = verify(Storage(folder), threads, write, Progress(not as_json))
    report["seconds"] = round(time.perf_counter() - start, 1)
    if as_json:
        print(json.dumps(report))
    else:
        problems = report["problems"]
        for problem in problems[:SHOWN]:
            print(f"error: {problem}", file=sys.stderr)
        if len(problems) > SHOWN:
            print(f"error: {len(problems) - SHOWN} more problems; --json lists all", file=sys.stderr)
        print(
            f"{'good' if report['ok'] else 'BAD'}: {report['pictures']} pictures in {report['shards']} "
            f"shards, {report['missing']} missing, {len(problems)} problems ({report['seconds']} s)"
        )
    if not report["ok"]:
        raise typer.Exit(1)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 with one line when something is wrong."""
    return run_command(verify_command, argv, "dd3g data verify")
