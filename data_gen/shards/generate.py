"""Makes a set with any number of processes and machines; killed and started again, it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from data_gen.progress import Progress
from data_gen.shards.dataset import PROMPTS, DatasetSpec, PictureBackend, store_prompts
from data_gen.shards.deduplicate import plan
from data_gen.shards.index import write_index
from data_gen.shards.manifest import ShardManifest, finished_shards, shard_name
from data_gen.shards.options import check_options, started
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.shard_worker import ShardWorker
from dd3g.errors import UserError

AGAIN = "start the same command again when they are done"


def run(job: DatasetSpec, ranks: ProcessGroup, progress: Progress) -> dict[str, Any]:
    """Make what this rank owns of a set, then settle duplicates together with the others.

    Rank r of R owns every R-th shard from r on. Nothing is ever written by two ranks: rank 0 alone writes
    what is about the whole set. Processes of one launch wait for each other; a rank of a launch of its own that
    finds the others' shards unfinished says so in its report.

    Args:
        job: the set.
        ranks: which process this is.
        progress: is told how far it is.

    Returns:
        {"output", "complete", "drawn" (pictures of shards that this rank finished in this run), "seconds",
        "waiting" (a sentence when others are not done)} and, when the set is complete, what `write_index`
        returns.

    Raises:
        UserError: when the place cannot be written, was started with other options, or holds damaged files.
    """
    start = time.perf_counter()
    with job.storage.claimed(f"rank-{ranks.rank}"):
        report = _run(job, ranks, progress)
    return report | {"seconds": round(time.perf_counter() - start, 1)}


def _run(job: DatasetSpec, ranks: ProcessGroup, progress: Progress) -> dict[str, Any]:
    _prepare(job, ranks)
    mine = list(range(ranks.rank, job.shards, ranks.world))
    with ExitStack() as stack, progress:
        workshop = _opened_once(job, ranks, stack)
        drawn = _make(job, mine, workshop, progress)
        ranks.wait()
        waiting, redrawn = _settle(job, mine, workshop, ranks, progress)
    report: dict[str, Any] = {"output": str(job.storage), "complete": not waiting, "drawn": drawn + redrawn}
    if not waiting and ranks.rank == 0:
        report |= write_index(job.storage)
        job.storage.sweep("parts")
        job.storage.sweep("")
    ranks.wait()
    return report | {"waiting": waiting}


def _prepare(job: DatasetSpec, ranks: ProcessGroup) -> None:
    if not job.prompts:
        raise UserError("there are no prompts: give a file that holds some")
    ids = set()
    for prompt in job.prompts:
        if prompt.id in ids:
            raise UserError(f"the prompt {prompt.id} ({prompt.text[:60]!r}) is there twice: drop one of them")
        ids.add(prompt.id)
    job.storage.check_writable(f".rank-{ranks.rank}.tmp")
    if ranks.rank == 0:
        check_options(job.storage, job.options, write=True)
        if not started(job.storage) or not job.storage.exists(PROMPTS):
            store_prompts(job.storage, job.prompts)
    ranks.wait()
    check_options(job.storage, job.options, write=False)


def _opened_once(job: DatasetSpec, ranks: ProcessGroup, stack: ExitStack) -> Callable[[], PictureBackend]:
    """Gives the workshop; the model is loaded only when there is something to draw."""
    found: list[PictureBackend] = []

    def workshop() -> PictureBackend:
        if not found:
            opened = stack.enter_context(job.workshop())
            f = job.filters
            if f.clip or f.aesthetic or f.safety:
                from data_gen.filters.learned_scores import load_learned_scores

                opened = replace(opened, scores=load_learned_scores(f, ranks.device(job.device)))
            found.append(opened)
        return found[0]

    return workshop


def _make(
    job: DatasetSpec, mine: list[int], workshop: Callable[[], PictureBackend], progress: Progress
) -> int:
    finished = set(finished_shards(job.storage))
    left = set(job.storage.names("parts"))
    before = sum(len(job.owned(s)) for s in mine if s in finished)
    progress.phase("pictures", sum(len(job.owned(s)) for s in mine), before)
    drawn = 0
    for shard in mine:
        line = ShardWorker(job, shard, workshop, progress.advance)
        if shard not in finished:
            drawn += line.make().count
        elif (
            shard_name(shard) in left
        ):  # killed before the parts were gone, or while duplicates were replaced
            line.clean(ShardManifest.read(job.storage, shard).round)
    return drawn


def _settle(
    job: DatasetSpec,
    mine: list[int],
    workshop: Callable[[], PictureBackend],
    ranks: ProcessGroup,
    progress: Progress,
) -> tuple[str, int]:
    """Replace duplicates until there are none; returns why that must wait for others, and new pictures."""
    drawn = 0
    while True:
        now = plan(job)
        ranks.wait()  # until all have planned: what one replaces must not change another's plan
        if now.unfinished:
            return f"{_shards(now.unfinished)} of other ranks to be made: {AGAIN}", drawn
        if not now.losers:
            return "", drawn
        due = [shard for shard in mine if shard in now.losers]
        progress.phase(f"duplicates, round {now.round}", sum(len(now.losers[s]) for s in due))
        for shard in due:
            line = ShardWorker(job, shard, workshop, progress.advance)
            sidecar = line.replace(now.losers[shard], now.round)
            drawn += sum(r["round"] == now.round for r in sidecar.records)
        ranks.wait()
        if not due and not ranks.together:
            return f"{_shards(list(now.losers))} of other ranks to be rid of duplicates: {AGAIN}", drawn


def _shards(numbers: list[int]) -> str:
    first = shard_name(min(numbers))
    return f"{len(numbers)} shards (first {first})" if len(numbers) > 1 else f"one shard ({first})"
