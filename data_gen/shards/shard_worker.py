"""The line of one shard: draw, matte, filter, commit; killed at any moment, it goes on to the same bytes.

Every prompt is tried until a picture passes or no attempt is left. Tries come in waves: all prompts of the
shard in order, then those that were rejected, and so on. A wave is cut into batches, whose size may change
from run to run, and a batch that is through is committed as one small tar, a part. What comes next is a
function of the parts alone, so a line that starts again after kill -9 loses what was in flight, draws exactly
that again, and nothing else.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

from data_gen.filters.rules import DUPLICATE
from data_gen.shards.chunks import Chunks, finish
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend, seed_of
from data_gen.shards.manifest import MADE, ShardManifest, shard_name, tally
from dd3g.errors import UserError
from dd3g.io.shards import Shards

if TYPE_CHECKING:
    from data_gen.filters.mattes import Matted

KEPT = ("id", "seed", "attempt", "hash", "scores", "group", "style")  # keys of records that it repeats


class ShardWorker:
    """Makes one shard, or replaces some of its pictures.

    Args:
        job: the set.
        shard: number of the shard.
        workshop: gives the open workshop, opening it when it is first asked for.
        advance: is told how many prompts more have a picture or no attempt left.
    """

    def __init__(
        self,
        job: DatasetSpec,
        shard: int,
        workshop: Callable[[], PictureBackend],
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.job, self.shard, self.workshop, self.advance = job, shard, workshop, advance
        self.parts = Chunks(job, shard)
        self._committed = 0.0  # time of the last commit

    def make(self) -> ShardManifest:
        """Make the shard, from wherever an earlier run was killed.

        Returns:
            The sidecar, which has been written.
        """
        fresh = ShardManifest(self.shard, options=self.job.fingerprint)
        return self._run(fresh, {p.id: 0 for p in self.job.owned(self.shard)}, 0)

    def replace(self, losers: set[str], round: int) -> ShardManifest:
        """Try losers again at their next attempt; those without one left go missing.

        Args:
            losers: ids of pictures that repeat an earlier one.
            round: of settling.

        Returns:
            The new sidecar, which has been written.
        """
        old = ShardManifest.read(self.job.storage, self.shard)
        for record in (r for r in old.records if r["id"] in losers):
            kept = {k: record[k] for k in ("id", "seed", "attempt", "scores", "hash", "round")}
            old.rejections.append(kept | {"reason": DUPLICATE, "lost": round})
        tries = {r["id"]: r["attempt"] + 1 for r in old.records if r["id"] in losers}
        old.records = [r for r in old.records if r["id"] not in losers]
        return self._run(old, tries, round)

    def clean(self, round: int) -> None:
        """Delete what the shard holds already, and what a killed run left half-written."""
        self.parts.clean(round)
        self.job.storage.sweep("", shard_name(self.shard) + ".")

    def _run(self, sidecar: ShardManifest, tries: dict[str, int], round: int) -> ShardManifest:
        """Wave after wave until every prompt in `tries` (id -> next attempt) is done; then the shard."""
        self.clean(round - 1)
        journals = self.parts.journals(round)
        accepted: dict[str, str] = {}  # id -> name of the part that holds it
        number = 0
        while wave := self._wave(tries):
            done: list[dict[str, Any]] = []
            at = 0  # of the first try in the wave that is not through
            for journal in journals[number:]:
                if at == len(wave):
                    break
                # Its batch may have had another size.
                size = max(1, len(journal["verdicts"]))
                self.parts.check(wave[at : at + size], journal)
                done.append(journal)
                at += size
            size = self.job.batch_size
            batches = [wave[i : i + size] for i in range(at, len(wave), size)]
            rest = self._produce(batches, round, number + len(done))
            for journal in chain(done, rest):
                sidecar.made = {k: {str(journal["about"].get(k, "")): 0} for k in MADE}
                for verdict in journal["verdicts"]:
                    if verdict["reason"]:
                        tries[verdict["id"]] += 1
                        sidecar.rejections.append({k: v for k, v in verdict.items() if k != "hash"})
                    else:
                        del tries[verdict["id"]]
                        accepted[verdict["id"]] = self.parts.name(round, number)
                        self.advance(1)
                for name, seconds in journal["seconds"].items():
                    sidecar.seconds[name] = sidecar.seconds.get(name, 0.0) + seconds
                number += 1
        self.advance(len(tries))
        self._assemble(sidecar, accepted, round)
        self.clean(round)
        return sidecar

    def _wave(self, tries: Mapping[str, int]) -> list[DrawRequest]:
        return [
            DrawRequest(p, tries[p.id], seed_of(self.job.seed, p.id, tries[p.id]))
            for p in self.job.owned(self.shard)
            if tries.get(p.id, self.job.attempts) < self.job.attempts
        ]

    def _produce(self, batches: list[list[DrawRequest]], round: int, first: int) -> Iterator[dict[str, Any]]:
        """Journals of batch after batch; mattes and filters of earlier ones run behind the drawing."""
        if not batches:
            return
        workshop = self.workshop()
        behind: deque[Future[dict[str, Any]]] = deque()
        self._committed = time.perf_counter()
        # One thread: parts are committed in order, so that what a kill leaves is a beginning.
        with ThreadPoolExecutor(1, "finish") as finisher:
            try:
                for number, batch in enumerate(batches, first):
                    start = time.perf_counter()
                    pictures = workshop.draw(batch)
                    drawing = time.perf_counter() - start
                    if len(pictures) != len(batch):
                        raise RuntimeError(f"asked for {len(batch)} pictures, got {len(pictures)}")
                    mattes = workshop.matte([p for p in pictures if not isinstance(p, str)])
                    reasons = [p if isinstance(p, str) else "" for p in pictures]
                    task = (workshop, batch, reasons, mattes, round, number, drawing)
                    behind.append(finisher.submit(self._finish, *task))
                    while len(behind) > workshop.ahead or (behind and behind[0].done()):
                        yield behind.popleft().result()
                while behind:
                    yield behind.popleft().result()
            except BaseException:
                finisher.shutdown(wait=False, cancel_futures=True)  # a part after a gap would not be used
                raise

    def _finish(
        self,
        workshop: PictureBackend,
        batch: list[DrawRequest],
        reasons: list[str],
        mattes: Future[list[Matted | None]],
        round: int,
        number: int,
        drawing: float,
    ) -> dict[str, Any]:
        matted = mattes.result()
        start = time.perf_counter()
        finished = finish(self.job, workshop, batch, reasons, matted)
        end = time.perf_counter()
        seconds = {"draw": drawing, "finish": end - start, "wall": end - self._committed}
        self._committed = end
        return self.parts.commit(round, number, finished, workshop.about, seconds)

    def _assemble(self, sidecar: ShardManifest, accepted: dict[str, str], round: int) -> None:
        """Write the tar from the parts and what it held already, then the sidecar, in this order."""
        storage, owned = self.job.storage, self.job.owned(self.shard)
        kept = {r["id"]: r for r in sidecar.records}
        sources = sorted(set(accepted.values())) + ([sidecar.tar] if kept else [])
        records: list[dict[str, Any]] = []
        made: list[dict[str, Any]] = []
        with storage.reading(*sources) as paths:
            shards: Any = Shards(paths) if paths else ()
            at: dict[str, int] = {}
            for i in range(len(shards)):
                # A tar whose sidecar was not written any more holds the parts' pictures too.
                if (key := shards.key(i)) in (accepted if shards.where(i).name != sidecar.tar else kept):
                    at[key] = i
            if lost := [i for i in (*accepted, *kept) if i not in at]:
                raise UserError(
                    f"{storage}/{sidecar.tar} lacks {lost[0]}, of which its sidecar tells: "
                    "delete both and run the same command again"
                )

            def samples() -> Iterator[dict[str, bytes | str]]:
                for prompt in (p for p in owned if p.id in at):
                    sample = shards[at[prompt.id]]
                    record = json.loads(sample["json"])
                    records.append(kept.get(prompt.id) or {k: record[k] for k in KEPT} | {"round": round})
                    made.append({k: record.get(k, "") for k in MADE})
                    yield {k: sample[k] for k in ("__key__", "png", "json")}

            sidecar.bytes, sidecar.sha256 = storage.write_shard(sidecar.tar, samples())
        sidecar.count, sidecar.records, sidecar.round = len(records), records, round
        sidecar.made = tally(made, sidecar.made)
        reasons = {r["id"]: r["reason"] for r in sidecar.rejections}
        sidecar.missing = {p.id: reasons[p.id] for p in owned if p.id not in at}
        sidecar.seconds = {k: int(1000 * v) / 1000 for k, v in sidecar.seconds.items()}
        sidecar.write(storage)
