"""The whole set in figures, index.json, and in words, its card README.md; both read from the sidecars."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml

from data_gen.shards.manifest import ShardManifest, finished_shards
from data_gen.shards.options import read_options
from data_gen.shards.storage import Storage

INDEX, CARD = "index.json", "README.md"


def summarize(storage: Storage) -> dict[str, Any]:
    """What index.json holds; a function of the sidecars and options alone.

    Returns:
        {"pictures", "asked", "tries", "missing" and "rejected" (reason -> count), "made" (model, licence,
        matte and size -> value -> count), "shards" (each with tar, count, bytes, sha256, missing),
        "missing_ids" (id -> reason), "options"}.

    Raises:
        UserError: when a sidecar or the options are damaged.
    """
    missing: dict[str, str] = {}
    rejected: Counter[str] = Counter()
    made: dict[str, Counter[str]] = {}
    shards = []
    tries = 0
    for number in finished_shards(storage):
        sidecar = ShardManifest.read(storage, number)
        missing |= sidecar.missing
        rejected.update(sidecar.rejected)
        # A duplicate was a try that had passed the filters.
        tries += sidecar.count + len(sidecar.rejections)
        for key, counts in sidecar.made.items():
            made.setdefault(key, Counter()).update(counts)
        about = {k: getattr(sidecar, k) for k in ("tar", "count", "bytes", "sha256")}
        shards.append(about | {"missing": len(sidecar.missing)})
    pictures = sum(s["count"] for s in shards)
    return {
        "pictures": pictures,
        "asked": pictures + len(missing),
        "tries": tries,
        "missing": _sorted(Counter(missing.values())),
        "rejected": _sorted(rejected),
        "made": {key: _sorted(counts) for key, counts in made.items()},
        "shards": shards,
        "missing_ids": missing,
        "options": read_options(storage),
    }


def write_index(storage: Storage) -> dict[str, Any]:
    """Write index.json and README.md; returns the counts of the index, without its lists."""
    index = summarize(storage)
    storage.write(INDEX, json.dumps(index, indent=1) + "\n")
    storage.write(CARD, card(index))
    return {k: index[k] for k in ("pictures", "asked", "tries", "missing", "rejected", "made")} | {
        "shards": len(index["shards"])
    }


def card(index: dict[str, Any]) -> str:
    """The set's card, with the licence where the Hugging Face hub looks for it."""
    made = index["made"]
    counts = made.get("licence", {})
    licences = [licence for licence, n in counts.items() if n] or list(counts) or ["unknown"]
    front = {"license": licences[0] if len(licences) == 1 else licences, "task_categories": ["image-to-3d"]}
    drawn = not {"source", "sets"} & set(index["options"])  # all by a model, in this set
    megabytes = sum(s["bytes"] for s in index["shards"]) / 1e6
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**6) + "---",
        "# Pictures of single objects",
        "",
        f"{index['pictures']} RGBA pictures with straight alpha, each of one object that fills 80 % of a "
        f"square frame, in {len(index['shards'])} webdataset shards ({megabytes:.1f} MB). "
        f"{index['asked']} were asked for{_because(index)}.",
        "",
        "| | pictures |",
        "|---|---|",
        *(f"| {_cell(f'{key} {value}')} | {n} |" for key, of in made.items() for value, n in of.items() if n),
        "",
        "The pictures are under the terms that the licence of the model they were drawn with sets for its "
        "output; every record names both."
        if drawn
        else "Every record names the licence of its picture.",
        "",
        "## Files",
        "",
        "- `pictures-00000.tar` …: `{id}.png` and `{id}.json` (prompt, seed, model, licence, scores) of "
        "each picture."
        + (
            " The seed is a function of the run's seed, the prompt and the attempt, so that any picture can "
            "be made again."
            if drawn
            else ""
        ),
        "- `pictures-00000.json` …: counts, checksum and verdicts of each shard.",
        "- `index.json`: the whole set; `options.json`: how it was made; `prompts.jsonl`: what was asked "
        "for.",
        "",
        "`python -m data_gen verify FOLDER` checks every picture; `python -m distill.simulate FOLDER` reads "
        "the set.",
        "",
        "## Filters",
        "",
        f"{index['tries']} pictures were tried for {index['asked']} that were asked for. Rejected tries by "
        "reason, and what is missing by the reason of the last try:",
        "",
        "| reason | rejected | missing |",
        "|---|---|---|",
        *(f"| {r} | {n} | {index['missing'].get(r, 0)} |" for r, n in index["rejected"].items()),
        "",
        "## Options",
        "",
        "```json",
        json.dumps(index["options"], indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def missing_sentence(missing: dict[str, int]) -> str:
    """`3 are missing: 2 blur, 1 duplicate`; empty when none is."""
    if not missing:
        return ""
    reasons = ", ".join(f"{n} {reason}" for reason, n in missing.items())
    total = sum(missing.values())
    return f"{total} {'are' if total > 1 else 'is'} missing: {reasons}"


def _because(index: dict[str, Any]) -> str:
    sentence = missing_sentence(index["missing"])
    return f"; {sentence}" if sentence else ""


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
