"""Parts: batches of a shard that are through, each committed as one small tar with its verdicts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from data_gen.filters.duplicates import perceptual_hash
from data_gen.filters.rules import NO_OBJECT, judge, measure
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend
from data_gen.shards.manifest import shard_name
from dd3g.errors import UserError
from dd3g.io.shards import Shards

if TYPE_CHECKING:
    from data_gen.filters.mattes import Matted

JOURNAL = "_journal"  # key of a part's verdicts; ids of prompts hold no underscore


@dataclass(frozen=True)
class Finished:
    """A batch after matte and filters.

    Args:
        verdicts: one a try: id, attempt, seed, reason ("": accepted), scores, hash.
        samples: png and json of those that were accepted.
    """

    verdicts: list[dict[str, Any]]
    samples: list[dict[str, bytes | str]]


def finish(
    job: DatasetSpec,
    workshop: PictureBackend,
    batch: list[DrawRequest],
    reasons: list[str],
    mattes: list[Matted | None],
) -> Finished:
    """Judge a batch and encode what passes.

    Args:
        job: the set.
        workshop: what made the pictures.
        batch: the tries.
        reasons: why there is no picture, one a try; "" where there is one.
        mattes: of the pictures that there are.
    """
    found = iter(mattes)
    matted = [None if reason else next(found) for reason in reasons]
    scores = [{} if m is None else measure(m) for m in matted]
    reasons = [
        reason or (NO_OBJECT if m is None else judge(s, job.filters))
        for reason, m, s in zip(reasons, matted, scores, strict=True)
    ]
    passing = [i for i, reason in enumerate(reasons) if not reason]
    if workshop.scores and passing:
        pictures = [m.rgba for i in passing if (m := matted[i]) is not None]
        learned = workshop.scores(pictures, [batch[i].prompt.text for i in passing])
        for i, more in zip(passing, learned, strict=True):
            scores[i] |= more
            reasons[i] = judge(scores[i], job.filters)
    verdicts, samples = [], []
    for draw, reason, cut, told in zip(batch, reasons, matted, scores, strict=True):
        verdict = {"id": draw.prompt.id, "attempt": draw.attempt, "seed": draw.seed, "reason": reason}
        verdict |= {"scores": told, "hash": "" if cut is None else f"{perceptual_hash(cut.rgba):016x}"}
        verdicts.append(verdict)
        if cut is not None and not reason:
            samples.append(_sample(draw, verdict, cut, workshop))
    return Finished(verdicts, samples)


def _sample(
    draw: DrawRequest, verdict: dict[str, Any], matted: Matted, workshop: PictureBackend
) -> dict[str, bytes | str]:
    p = draw.prompt
    record = {"id": p.id, "prompt": p.text, "group": p.group, "noun": p.noun, "style": p.style}
    record |= {"seed": draw.seed, "attempt": draw.attempt} | dict(workshop.about) | workshop.more(draw)
    record |= {"scores": verdict["scores"], "hash": verdict["hash"]}
    file = io.BytesIO()
    Image.fromarray(matted.rgba).save(file, format="PNG")
    return {"__key__": p.id, "png": file.getvalue(), "json": json.dumps(record)}


class Chunks:
    """The parts of one shard.

    Args:
        job: the set.
        shard: number of the shard.
    """

    def __init__(self, job: DatasetSpec, shard: int) -> None:
        self.job, self.storage = job, job.storage
        self.folder = f"parts/{shard_name(shard)}"

    def name(self, round: int, number: int) -> str:
        """Of a part of a round of settling."""
        return f"{self.folder}/{round:02d}-{number:05d}.tar"

    def commit(
        self, round: int, number: int, finished: Finished, about: Mapping[str, Any], seconds: dict[str, float]
    ) -> dict[str, Any]:
        """Write a part; returns its journal."""
        journal = {"options": self.job.fingerprint, "verdicts": finished.verdicts}
        journal |= {"about": dict(about), "seconds": seconds}
        record: dict[str, bytes | str] = {"__key__": JOURNAL, "json": json.dumps(journal)}
        self.storage.write_shard(self.name(round, number), [*finished.samples, record])
        return journal

    def journals(self, round: int) -> list[dict[str, Any]]:
        """Journals of the parts of this round that are there, in order, up to the first that is not.

        Raises:
            UserError: when one is damaged or was made with other options.
        """
        present = {f"{self.folder}/{name}" for name in self.storage.names(self.folder)}
        found: list[dict[str, Any]] = []
        while (name := self.name(round, len(found))) in present:
            with self.storage.reading(name) as [path]:
                shards = Shards(path)
                try:
                    [last] = [i for i in range(len(shards)) if shards.key(i) == JOURNAL]
                    found.append(json.loads(shards[last]["json"]))
                    made_with, *_ = (found[-1][k] for k in ("options", "verdicts", "about", "seconds"))
                except (ValueError, KeyError, TypeError) as error:
                    raise self.unusable(f"{name} holds no verdicts") from error
            if made_with != self.job.fingerprint:
                raise self.unusable("they were made with other options")
        return found

    def check(self, batch: list[DrawRequest], journal: dict[str, Any]) -> None:
        """Refuse a journal of other tries.

        Raises:
            UserError: when it is not of this batch.
        """
        if [(d.prompt.id, d.attempt) for d in batch] != [
            (v["id"], v["attempt"]) for v in journal["verdicts"]
        ]:
            raise self.unusable("they are of other prompts")

    def unusable(self, why: str) -> UserError:
        """The error that says so."""
        return UserError(
            f"the parts in {self.storage}/{self.folder} cannot be used, {why}: delete that folder and "
            "run the same command again"
        )

    def clean(self, round: int) -> None:
        """Delete parts up to this round of settling, and what a killed run left half-written."""
        names = self.storage.names(self.folder)
        old = [n for n in names if n[:2].isdecimal() and int(n.partition("-")[0]) <= round]
        self.storage.delete(*(f"{self.folder}/{n}" for n in old))
        self.storage.sweep(self.folder)
