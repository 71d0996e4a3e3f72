"""Makes one shard: draw, matte, filter, commit; killed at any moment, it resumes to the same bytes.

Every prompt is tried until a picture passes or no attempt is left. Tries stand in a queue: one of each prompt
in order, behind them those of prompts that were rejected, and so on, wave after wave. They are drawn in
batches, whose size may change from run to run, and each judged batch is committed as one small tar, a chunk.
The queue follows from the chunks alone, so a worker that starts again after kill -9 loses what was in flight,
draws exactly that again, and nothing else.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from data_gen.filters.rules import DUPLICATE
from data_gen.shards.chunks import JOURNAL, read_journal, review
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend, seed_of
from data_gen.shards.manifest import CHUNKS, MADE, ShardManifest, shard_name
from dd3g.errors import UserError
from dd3g.io.shards import Shards

if TYPE_CHECKING:
    from data_gen.filters.mattes import Matted

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
        self.prompts = {prompt.id: prompt for prompt in self.spec.owned(self.shard)}
        self.folder = f"{CHUNKS}/{shard_name(self.shard)}"
        self.round = 0  # of deduplication
        self.manifest = ShardManifest(self.shard, options=self.spec.fingerprint)  # of what has been committed
        self.chunks = 0  # committed in this round
        self.tries: deque[DrawRequest] = deque()  # that come next
        self._committed = 0.0  # time of the last commit

    def make(self) -> ShardManifest:
        """Make the shard, from wherever an earlier run was killed.

        Returns:
            The manifest, which has been written.
        """
        return self._run(dict.fromkeys(self.prompts, 0))

    def replace(self, losers: set[str], round: int) -> ShardManifest:
        """Try losers again at their next attempt; those without one left go missing.

        Args:
            losers: ids of pictures that repeat an earlier one.
            round: of deduplication.

        Returns:
            The new manifest, which has been written.
        """
        self.round, self.manifest = round, ShardManifest.read(self.spec.storage, self.shard)
        lost = [record for record in self.manifest.records if record["id"] in losers]
        for record in lost:
            known = {k: record[k] for k in ("id", "seed", "attempt", "scores", "hash", "round")}
            self.manifest.rejections.append(known | {"reason": DUPLICATE, "lost": round})
        self.manifest.records = [r for r in self.manifest.records if r["id"] not in losers]
        return self._run({record["id"]: record["attempt"] + 1 for record in lost})

    def clean(self, round: int) -> None:
        """Delete chunks up to this round, and what a killed run left half-written."""
        storage = self.spec.storage
        rounds = {name: name.partition("-")[0] for name in storage.names(self.folder)}
        old = [name for name, number in rounds.items() if number.isdecimal() and int(number) <= round]
        storage.delete(*(f"{self.folder}/{name}" for name in old))
        storage.sweep(self.folder)
        storage.sweep("", shard_name(self.shard) + ".")

    def _run(self, attempts: dict[str, int]) -> ShardManifest:
        """Try prompts (id -> first attempt) until each has a picture or no attempt left; then the shard."""
        self.clean(self.round - 1)
        for id, attempt in attempts.items():
            self._try(id, attempt)
        self._replay()
        while self.tries:
            self._draw(list(self.tries))
        self._assemble()
        self.clean(self.round)
        return self.manifest

    def _try(self, id: str, attempt: int) -> None:
        if attempt < self.spec.attempts:
            self.tries.append(DrawRequest(self.prompts[id], attempt, seed_of(self.spec.seed, id, attempt)))
        else:
            self.advance(1)

    def _chunk(self, number: int) -> str:
        return f"{self.folder}/{self.round:02d}-{number:05d}.tar"

    def _replay(self) -> None:
        """Take in the chunks of this round that are there, in order, up to the first that is not."""
        storage, present = self.spec.storage, set(self.spec.storage.names(self.folder))
        while (name := self._chunk(self.chunks)).rpartition("/")[2] in present:
            with storage.reading(name) as [path]:
                journal = read_journal(Shards(path))
            if journal is None or not {"options", "verdicts", "about", "seconds"} <= set(journal):
                raise self._unusable(f"{name} holds no verdicts")
            if journal["options"] != self.spec.fingerprint:
                raise self._unusable("they were made with other options")
            self._note(journal)

    def _unusable(self, why: str) -> UserError:
        return UserError(
            f"the chunks in {self.spec.storage}/{self.folder} cannot be used, {why}: delete that folder and "
            "run the same command again"
        )

    def _note(self, journal: dict[str, Any]) -> None:
        """Take in the verdicts of the next chunk."""
        verdicts, manifest = journal["verdicts"], self.manifest
        due = [(t.prompt.id, t.attempt) for t in islice(self.tries, len(verdicts))]
        if not verdicts or due != [(v["id"], v["attempt"]) for v in verdicts]:
            raise self._unusable("they are of other prompts")
        self.chunks += 1
        manifest.made = {key: {str(journal["about"].get(key, "")): 0} for key in MADE}
        for verdict in verdicts:
            prompt = self.tries.popleft().prompt
            if verdict["reason"]:
                manifest.rejections.append({k: v for k, v in verdict.items() if k != "hash"})
                self._try(prompt.id, verdict["attempt"] + 1)
            else:
                known = {k: verdict[k] for k in ("id", "seed", "attempt", "hash", "scores")}
                known |= {"group": prompt.group, "style": prompt.style, "round": self.round}
                manifest.records.append(known)
                self.advance(1)
        for name, seconds in journal["seconds"].items():
            manifest.seconds[name] = manifest.seconds.get(name, 0.0) + seconds

    def _draw(self, tries: list[DrawRequest]) -> None:
        """Draw batch after batch; mattes and filters of earlier ones run behind the drawing."""
        backend, size = self.backend(), self.spec.batch_size
        pending: deque[Future[dict[str, Any]]] = deque()
        self._committed = time.perf_counter()
        # One thread: chunks are committed in order, so that what a kill leaves is a beginning.
        with ThreadPoolExecutor(1, "finish") as finisher:
            try:
                for at in range(0, len(tries), size):
                    batch, start = tries[at : at + size], time.perf_counter()
                    pictures = backend.draw(batch)
                    seconds = time.perf_counter() - start
                    if len(pictures) != len(batch):
                        raise RuntimeError(f"asked for {len(batch)} pictures, got {len(pictures)}")
                    mattes = backend.matte([p for p in pictures if not isinstance(p, str)])
                    reasons = [p if isinstance(p, str) else "" for p in pictures]
                    name = self._chunk(self.chunks + len(pending))
                    pending.append(
                        finisher.submit(self._finish, name, backend, batch, reasons, mattes, seconds)
                    )
                    while len(pending) > AHEAD or (pending and pending[0].done()):
                        self._note(pending.popleft().result())
                while pending:
                    self._note(pending.popleft().result())
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
        """Judge a batch and commit its chunk; returns the journal in it."""
        matted = mattes.result()
        start = time.perf_counter()
        verdicts, samples = review(self.spec, backend, batch, reasons, matted)
        end = time.perf_counter()
        seconds = {"draw": drawing, "finish": end - start, "wall": end - self._committed}
        self._committed = end
        journal = {"options": self.spec.fingerprint, "verdicts": verdicts, "about": dict(backend.about)}
        journal |= {"seconds": seconds}
        self.spec.storage.write_shard(name, [*samples, {"__key__": JOURNAL, "json": json.dumps(journal)}])
        return journal

    def _assemble(self) -> None:
        """Write the tar from the chunks and what it held already, then the manifest, in this order."""
        manifest, storage = self.manifest, self.spec.storage
        records = {record["id"]: record for record in manifest.records}
        reasons = {r["id"]: r["reason"] for r in manifest.rejections}
        names = [self._chunk(i) for i in range(self.chunks)]
        names += [manifest.tar] * any(r["round"] < self.round for r in manifest.records)
        with storage.reading(*names) as paths:
            shards: Any = Shards(paths) if paths else ()
            at: dict[str, int] = {}
            for i in range(len(shards)):
                key, old = shards.key(i), shards.where(i).name == manifest.tar
                # A tar whose manifest was not written any more holds the chunks' pictures too.
                if key in records and old == (records[key]["round"] < self.round):
                    at[key] = i
            if lost := [id for id in self.prompts if id not in at and (id in records or id not in reasons)]:
                raise UserError(
                    f"{storage}/{manifest.tar} lacks {lost[0]}, which its manifest lists: "
                    "delete both and run the same command again"
                )
            manifest.records = [records[id] for id in self.prompts if id in records]
            manifest.write_tar(storage, (shards[at[record["id"]]] for record in manifest.records))
        manifest.round = self.round
        manifest.missing = {id: reasons[id] for id in self.prompts if id not in records}
        manifest.seconds = {k: int(1000 * v) / 1000 for k, v in manifest.seconds.items()}
        manifest.write(storage)
