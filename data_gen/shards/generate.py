"""Generates a dataset with any number of processes and machines; killed and restarted, it resumes.

`run` is the command line of whatever does so.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

from data_gen.prompts.lists import to_jsonl
from data_gen.shards.dataset import PROMPTS, DatasetSpec, PictureBackend, check_options
from data_gen.shards.deduplicate import plan
from data_gen.shards.index import missing_sentence, write_index
from data_gen.shards.manifest import CHUNKS, ShardManifest, finished_shards, shard_name
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.shard_worker import ShardWorker
from dd3g.command.configuration import launch
from dd3g.command.progress import Progress, print_first
from dd3g.errors import UserError

WAITING = 3  # exit code
SHOWN = 20  # unreadable pictures that are named at the end
Generate = Callable[[Any, ProcessGroup, Progress], dict[str, Any]]
AGAIN = "start the same command again when they are done"


def generate_shards(spec: DatasetSpec, group: ProcessGroup, progress: Progress) -> dict[str, Any]:
    """Make the shards that this rank owns, then replace near duplicates together with the others.

    Rank r of R owns every R-th shard from r on. Nothing is ever written by two ranks: rank 0 alone writes
    what is about the whole dataset. Ranks of one launch wait for each other; a rank of a launch of its own
    that finds the others' shards unfinished says so in its report.

    Returns:
        {"output", "complete", "drawn" (pictures of shards that this rank finished in this run), "seconds",
        "waiting" (a sentence when others are not done)} and, when the dataset is complete, what `write_index`
        returns.

    Raises:
        UserError: when the place cannot be written, was started with other options, or holds damaged files.
    """
    start, storage = time.perf_counter(), spec.storage
    with storage.claimed(f"rank-{group.rank}"):
        _prepare(spec, group)
        drawn, waiting = _work(spec, group, progress)
        report: dict[str, Any] = {"output": str(storage), "complete": not waiting, "drawn": drawn}
        if not waiting and group.rank == 0:
            report |= write_index(storage)
            storage.sweep(CHUNKS)
            storage.sweep("")
        group.wait()
    return report | {"waiting": waiting, "seconds": round(time.perf_counter() - start, 1)}


def _prepare(spec: DatasetSpec, group: ProcessGroup) -> None:
    if not spec.prompts:
        raise UserError("there are no prompts: give a file that holds some")
    counts = Counter(prompt.id for prompt in spec.prompts)
    if twice := next((p for p in spec.prompts if counts[p.id] > 1), None):
        raise UserError(f"the prompt {twice.id} ({twice.text[:60]!r}) appears twice: drop one of them")
    spec.storage.check_writable(f".rank-{group.rank}.tmp")
    if group.rank == 0:
        check_options(spec.storage, spec.options, write=True)
        begun = finished_shards(spec.storage) or spec.storage.names(CHUNKS)
        if not begun or not spec.storage.exists(PROMPTS):
            spec.storage.write(PROMPTS, to_jsonl(spec.prompts))
    group.wait()
    check_options(spec.storage, spec.options, write=False)


def _with_learned_scores(spec: DatasetSpec, group: ProcessGroup, backend: PictureBackend) -> PictureBackend:
    filters = spec.filters
    if not (filters.clip or filters.aesthetic or filters.safety):
        return backend
    from data_gen.filters.learned_scores import LearnedScores

    return replace(backend, scores=LearnedScores(filters, group.device(spec.device)))


def _work(spec: DatasetSpec, group: ProcessGroup, progress: Progress) -> tuple[int, str]:
    """Make shards, then replace duplicates until there are none; returns new pictures and what must wait."""
    drawn, mine = 0, range(group.rank, spec.shards, group.world)
    with ExitStack() as stack, progress:

        @cache  # the model is loaded once, and only when there is something to draw
        def backend() -> PictureBackend:
            return _with_learned_scores(spec, group, stack.enter_context(spec.backend()))

        def worker(shard: int) -> ShardWorker:
            return ShardWorker(spec, shard, backend, progress.advance)

        begun = set(spec.storage.names(CHUNKS))
        for shard in finished_shards(spec.storage):
            if shard in mine and shard_name(shard) in begun:  # killed before its chunks were gone
                worker(shard).clean(ShardManifest.read(spec.storage, shard).round)
        while True:
            now = plan(spec)
            group.wait()  # until all have planned: what one replaces must not change another's plan
            left = dict.fromkeys(now.unfinished) or now.losers
            if not left:
                return drawn, ""
            due = [shard for shard in mine if shard in left]
            if not due and not group.together:
                first = shard_name(min(left))
                shards = f"{len(left)} shards (first {first})" if len(left) > 1 else f"one shard ({first})"
                work = "replace duplicates in" if now.losers else "make"
                return drawn, f"other ranks to {work} {shards}: {AGAIN}"
            if now.losers:
                progress.phase(f"duplicates, round {now.round}", sum(len(now.losers[shard]) for shard in due))
            else:
                sizes = {shard: len(spec.owned(shard)) for shard in mine}
                total = sum(sizes.values())
                progress.phase("pictures", total, total - sum(sizes[shard] for shard in due))
            for shard in due:
                one = worker(shard)
                manifest = one.replace(now.losers[shard], now.round) if now.losers else one.make()
                drawn += sum(record["round"] == now.round for record in manifest.records)
            group.wait()


def run(generate: Generate, schema: type, name: str, argv: Sequence[str] | None = None) -> int:
    """Parse the words, generate, and report; returns the exit code.

    0: done; 1: done, but some pictures could not be opened; 2: something is wrong, as one line explains; 3:
    all is well, but other ranks are not done, and the same command must be started again when they are.

    Args:
        generate: makes the dataset and returns the report of `generate_shards`.
        schema: the configuration, with `rank`, `world` and `json` among its keys.
        name: of the command.
        argv: words after the command's name; None takes the process's.
    """

    def work(config: Any) -> int:
        group = ProcessGroup.find(config.rank, config.world)
        try:
            report = generate(config, group, Progress(group.rank == 0 and not config.json))
        finally:
            group.leave()
        unreadable = report.get("unreadable", [])
        if group.rank == 0 or not group.together:
            print(json.dumps(report) if config.json else _sentence(report))
            if unreadable and not config.json:
                lines = [f"error: {name} could not be opened" for name in unreadable]
                print_first(lines, SHOWN, "error: {} more could not be opened; --json names them")
                print("to include them, repair them and collect into another --output", file=sys.stderr)
        return WAITING if report["waiting"] else 1 if unreadable else 0

    return launch(work, schema, argv, name)


def _sentence(report: dict[str, Any]) -> str:
    """What a report comes to, for people."""
    if report["waiting"]:
        return f"{report['drawn']} more pictures in {report['output']}; waiting for {report['waiting']}"
    if "pictures" not in report:
        return f"the set in {report['output']} is complete; rank 0 writes its index"
    found = f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in "
    missing = missing_sentence(report["missing"])
    return f"{found}{report['output']} ({report['seconds']} s){'; ' + missing if missing else ''}"
