"""Makes one shard: draw, matte, filter, commit; killed at any moment, it resumes to the same bytes.

Every prompt is tried until a picture passes or no attempt is left. Tries come in waves: all prompts of the
shard in order, then those that were rejected, and so on. A wave is cut into batches, whose size may change
from run to run, and each judged batch is committed as one small tar, a chunk. What comes next is a function
of the chunks alone, so a worker that starts again after kill -9 loses what was in flight, draws exactly that
again, and nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_gen.filters.rules import DUPLICATE
from data_gen.shards.chunks import Chunks, review
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend, seed_of
from data_gen.shards.manifest import MADE, ShardManifest, shard_name
from dd3g.errors import UserError
from dd3g.io.shards import Shards

if TYPE_CHECKING:
    from data_gen.filters.mattes import Matted

KEPT = (
    "id",
    "seed",
    "attempt",
    "hash",
    "scores",
    "group",
    "style",
)  # keys of records that a manifest repeats

AHEAD = 2  # batches that may be in work behind the one that is drawn


@dataclass
class ShardWorker:
    """Makes one shard, or replaces some of its pictures."""

    spec: DatasetSpec  # the dataset
    shard: int  # number of the shard
    backend: Callable[[], PictureBackend]  # gives the open backend, opening it when it is first asked for
    # Is called with how many prompts more have a picture or no attempt left
    advance: Callable[[int], None] = lambda count: None

    def __post_init__(self) -> None:
        self.prompts, self.chunks = self.spec.owned(self.shard), Chunks(self.spec, self.shard)
        self._committed = 0.0  # time of the last commit

    def make(self) -> ShardManifest:
        """Make the shard, from wherever an earlier run was killed.

        Returns:
            The manifest, which has been written.
        """
        manifest = ShardManifest(self.shard, options=self.spec.fingerprint)
        return self._run(manifest, {prompt.id: 0 for prompt in self.prompts}, 0)

    def replace(self, losers: set[str], round: int) -> ShardManifest:
        """Try losers again at their next attempt; those without one left go missing.

        Args:
            losers: ids of pictures that repeat an earlier one.
            round: of deduplication.

        Returns:
            The new manifest, which has been written.
        """
        manifest = ShardManifest.read(self.spec.storage, self.shard)
        lost = [record for record in manifest.records if record["id"] in losers]
        for record in lost:
            known = {k: record[k] for k in ("id", "seed", "attempt", "scores", "hash", "round")}
            manifest.rejections.append(known | {"reason": DUPLICATE, "lost": round})
        manifest.records = [record for record in manifest.records if record["id"] not in losers]
        return self._run(manifest, {record["id"]: record["attempt"] + 1 for record in lost}, round)

    def clean(self, round: int) -> None:
        """Delete chunks that the shard holds already, and what a killed run left half-written."""
        self.chunks.clean(round)
        self.spec.storage.sweep("", shard_name(self.shard) + ".")

    def _run(self, manifest: ShardManifest, attempts: dict[str, int], round: int) -> ShardManifest:
        """Wave after wave until every prompt in `attempts` (id -> the next one) is done; then the shard."""
        self.clean(round - 1)
        first, committed = dict(attempts), self.chunks.journals(round)
        for journal in committed:
            self._note(journal, manifest, attempts)
        number = len(committed)
        while wave := self._wave(attempts, first):
            for journal in self._produce(wave, round, number):
                self._note(journal, manifest, attempts)
                number += 1
        self.advance(len(attempts))
        failed = attempts.keys() | manifest.missing
        self._assemble(manifest, [self.chunks.name(round, i) for i in range(number)], failed, round)
        self.clean(round)
        return manifest

    def _wave(self, attempts: dict[str, int], first: dict[str, int]) -> list[DrawRequest]:
        """The next try of each prompt that has had the fewest in this run, which began at `first`.

        The fewest, since chunks of a run before may end amid a wave.
        """
        left = [p for p in self.prompts if attempts.get(p.id, self.spec.attempts) < self.spec.attempts]
        fewest = min((attempts[p.id] - first[p.id] for p in left), default=0)
        return [
            DrawRequest(p, attempts[p.id], seed_of(self.spec.seed, p.id, attempts[p.id]))
            for p in left
            if attempts[p.id] - first[p.id] == fewest
        ]

    def _note(self, journal: dict[str, Any], manifest: ShardManifest, attempts: dict[str, int]) -> None:
        """Take a chunk's verdicts into the manifest; `attempts` keeps the prompts without a picture."""
        tries = {(v["id"], v["attempt"]) for v in journal["verdicts"]}
        if not tries or not tries <= attempts.items():
            raise self.chunks.unusable("they are of other prompts")
        manifest.made = {key: {str(journal["about"].get(key, "")): 0} for key in MADE}
        for verdict in journal["verdicts"]:
            if verdict["reason"]:
                attempts[verdict["id"]] += 1
                manifest.rejections.append({k: v for k, v in verdict.items() if k != "hash"})
            else:
                del attempts[verdict["id"]]
                self.advance(1)
        for name, seconds in journal["seconds"].items():
            manifest.seconds[name] = manifest.seconds.get(name, 0.0) + seconds

    def _produce(self, wave: list[DrawRequest], round: int, number: int) -> Iterator[dict[str, Any]]:
        """Journals of batch after batch; mattes and filters of earlier ones run behind the drawing."""
        backend, size = self.backend(), self.spec.batch_size
        pending: deque[Future[dict[str, Any]]] = deque()
        self._committed = time.perf_counter()
        # One thread: chunks are committed in order, so that what a kill leaves is a beginning.
        with ThreadPoolExecutor(1, "finish") as finisher:
            try:
                for at in range(0, len(wave), size):
                    batch, start = wave[at : at + size], time.perf_counter()
                    pictures = backend.draw(batch)
                    seconds = time.perf_counter() - start
                    if len(pictures) != len(batch):
                        raise RuntimeError(f"asked for {len(batch)} pictures, got {len(pictures)}")
                    mattes = backend.matte([p for p in pictures if not isinstance(p, str)])
                    reasons = [p if isinstance(p, str) else "" for p in pictures]
                    name = self.chunks.name(round, number + at // size)
                    pending.append(
                        finisher.submit(self._finish, name, backend, batch, reasons, mattes, seconds)
                    )
                    while len(pending) > AHEAD or (pending and pending[0].done()):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except BaseException:
                finisher.shutdown(wait=False, cancel_futures=True)  # a chunk after a gap would not be used
                raise

    def _finish(
        self,
        name: str,
        backend: PictureBackend,
        batch: list[DrawRequest],
        reasons: list[str],
        mattes: Future[list[Matted | None]],
        drawing: float,
    ) -> dict[str, Any]:
        matted = mattes.result()
        start = time.perf_counter()
        verdicts, samples = review(self.spec, backend, batch, reasons, matted)
        end = time.perf_counter()
        seconds = {"draw": drawing, "finish": end - start, "wall": end - self._committed}
        self._committed = end
        journal = {"verdicts": verdicts, "about": dict(backend.about), "seconds": seconds}
        return self.chunks.commit(name, journal, samples)

    def _assemble(self, manifest: ShardManifest, chunks: list[str], failed: set[str], round: int) -> None:
        """Write the tar from the chunks and what it held already, then the manifest, in this order."""
        storage = self.spec.storage
        kept = {record["id"]: record for record in manifest.records}
        with storage.reading(*chunks, *([manifest.tar] if kept else [])) as paths:
            shards: Any = Shards(paths) if paths else ()
            keys = [shards.key(i) for i in range(len(shards))]
            old = [shards.where(i).name == manifest.tar for i in range(len(shards))]
            # A tar whose manifest was not written any more holds the chunks' pictures too.
            at = {key: i for i, key in enumerate(keys) if old[i] == (key in kept)}
            if lost := [p.id for p in self.prompts if p.id not in at and p.id not in failed]:
                raise UserError(
                    f"{storage}/{manifest.tar} lacks {lost[0]}, which its manifest lists: "
                    "delete both and run the same command again"
                )
            samples = (shards[at[p.id]] for p in self.prompts if p.id in at)
            found = manifest.write_tar(
                storage, ({k: sample[k] for k in ("__key__", "png", "json")} for sample in samples)
            )
        manifest.records = [
            kept.get(record["id"]) or {k: record[k] for k in KEPT} | {"round": round} for record in found
        ]
        manifest.round = round
        reasons = {r["id"]: r["reason"] for r in manifest.rejections}
        manifest.missing = {p.id: reasons[p.id] for p in self.prompts if p.id not in at}
        manifest.seconds = {k: int(1000 * v) / 1000 for k, v in manifest.seconds.items()}
        manifest.write(storage)
