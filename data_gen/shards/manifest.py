"""What stands beside a shard of pictures: counts, checksum, verdicts, and everything settling needs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from data_gen.filters.rules import DUPLICATE
from data_gen.shards.storage import Storage
from dd3g.errors import UserError

# What readers rely on, of each picture, each rejected try, and each of these that was a duplicate.
_RECORD = {"id": str, "seed": int, "attempt": int, "hash": str, "scores": dict}
_RECORD |= {"group": str, "style": str, "round": int}
_REJECTION = {"id": str, "seed": int, "attempt": int, "reason": str, "scores": dict}
_LOST = {"hash": str, "round": int, "lost": int}
MADE = ("model", "licence", "matte", "size")  # keys of records whose values a sidecar counts


def shard_name(number: int) -> str:
    """`pictures-00012`: the tar and the sidecar of shard 12 without their suffix."""
    return f"pictures-{number:05d}"


@dataclass
class ShardManifest:
    """One shard in figures; a set's pictures need not be opened to count, settle or describe it.

    Args:
        shard: number of the shard.
        count: pictures in the tar.
        bytes: size of the tar.
        sha256: of the tar.
        round: of settling, in which the tar was last written; 0: not since it was first made.
        options: fingerprint of the options it was made with.
        made: distinct values of the records' model, licence, matte and size, with their counts; those of the
            tries, with 0, when none gave a picture.
        records: one a picture, in the tar's order: id, seed, attempt, hash, scores, group, style, round (of
            settling, in which it came in).
        rejections: one a rejected try: id, seed, attempt, reason, scores; of duplicates also hash, round,
            and lost, the round in which they were found to be one.
        missing: id of a prompt without picture -> why its last try was rejected.
        seconds: "draw" and "finish" (matte, filters, encoding), both of all tries, and "wall".
    """

    shard: int
    count: int = 0
    bytes: int = 0
    sha256: str = ""
    round: int = 0
    options: str = ""
    made: dict[str, dict[str, int]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    rejections: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tar(self) -> str:
        """Name of the shard's tar."""
        return shard_name(self.shard) + ".tar"

    @property
    def rejected(self) -> dict[str, int]:
        """How often each reason rejected a try."""
        return dict(sorted(Counter(r["reason"] for r in self.rejections).items()))

    def write(self, storage: Storage) -> None:
        """Put it beside the tar; from then on the shard counts as finished."""
        about = {"tar": self.tar, "rejected": self.rejected}
        storage.write(shard_name(self.shard) + ".json", json.dumps(asdict(self) | about) + "\n")

    @classmethod
    def read(cls, storage: Storage, number: int) -> ShardManifest:
        """The sidecar of a finished shard.

        Raises:
            UserError: when it is missing or damaged.
        """
        name = shard_name(number) + ".json"
        data = storage.read(name)
        try:
            found = json.loads(data)
            sidecar = cls(**{k: v for k, v in found.items() if k not in ("tar", "rejected")})
            if sidecar.shard != number or sidecar.count != len(sidecar.records):
                raise ValueError(f"it tells of shard {sidecar.shard} with {sidecar.count} pictures")
            _check(sidecar)
            return sidecar
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{storage}/{name} is damaged ({error}): delete it and {shard_name(number)}.tar, and run the "
                "command that made the set again"
            ) from error


def _check(sidecar: ShardManifest) -> None:
    """A ValueError says what is not as `ShardManifest` tells, so that readers can rely on it."""
    empty = ShardManifest(0)
    _check_kinds(vars(sidecar), {key: type(value) for key, value in vars(empty).items()})
    for record in sidecar.records:
        _check_kinds(record, _RECORD)
    for rejection in sidecar.rejections:
        _check_kinds(rejection, _REJECTION)
        if rejection["reason"] == DUPLICATE:
            _check_kinds(rejection, _LOST)
    _check_kinds(sidecar.missing, dict.fromkeys(sidecar.missing, str))
    _check_kinds(sidecar.seconds, dict.fromkeys(sidecar.seconds, float))
    for counts in sidecar.made.values():
        _check_kinds(counts, dict.fromkeys(counts, int))


def _check_kinds(found: Any, kinds: dict[str, type]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{str(found)[:40]!r} is no object")
    for key, kind in kinds.items():
        value = found.get(key)
        good = isinstance(value, int | float if kind is float else kind)
        if key == "hash" and good:
            good = re.fullmatch("[0-9a-f]{16}", value) is not None
        if key == "scores" and good:
            _check_kinds(value, dict.fromkeys(value, float))
        if not good:
            raise ValueError(f"{key} is {str(value)[:40]!r}")


def tally(records: list[dict[str, Any]], known: dict[str, Iterable[Any]]) -> dict[str, dict[str, int]]:
    """`ShardManifest.made` of some records.

    Args:
        records: of a shard.
        known: the values that are told, with a count of 0, when there is no record.
    """
    if not records:
        return {key: {str(value): 0 for value in known.get(key, ())} for key in MADE}
    counts: dict[str, Counter[str]] = {key: Counter() for key in MADE}
    for record in records:
        for key, counter in counts.items():
            counter[str(record.get(key, ""))] += 1
    return {key: dict(sorted(counter.items())) for key, counter in counts.items()}


def finished_shards(storage: Storage) -> list[int]:
    """Numbers of the shards whose sidecar is there, in order."""
    stems = (
        n.removeprefix("pictures-").removesuffix(".json") for n in storage.names() if n.endswith(".json")
    )
    return sorted(int(stem) for stem in stems if stem.isdecimal())
