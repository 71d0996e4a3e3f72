"""Chunks: batches of a shard that have been drawn and judged, each committed as one small tar.

A chunk holds the pictures that passed and one journal: the verdict on every try, what drew it, and how long
that took.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image

from data_gen.filters.duplicates import perceptual_hash
from data_gen.filters.rules import NO_OBJECT, judge, measure
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend
from data_gen.shards.manifest import CHUNKS, Sample, shard_name
from dd3g.errors import UserError
from dd3g.io.shards import Shards

if TYPE_CHECKING:
    from data_gen.filters.mattes import Matted

JOURNAL = "_journal"  # its key in a chunk; ids of prompts hold no underscore


def review(
    spec: DatasetSpec,
    backend: PictureBackend,
    batch: list[DrawRequest],
    reasons: list[str],
    mattes: list[Matted | None],
) -> tuple[list[dict[str, Any]], list[Sample]]:
    """Judge a batch and encode what passes.

    Args:
        spec: the dataset.
        backend: what made the pictures.
        batch: the tries.
        reasons: why there is no picture, one a try; "" where there is one.
        mattes: of the pictures that there are.

    Returns:
        Of each try a verdict (id, attempt, seed, reason or "", scores, hash), and the samples that passed.
    """
    found = iter(mattes)
    cutouts = [None if reason else next(found) for reason in reasons]
    scores = [measure(cutout) if cutout else {} for cutout in cutouts]
    reasons = [
        reason or (judge(score, spec.filters) if cutout else NO_OBJECT)
        for reason, cutout, score in zip(reasons, cutouts, scores, strict=True)
    ]
    passing = {i: cutout.rgba for i, cutout in enumerate(cutouts) if cutout and not reasons[i]}
    if backend.scores and passing:
        learned = backend.scores(list(passing.values()), [batch[i].prompt.text for i in passing])
        for i, more in zip(passing, learned, strict=True):
            scores[i] |= more
            reasons[i] = judge(scores[i], spec.filters)
    verdicts: list[dict[str, Any]] = []
    samples: list[Sample] = []
    for request, reason, cutout, score in zip(batch, reasons, cutouts, scores, strict=True):
        p, seed, attempt = request.prompt, request.seed, request.attempt
        judged = {"scores": score, "hash": f"{perceptual_hash(cutout.rgba):016x}" if cutout else ""}
        verdicts.append({"id": p.id, "attempt": attempt, "seed": seed, "reason": reason} | judged)
        if cutout and not reason:
            asked = {"id": p.id, "prompt": p.text, "group": p.group, "noun": p.noun, "style": p.style}
            drawn = {"seed": seed, "attempt": attempt} | dict(backend.about) | backend.more(request)
            record = json.dumps(asked | drawn | judged)
            file = io.BytesIO()
            Image.fromarray(cutout.rgba).save(file, format="PNG")
            samples.append({"__key__": p.id, "png": file.getvalue(), "json": record})
    return verdicts, samples


class Chunks:
    """The chunks of one shard."""

    def __init__(self, spec: DatasetSpec, shard: int) -> None:
        self.spec, self.storage, self.folder = spec, spec.storage, f"{CHUNKS}/{shard_name(shard)}"

    def name(self, round: int, number: int) -> str:
        """Of a chunk of a round of deduplication."""
        return f"{self.folder}/{round:02d}-{number:05d}.tar"

    def commit(self, name: str, journal: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
        """Write a chunk; returns its journal, to which it adds the options."""
        journal = {"options": self.spec.fingerprint} | journal
        self.storage.write_shard(name, [*samples, {"__key__": JOURNAL, "json": json.dumps(journal)}])
        return journal

    def journals(self, round: int) -> list[dict[str, Any]]:
        """Journals of the chunks of this round that are there, in order, up to the first that is not.

        Raises:
            UserError: when one is damaged or was made with other options.
        """
        present = {f"{self.folder}/{name}" for name in self.storage.names(self.folder)}
        found: list[dict[str, Any]] = []
        while (name := self.name(round, len(found))) in present:
            with self.storage.reading(name) as [path]:
                journal = read_journal(Shards(path))
            if journal is None or not {"options", "verdicts", "about", "seconds"} <= set(journal):
                raise self.unusable(f"{name} holds no verdicts")
            if journal["options"] != self.spec.fingerprint:
                raise self.unusable("they were made with other options")
            found.append(journal)
        return found

    def unusable(self, why: str) -> UserError:
        """The error that says so."""
        return UserError(
            f"the chunks in {self.storage}/{self.folder} cannot be used, {why}: delete that folder and "
            "run the same command again"
        )

    def clean(self, round: int) -> None:
        """Delete chunks up to this round, and what a killed run left half-written."""
        rounds = {name: name.partition("-")[0] for name in self.storage.names(self.folder)}
        old = [name for name, number in rounds.items() if number.isdecimal() and int(number) <= round]
        self.storage.delete(*(f"{self.folder}/{n}" for n in old))
        self.storage.sweep(self.folder)


def read_journal(chunk: Shards) -> dict[str, Any] | None:
    """The journal of a chunk; None where it holds none that can be read."""
    try:
        [at] = [i for i in range(len(chunk)) if chunk.key(i) == JOURNAL]
        return dict(json.loads(chunk.read(at)["json"]))
    except (ValueError, KeyError, TypeError):
        return None
