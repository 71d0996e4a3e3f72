"""A dataset in figures, finished or not: counts, scores, sample pictures, speed, and what is left to do."""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_gen.shards.chunks import read_journal
from data_gen.shards.dataset import PROMPTS, read_options, stored_prompts
from data_gen.shards.manifest import CHUNKS, ShardManifest, finished_shards, shard_name
from data_gen.shards.storage import Storage
from dd3g.errors import UserError
from dd3g.io.shards import Shards

SHEET_SHARDS = 8  # opened for the contact sheet, at most


@dataclass
class Group:
    """One group of prompts in figures; tries are counted of prompts in finished shards."""

    asked: int = 0
    pictures: int = 0
    missing: int = 0
    tries: int = 0


@dataclass
class Figures:
    """A set in figures."""

    place: str  # where it lies
    asked: int = 0  # prompts, all shards together
    shards: int = 0  # that are finished
    pictures: int = 0  # in finished shards
    # Pictures in chunks of shards that are not finished; counted only on this machine's disks
    in_work: int = 0
    bytes: int = 0  # of the finished tars
    # Reason -> prompts of finished shards without a picture
    missing: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)  # reason -> tries
    tries: int = 0  # pictures drawn, for finished shards and for chunks
    groups: dict[str, Group] = field(default_factory=lambda: defaultdict(Group))  # name -> counts
    # Model, licence, matte, size -> value -> pictures
    made: dict[str, Counter[str]] = field(default_factory=dict)
    # Score -> (N,) float32 of the pictures
    accepted: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    # Score -> (N,) float32 of the rejected tries
    refused: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    speed: list[tuple[int, float]] = field(default_factory=list)  # (finished shard, seconds a try), in order
    seconds: Counter[str] = field(default_factory=Counter)  # draw, finish and wall, of all tries
    options: dict[str, Any] = field(default_factory=dict)  # of the set
    free: int | None = None  # bytes left on the disk it lies on, None for a bucket

    @property
    def done(self) -> int:
        """Prompts that have a picture or no attempt left."""
        return self.pictures + sum(self.missing.values()) + self.in_work

    @property
    def left(self) -> int:
        """Prompts still to be done."""
        return max(0, self.asked - self.done)

    def hours_left(self, processes: int = 1) -> float | None:
        """Of wall time at the speed so far, None when there is none yet."""
        if not self.done or not self.seconds["wall"]:
            return None
        return self.left * self.seconds["wall"] / self.done / processes / 3600

    @property
    def bytes_left(self) -> float | None:
        """Of disk at the size so far; chunks that are there are still to become tars."""
        if not self.pictures:
            return None
        share = self.pictures / (self.pictures + sum(self.missing.values()))
        return (self.left * share + self.in_work) * self.bytes / self.pictures


def read_figures(storage: Storage) -> Figures:
    """Read manifests, journals of chunks, and the prompts' groups; no pictures.

    Raises:
        UserError: when it is not a set, or a manifest is damaged.
    """
    figures = Figures(str(storage), options=read_options(storage))
    scores: list[defaultdict[str, array[float]]] = [defaultdict(lambda: array("f")) for _ in range(2)]

    def add_tries(passed: list[dict[str, Any]], failed: list[dict[str, Any]], seconds: dict) -> None:
        figures.tries += len(passed) + len(failed)
        figures.rejected.update(v["reason"] for v in failed)
        figures.seconds.update(seconds)
        for found, tries in zip(scores, (passed, failed), strict=True):
            for name, value in (pair for one in tries for pair in one["scores"].items()):
                found[name].append(value)

    finished = finished_shards(storage)
    missing: set[str] = set()
    rejected: Counter[str] = Counter()  # by id, of prompts with rejected tries
    for number in finished:
        manifest = ShardManifest.read(storage, number)
        add_tries(manifest.records, manifest.rejections, manifest.seconds)
        figures.shards += 1
        figures.pictures += manifest.count
        figures.bytes += manifest.bytes
        figures.missing.update(manifest.missing.values())
        missing |= manifest.missing.keys()
        for key, counts in manifest.made.items():
            figures.made.setdefault(key, Counter()).update(counts)
        for record in manifest.records:
            figures.groups[record["group"]].pictures += 1
            figures.groups[record["group"]].tries += 1
        rejected.update(r["id"] for r in manifest.rejections)
        if manifest.tries and manifest.seconds.get("wall"):
            figures.speed.append((manifest.shard, manifest.seconds["wall"] / manifest.tries))
    for journal in _journals(storage, {shard_name(n) for n in finished}):
        passed = [v for v in journal["verdicts"] if not v["reason"]]
        figures.in_work += len(passed)
        add_tries(passed, [v for v in journal["verdicts"] if v["reason"]], journal["seconds"])
    figures.accepted, figures.refused = ({k: np.array(v) for k, v in found.items()} for found in scores)
    figures.asked = figures.done
    if storage.exists(PROMPTS):  # their groups too: those of prompts without a picture stand nowhere else
        prompts = stored_prompts(storage)
        figures.asked = len(prompts)
        for prompt in prompts:
            group = figures.groups[prompt.group]
            group.asked += 1
            group.missing += prompt.id in missing
            group.tries += rejected[prompt.id]
    if storage.folder is not None:
        figures.free = shutil.disk_usage(storage.folder).free
    return figures


def _journals(storage: Storage, finished: set[str]) -> Iterator[dict[str, Any]]:
    """Of the chunks of shards that are not finished; a chunk that vanishes meanwhile is passed over."""
    if storage.folder is None:
        return
    for shard in set(storage.names(CHUNKS)) - finished:
        for name in storage.names(f"{CHUNKS}/{shard}"):
            try:
                journal = read_journal(Shards(storage.folder / CHUNKS / shard / name))
            except UserError:
                continue
            if journal:
                yield journal


def sample_pictures(storage: Storage, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Pictures spread evenly over the finished shards, each as its RGBA PNG and its record.

    Few shards are opened, and few of their pictures read.

    Raises:
        UserError: when a shard is damaged.
    """
    finished = finished_shards(storage)
    wanted = min(SHEET_SHARDS if storage.folder is not None else 2, len(finished), count)
    found: list[tuple[bytes, dict[str, Any]]] = []
    for i in range(wanted):
        number = finished[(2 * i + 1) * len(finished) // (2 * wanted)]
        with storage.reading(shard_name(number) + ".tar") as [path]:
            shards = Shards(path)
            due = min((count - len(found)) // (wanted - i), len(shards))
            for k in range(due):
                sample = shards[(2 * k + 1) * len(shards) // (2 * due)]
                found.append((sample["png"], json.loads(sample["json"])))
    return found
