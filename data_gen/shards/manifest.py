"""The manifest beside a shard: counts, checksum, verdicts, and everything deduplication needs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from data_gen.filters.rules import DUPLICATE
from data_gen.shards.storage import Storage
from dd3g.errors import UserError

Sample = dict[str, bytes | str]  # of a shard: its key, and the data of each extension
CHUNKS = "parts"  # in a dataset: the folder of the chunks of unfinished shards
MADE = ("model", "licence", "matte", "size")  # keys of records whose values a manifest counts
# What readers rely on, of each picture, each rejected try, and each of these that was a duplicate.
_RECORD = {"id": str, "seed": int, "attempt": int, "hash": str, "scores": dict}
_RECORD |= {"group": str, "style": str, "round": int}
_REJECTION = {"id": str, "seed": int, "attempt": int, "reason": str, "scores": dict}
_LOST = {"hash": str, "round": int, "lost": int}


def shard_name(number: int) -> str:
    """`pictures-00012`: the tar and the manifest of shard 12 without their suffix."""
    return f"pictures-{number:05d}"


@dataclass
class ShardManifest:
    """One shard in figures, so that a dataset is counted, deduplicated and described without its pictures."""

    shard: int  # number of the shard
    count: int = 0  # pictures in the tar
    bytes: int = 0  # size of the tar
    sha256: str = ""  # of the tar
    round: int = 0  # of deduplication, in which the tar was last written; 0: not since it was first made
    options: str = ""  # fingerprint of the options it was made with
    # Distinct values of the records' model, licence, matte and size, with their counts; those of the tries,
    # with 0, when none gave a picture
    made: dict[str, dict[str, int]] = field(default_factory=dict)
    # One a picture, in the tar's order: id, seed, attempt, hash, scores, group, style, and round (of
    # deduplication, in which it came in)
    records: list[dict[str, Any]] = field(default_factory=list)
    # One a rejected try: id, seed, attempt, reason, scores; of duplicates also hash, round, and lost, the
    # round in which they were found to be one
    rejections: list[dict[str, Any]] = field(default_factory=list)
    # Id of a prompt without picture -> why its last try was rejected
    missing: dict[str, str] = field(default_factory=dict)
    # "draw" and "finish" (matte, filters, encoding), both of all tries, and "wall"
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tar(self) -> str:
        """Name of the shard's tar."""
        return shard_name(self.shard) + ".tar"

    @property
    def tries(self) -> int:
        """Pictures drawn; a duplicate was a try that had passed the filters."""
        return self.count + len(self.rejections)

    @property
    def rejected(self) -> dict[str, int]:
        """How often each reason rejected a try."""
        return dict(sorted(Counter(r["reason"] for r in self.rejections).items()))

    def write_tar(self, storage: Storage, samples: Iterable[Sample]) -> None:
        """Write the shard's tar, and take what it holds into count, bytes, sha256 and made.

        Args:
            storage: of the dataset.
            samples: one a record, with a json each; taken one by one.
        """
        made: dict[str, Counter[str]] = {key: Counter() for key in MADE}

        def counted() -> Iterator[Sample]:
            for sample in samples:
                record = json.loads(sample["json"])
                for key, counts in made.items():
                    counts[str(record.get(key, ""))] += 1
                yield sample

        self.bytes, self.sha256 = storage.write_shard(self.tar, counted())
        self.count = len(self.records)
        for key, counts in made.items():
            self.made[key] = dict(sorted(counts.items())) or dict.fromkeys(self.made.get(key, ()), 0)

    def write(self, storage: Storage) -> None:
        """Put it beside the tar; from then on the shard counts as finished."""
        about = {"tar": self.tar, "rejected": self.rejected}
        storage.write(shard_name(self.shard) + ".json", json.dumps(asdict(self) | about) + "\n")

    @classmethod
    def read(cls, storage: Storage, number: int) -> ShardManifest:
        """The manifest of a finished shard.

        Raises:
            UserError: when it is missing or damaged.
        """
        name = shard_name(number)
        data = storage.read(f"{name}.json")
        try:
            found = json.loads(data)
            manifest = cls(**{k: v for k, v in found.items() if k not in ("tar", "rejected")})
            if manifest.shard != number or manifest.count != len(manifest.records):
                raise ValueError(f"it describes shard {manifest.shard} with {manifest.count} pictures")
            manifest._check()
            return manifest
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{storage}/{name}.json is damaged ({error}): delete it and {name}.tar, and run the "
                "command that made the set again"
            ) from error

    def _check(self) -> None:
        """Raise a ValueError for what is not as the class describes, so that readers can rely on it."""
        _check_types(vars(self), {key: type(value) for key, value in vars(ShardManifest(0)).items()})
        for record in self.records:
            _check_types(record, _RECORD)
        for rejection in self.rejections:
            _check_types(rejection, _REJECTION)
            if rejection["reason"] == DUPLICATE:
                _check_types(rejection, _LOST)
        _check_types(self.missing, str)
        _check_types(self.seconds, float)
        for counts in self.made.values():
            _check_types(counts, int)


def _check_types(found: Any, types: dict[str, type] | type) -> None:
    """Raise a ValueError unless `found` is a dictionary with values of these types, or all of one."""
    if not isinstance(found, dict):
        raise ValueError(f"{str(found)[:40]!r} is not an object")
    for key, kind in (types if isinstance(types, dict) else dict.fromkeys(found, types)).items():
        value = found.get(key)
        good = isinstance(value, int | float if kind is float else kind)
        if not good or key == "hash" and not re.fullmatch("[0-9a-f]{16}", str(value)):
            raise ValueError(f"{key} is {str(value)[:40]!r}")
        if key == "scores":
            _check_types(value, float)


def finished_shards(storage: Storage) -> list[int]:
    """Numbers of the shards whose manifest is there, in order."""
    names = (re.fullmatch(r"pictures-(\d+)\.json", name) for name in storage.names())
    return sorted(int(name[1]) for name in names if name)


def read_manifests(storage: Storage) -> Iterator[ShardManifest]:
    """The manifests of all finished shards, in order; one at a time, because together they are large.

    Raises:
        UserError: when one is damaged.
    """
    for number in finished_shards(storage):
        yield ShardManifest.read(storage, number)
