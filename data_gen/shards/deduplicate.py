"""Near duplicates over a whole set: which pictures must be drawn again, agreed on without talking.

Sidecars keep what was replaced and when. So every process can tell, whatever the others have done since, what
the set looked like after each round, and comes to the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_gen.filters.duplicates import near_duplicates
from data_gen.filters.rules import DUPLICATE
from data_gen.shards.dataset import DatasetSpec
from data_gen.shards.manifest import ShardManifest, finished_shards, shard_name
from dd3g.errors import UserError

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Plan:
    """What is to be done next.

    Args:
        round: of settling, from 1.
        losers: shard -> ids of pictures to replace; only shards that have not done so.
        unfinished: shards that have not been made yet; nothing can be planned before.
    """

    round: int
    losers: dict[int, set[str]]
    unfinished: list[int]


@dataclass(frozen=True)
class _History:
    """Every picture that was ever part of the set, in the order of the prompts."""

    index: NDArray[np.int64]  # (N,) of the prompt
    hash: NDArray[np.uint64]  # (N,)
    born: NDArray[np.int32]  # (N,) round in which it came in
    lost: NDArray[np.int32]  # (N,) round in which it was found to repeat another
    rounds: dict[int, int]  # shard -> round in which its tar was last written


def plan(job: DatasetSpec) -> Plan:
    """Find out from the sidecars what settling has to do next.

    In each round, those that were there before stay, and of new ones the earliest prompt.

    Raises:
        UserError: when a sidecar is damaged or of a set with other options.
    """
    present = set(finished_shards(job.storage))
    if unfinished := [s for s in range(job.shards) if s not in present]:
        return Plan(0, {}, unfinished)
    history = _read(job)
    if job.filters.duplicate_distance < 0:
        return Plan(1, {}, [])
    for round in range(1, job.attempts + 1):
        lost = _losers(history, round, job.filters.duplicate_distance)
        by_shard: dict[int, set[str]] = {}
        for i in lost.tolist():
            by_shard.setdefault(i // job.shard_size, set()).add(job.prompts[i].id)
        pending = {s: ids for s, ids in by_shard.items() if history.rounds[s] < round}
        if pending or not by_shard:
            return Plan(round, pending, [])
    return Plan(job.attempts + 1, {}, [])


def _losers(history: _History, round: int, distance: int) -> NDArray[np.int64]:
    """Prompts whose picture, as the set was before this round, repeats that of another."""
    alive = np.flatnonzero((history.born < round) & (history.lost >= round))
    order = alive[np.lexsort((history.index[alive], history.born[alive]))]
    twins = near_duplicates(history.hash[order], distance)
    return np.sort(history.index[order[twins >= 0]])


def _read(job: DatasetSpec) -> _History:
    rows: list[tuple[int, int, int, int]] = []
    rounds = {}
    for shard in range(job.shards):
        sidecar = ShardManifest.read(job.storage, shard)
        if sidecar.options != job.fingerprint:
            raise UserError(
                f"{job.storage}/{sidecar.tar} was made with other options than this set: delete it and its "
                ".json, and run the same command again"
            )
        rounds[shard] = sidecar.round
        at = {p.id: shard * job.shard_size + i for i, p in enumerate(job.owned(shard))}
        told = {r["id"] for r in (*sidecar.records, *sidecar.rejections)} | set(sidecar.missing)
        if strangers := told - set(at):
            raise UserError(
                f"{job.storage}/{shard_name(shard)}.json tells of {min(strangers)}, no prompt of its "
                f"shard: delete it and {sidecar.tar}, and run the same command again"
            )
        rows += [(at[r["id"]], int(r["hash"], 16), r["round"], int(NEVER)) for r in sidecar.records]
        rows += [(at[r["id"]], int(r["hash"], 16), r["round"], r["lost"]) for r in _duplicates(sidecar)]
    index, hashes, born, lost = zip(*rows, strict=True) if rows else ((), (), (), ())
    return _History(
        np.array(index, np.int64),
        np.array(hashes, np.uint64),
        np.array(born, np.int32),
        np.array(lost, np.int32),
        rounds,
    )


def _duplicates(sidecar: ShardManifest) -> Iterable[dict]:
    return (r for r in sidecar.rejections if r["reason"] == DUPLICATE)
