"""Near duplicates over a whole dataset: which pictures must be drawn again, agreed on without talking.

Manifests keep what was replaced and when. So every process can reconstruct the dataset after each round,
whatever the others have done since, and arrives at the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_gen.filters.duplicates import near_duplicates
from data_gen.filters.rules import DUPLICATE
from data_gen.shards.dataset import DatasetSpec
from data_gen.shards.manifest import ShardManifest, finished_shards, shard_name
from dd3g.errors import UserError

# A picture that is or was in the dataset: the round in which it came in, its prompt's index, its hash, and
# the round in which it was found to repeat another.
_PICTURE = np.dtype([("born", np.int32), ("index", np.int64), ("hash", np.uint64), ("lost", np.int32)])
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Plan:
    """What is to be done next."""

    round: int  # of deduplication, from 1
    losers: dict[int, set[str]]  # shard -> ids of pictures to replace; only shards that have not done so
    unfinished: list[int]  # shards that have not been made yet; nothing can be planned before


def plan(spec: DatasetSpec) -> Plan:
    """Find out from the manifests what deduplication has to do next.

    In each round, those that were there before stay, and of new ones the earliest prompt.

    Raises:
        UserError: when a manifest is damaged or of a dataset with other options.
    """
    if unfinished := sorted(set(range(spec.shards)) - set(finished_shards(spec.storage))):
        return Plan(0, {}, unfinished)
    rounds, histories = [], []
    for number in range(spec.shards):
        manifest = ShardManifest.read(spec.storage, number)
        rounds.append(manifest.round)
        histories.append(_history(spec, manifest))
    pictures = np.concatenate(histories)
    if spec.filters.duplicate_distance < 0:
        return Plan(1, {}, [])
    for round in range(1, spec.attempts + 1):
        alive = pictures[(pictures["born"] < round) & (pictures["lost"] >= round)]
        alive.sort(order=("born", "index"))
        twins = near_duplicates(alive["hash"], spec.filters.duplicate_distance)
        losers: dict[int, set[str]] = {}
        for i in np.sort(alive["index"][twins >= 0]).tolist():
            losers.setdefault(i // spec.shard_size, set()).add(spec.prompts[i].id)
        pending = {shard: ids for shard, ids in losers.items() if rounds[shard] < round}
        if pending or not losers:
            return Plan(round, pending, [])
    return Plan(spec.attempts + 1, {}, [])


def _history(spec: DatasetSpec, manifest: ShardManifest) -> NDArray:
    """Every picture that was ever part of a shard, (N,) of `_PICTURE`."""
    name = shard_name(manifest.shard)
    if manifest.options != spec.fingerprint:
        raise UserError(
            f"{spec.storage}/{name}.tar was made with other options than this set: delete it and its .json, "
            "and run the same command again"
        )
    owned = spec.owned(manifest.shard)
    at = {p.id: i for i, p in enumerate(owned, manifest.shard * spec.shard_size)}
    known = {r["id"] for r in (*manifest.records, *manifest.rejections)} | set(manifest.missing)
    if strangers := known - set(at):
        raise UserError(
            f"{spec.storage}/{name}.json lists {min(strangers)}, no prompt of its shard: delete it and "
            f"{name}.tar, and run the same command again"
        )
    pictures = manifest.records + [r for r in manifest.rejections if r["reason"] == DUPLICATE]
    return np.array(
        [(r["round"], at[r["id"]], int(r["hash"], 16), r.get("lost", _NEVER)) for r in pictures], _PICTURE
    )
