"""The whole dataset in figures, index.json, and in words, its card README.md; read from the manifests."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml

from data_gen.shards.manifest import read_manifests
from data_gen.shards.options import read_options
from data_gen.shards.storage import Storage

INDEX, CARD = "index.json", "README.md"
_TERMS_DRAWN = (
    "The pictures are under the terms that the licence of the model they were drawn with sets for its "
    "output; every record names both."
)
_SEEDS = (
    " The seed is a function of the run's seed, the prompt and the attempt, so that any picture can be made "
    "again."
)
_CARD = """---
{front}---
# Pictures of single objects

{pictures} RGBA pictures with straight alpha, each of one object that fills 80 % of a square frame, in \
{shard_count} webdataset shards ({megabytes:.1f} MB). {asked} were asked for{because}.

| | pictures |
|---|---|
{made_rows}
{terms}

## Files

- `pictures-00000.tar` …: `{{id}}.png` and `{{id}}.json` (prompt, seed, model, licence, scores) of each \
picture.{seeds}
- `pictures-00000.json` …: counts, checksum and verdicts of each shard.
- `index.json`: the whole set; `options.json`: how it was made; `prompts.jsonl`: what was asked for.

`python -m data_gen verify FOLDER` checks every picture; `python -m distill.simulate FOLDER` reads the set.

## Filters

{tries} pictures were tried for {asked} that were asked for. Rejected tries by reason, and what is missing \
by the reason of the last try:

| reason | rejected | missing |
|---|---|---|
{reason_rows}
## Options

```json
{options_json}
```
"""


def summarize(storage: Storage) -> dict[str, Any]:
    """What index.json holds; a function of the manifests and options alone.

    Returns:
        {"pictures", "asked", "tries", "missing" and "rejected" (reason -> count), "made" (model, licence,
        matte and size -> value -> count), "shards" (each with tar, count, bytes, sha256, missing),
        "missing_ids" (id -> reason), "options"}.

    Raises:
        UserError: when a manifest or the options are damaged.
    """
    missing: dict[str, str] = {}
    rejected: Counter[str] = Counter()
    made: dict[str, Counter[str]] = {}
    shards: list[dict[str, Any]] = []
    tries = 0
    for manifest in read_manifests(storage):
        missing |= manifest.missing
        rejected.update(manifest.rejected)
        tries += manifest.tries
        for key, counts in manifest.made.items():
            made.setdefault(key, Counter()).update(counts)
        shards.append({k: getattr(manifest, k) for k in ("tar", "count", "bytes", "sha256")})
        shards[-1]["missing"] = len(manifest.missing)
    pictures = sum(shard["count"] for shard in shards)
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
    counts = {k: index[k] for k in ("pictures", "asked", "tries", "missing", "rejected", "made")}
    return counts | {"shards": len(index["shards"])}


def card(index: dict[str, Any]) -> str:
    """The dataset's card, with the licence where the Hugging Face hub looks for it."""
    made = index["made"]
    counts = made.get("licence", {})
    licences = [licence for licence, n in counts.items() if n] or list(counts) or ["unknown"]
    front = {"license": licences[0] if len(licences) == 1 else licences, "task_categories": ["image-to-3d"]}
    drawn = not {"source", "sets"} & set(index["options"])  # all by a model, in this dataset
    missing = missing_sentence(index["missing"])
    return _CARD.format(
        **index,
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**6),
        shard_count=len(index["shards"]),
        megabytes=sum(s["bytes"] for s in index["shards"]) / 1e6,
        because=f"; {missing}" if missing else "",
        made_rows="".join(
            f"| {_cell(f'{key} {value}')} | {n} |\n"
            for key, of in made.items()
            for value, n in of.items()
            if n
        ),
        terms=_TERMS_DRAWN if drawn else "Every record names the licence of its picture.",
        seeds=_SEEDS if drawn else "",
        reason_rows="".join(
            f"| {r} | {n} | {index['missing'].get(r, 0)} |\n" for r, n in index["rejected"].items()
        ),
        options_json=json.dumps(index["options"], indent=2),
    )


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


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
