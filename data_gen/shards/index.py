"""The whole dataset in figures, index.json, and in words, its card README.md; from the manifests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from data_gen.shards.dataset import read_options
from data_gen.shards.manifest import read_manifests
from data_gen.shards.storage import Storage

INDEX, CARD = "index.json", "README.md"


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
    from jinja2 import Environment, StrictUndefined

    counts = index["made"].get("licence", {})
    licences = [licence for licence, n in counts.items() if n] or list(counts) or ["unknown"]
    front = {"license": licences[0] if len(licences) == 1 else licences, "task_categories": ["image-to-3d"]}
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(Path(__file__).with_name("card.md").read_text("utf-8")).render(
        index,
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**6),
        megabytes=sum(s["bytes"] for s in index["shards"]) / 1e6,
        sentence=missing_sentence(index["missing"]),
        drawn=not {"source", "sets"} & set(index["options"]),  # all by a model, in this dataset
        options_json=json.dumps(index["options"], indent=2),
    )


def missing_sentence(missing: dict[str, int]) -> str:
    """`3 are missing: 2 blur, 1 duplicate`; empty when none is."""
    if not missing:
        return ""
    reasons = ", ".join(f"{n} {reason}" for reason, n in missing.items())
    total = sum(missing.values())
    return f"{total} {'are' if total > 1 else 'is'} missing: {reasons}"


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
