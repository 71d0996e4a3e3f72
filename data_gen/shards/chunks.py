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
from data_gen.shards.manifest import Sample
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
    """Judge a batch of tries and encode what passes.

    `reasons` say why a try has no picture, "" where it has one; `mattes` are of those that there are.

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


def read_journal(chunk: Shards) -> dict[str, Any] | None:
    """The journal of a chunk; None where it holds none that can be read."""
    try:
        [at] = [i for i in range(len(chunk)) if chunk.key(i) == JOURNAL]
        return dict(json.loads(chunk.read(at)["json"]))
    except (ValueError, KeyError, TypeError):
        return None
