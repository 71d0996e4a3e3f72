"""Check a dataset: every picture decodes, counts and checksums agree, nothing appears twice.

dd3g data verify SET
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from data_gen.filters.duplicates import near_duplicates, perceptual_hash
from data_gen.shards.dataset import OPTIONS, PROMPTS, options_fingerprint, read_options, stored_prompts
from data_gen.shards.index import CARD, INDEX, summarize, write_index
from data_gen.shards.manifest import CHUNKS, ShardManifest, finished_shards, shard_name
from data_gen.shards.storage import Storage, checksum
from dd3g.command.progress import Progress, print_first
from dd3g.command.run import Json, command_line
from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.picture.framing import SOLID
from dd3g.processes import usable_cores

SHOWN = 20  # problems that are printed
_RESUME = "run the command that makes the set again"


def verify(
    storage: Storage, threads: int = 1, write: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Look at everything in a dataset, at as many shards at once as `threads` says.

    With `write`, index.json and the card are written anew when all else is well.

    Returns:
        {"output", "shards", "pictures", "missing", "problems" (sentences), "ok"}.

    Raises:
        UserError: when this is not a dataset.
    """
    progress, options = progress or Progress(show=False), read_options(storage)
    problems = list(_strays(storage, options))
    shards: list[int] = []  # whose manifest is as it should be
    pictures: list[tuple[str, int]] = []  # id and hash
    missing: set[str] = set()
    for number in finished_shards(storage):
        try:
            manifest = ShardManifest.read(storage, number)
        except UserError as error:
            problems.append(str(error))
            continue
        shards.append(number)
        pictures += [(r["id"], int(r["hash"], 16)) for r in manifest.records]
        missing |= manifest.missing.keys()
        if "sets" not in options and manifest.options != options_fingerprint(options):
            problems.append(f"{manifest.tar} was made with other options than the set")
    problems += _doubles(pictures, options.get("filters.duplicate_distance", -1))
    problems += _prompts(storage, {id for id, _ in pictures}, missing)
    with progress, ThreadPoolExecutor(threads) as pool:
        progress.phase("pictures", len(pictures))
        for count, found in pool.map(partial(_look_at, storage), shards):
            progress.advance(count)
            problems += found
    if write and not problems:
        write_index(storage)
    elif not problems or storage.exists(INDEX):
        problems += _index(storage)
    return {
        "output": str(storage),
        "shards": len(shards),
        "pictures": len(pictures),
        "missing": len(missing),
        "problems": problems,
        "ok": not problems,
    }


def _strays(storage: Storage, options: dict[str, Any]) -> Iterator[str]:
    """Shards that should be there and are not, and files of unfinished ones."""
    names = storage.names()
    expected = options.get("shards", 0)
    if "shard_size" in options and PROMPTS in names:
        expected = -(-storage.read(PROMPTS).count(b"\n") // options["shard_size"])
    stems = [shard_name(number) for number in range(expected)]
    known = dict.fromkeys(f"{stem}{suffix}" for stem in stems for suffix in (".tar", ".json"))
    present = set(names)
    yield from (f"{name} is not there: {_RESUME}" for name in known if name not in present)
    for name in names:
        if name.startswith("pictures-") and f"{name.rpartition('.')[0]}.tar" not in known:
            yield f"{name} does not belong to the set: move it away"
    for name in storage.names(CHUNKS):
        if storage.names(f"{CHUNKS}/{name}"):  # some file systems keep empty folders
            yield f"{CHUNKS}/{name} belongs to an unfinished shard: {_RESUME}"


def _doubles(pictures: list[tuple[str, int]], distance: int) -> list[str]:
    ids = [id for id, _ in pictures]
    problems = [f"{i} appears {n} times" for i, n in Counter(ids).items() if n > 1]
    if distance >= 0:
        hashes = np.array([value for _, value in pictures], np.uint64)
        twins = zip(ids, near_duplicates(hashes, distance).tolist(), strict=True)
        problems += [f"{i} nearly repeats {ids[twin]}: {_RESUME}" for i, twin in twins if twin >= 0]
    return problems


def _prompts(storage: Storage, found: set[str], missing: set[str]) -> list[str]:
    """Each prompt has a picture or is known to be missing, and there is nothing else."""
    if not storage.exists(PROMPTS):
        return [f"{PROMPTS} is not there: {_RESUME}"]
    try:
        asked = {p.id for p in stored_prompts(storage)}
    except UserError as error:
        return [str(error)]
    problems = [f"{i} is not a prompt of the set" for i in sorted((found | missing) - asked)]
    problems += [f"{i} is both present and listed as missing" for i in sorted(found & missing)]
    if lost := sorted(asked - found - missing):
        problems.append(f"{len(lost)} prompts have neither picture nor reason, first {lost[0]}: {_RESUME}")
    return problems


def _look_at(storage: Storage, number: int) -> tuple[int, list[str]]:
    """Pictures looked at, and what is wrong with a shard."""
    try:
        manifest = ShardManifest.read(storage, number)
        with storage.reading(manifest.tar) as [path]:
            return manifest.count, list(_shard_problems(path, manifest))
    except UserError as error:
        return 0, [str(error)]


def _shard_problems(path: Path, manifest: ShardManifest) -> Iterator[str]:
    tar = manifest.tar
    try:
        found = checksum(path)
    except OSError as error:
        yield f"{tar} cannot be read ({error.strerror or error}): delete it and its .json, then {_RESUME}"
        return
    if found != (manifest.bytes, manifest.sha256):
        yield f"{tar} has another checksum than its .json: delete both, then {_RESUME}"
    try:
        shards = Shards(path)
    except UserError:
        yield f"{tar} is torn or damaged: delete it and its .json, then {_RESUME}"
        return
    if [shards.key(i) for i in range(len(shards))] != [r["id"] for r in manifest.records]:
        yield f"{tar} holds other pictures than its .json lists: delete both, then {_RESUME}"
        return
    for i, record in enumerate(manifest.records):
        if problem := _sample_problem(shards[i], record):
            yield f"{record['id']} in {tar} {problem}"


def _sample_problem(sample: dict[str, Any], known: dict[str, Any]) -> str:
    try:
        record = json.loads(sample["json"])
        different = [k for k in ("id", "seed", "attempt", "hash") if record[k] != known[k]]
        if different:
            return f"has another {different[0]} than the shard's .json"
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
        return []  # reported already
    return [] if same else [f"{INDEX} does not describe this set: {advice}"]


def verify_command(
    folder: Annotated[str, typer.Argument(metavar="SET", help=f"Folder or bucket prefix with {OPTIONS}.")],
    threads: Annotated[int, typer.Option(min=1, help="Shards checked at once.")] = usable_cores(),
    write: Annotated[
        bool, typer.Option("--write-index", help="Rewrite index.json and README.md when all else is intact.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every picture, count and checksum of a set. Exit code 1: something is wrong."""
    start = time.perf_counter()
    report = verify(Storage(folder), threads, write, Progress(not as_json))
    report["seconds"] = round(time.perf_counter() - start, 1)
    if as_json:
        print(json.dumps(report))
    else:
        problems = report["problems"]
        lines = [f"error: {problem}" for problem in problems]
        print_first(lines, SHOWN, "error: {} more problems; --json lists all")
        print(
            f"{'good' if report['ok'] else 'BAD'}: {report['pictures']} pictures in {report['shards']} "
            f"shards, {report['missing']} missing, {len(problems)} problems ({report['seconds']} s)"
        )
    if not report["ok"]:
        raise typer.Exit(1)


main = command_line(verify_command, "dd3g data verify")
