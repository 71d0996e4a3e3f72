"""The options of a dataset, which must not change as long as it is worked on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from data_gen.shards.manifest import CHUNKS, ShardManifest, finished_shards
from data_gen.shards.storage import Storage
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint

OPTIONS = "options.json"
# What commands read from the options.
_RANGES = {"shard_size": (1, 100_000), "shards": (0, 10**9), "filters.duplicate_distance": (-1, 62)}
# Where and how fast the work is done may change; what is drawn from counts by its content, not by its place.
FREE = {
    "rank", "world", "json",
    "output", "prompts", "source", "views", "limit", "device", "batch_size", "matte.workers",
    "model.attention", "model.offload", "model.vae_slicing",
}  # fmt: skip


def flat_options(config: Any) -> dict[str, Any]:
    """What decides the pictures in a command's configuration, flat: `{"seed": 0, "model.path": …}`."""
    flat: dict[str, Any] = {}
    for key, value in asdict(config).items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return {k: v for k, v in flat.items() if k not in FREE}


def options_fingerprint(options: Mapping[str, Any]) -> str:
    """Hash of options; every shard's manifest repeats it."""
    return fingerprint(json.dumps(dict(options), sort_keys=True, default=str))


def check_options(storage: Storage, options: Mapping[str, Any], write: bool) -> None:
    """Store the options of a dataset, or compare with those that it was started with.

    Args:
        storage: of the dataset.
        options: flat and JSON-able.
        write: store them when no picture has been made with others; only one process may.

    Raises:
        UserError: naming the first option that differs.
    """
    text = json.dumps(dict(options), indent=2, default=str) + "\n"
    if storage.exists(OPTIONS) and not (write and not started(storage)):
        before, now = read_options(storage), json.loads(text)
        for key in now | before:
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{storage} was started with other options: {key} was {_shown(before, key)}, now "
                    f"{_shown(now, key)}; use those, give another output, or delete {storage}"
                )
        return
    # Ranks with no way to talk may have finished shards before rank 0 begins.
    shards = finished_shards(storage)
    if shards and ShardManifest.read(storage, shards[0]).options != options_fingerprint(options):
        raise UserError(f"{storage} holds pictures made with other options: give another output")
    if write:
        storage.write(OPTIONS, text)


def started(storage: Storage) -> bool:
    """Whether some of a dataset's pictures have been made."""
    return bool(finished_shards(storage) or storage.names(CHUNKS))


def read_options(storage: Storage) -> dict[str, Any]:
    """The options of a dataset.

    Raises:
        UserError: when there are none, or they are damaged.
    """
    if not storage.exists(OPTIONS):
        raise UserError(
            f"{storage} is not a set of pictures, it has no {OPTIONS}: give the output of synthesize"
        )
    try:
        found = json.loads(storage.read(OPTIONS))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        for key, (least, most) in _RANGES.items():
            value = found.get(key, least)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{key} is {json.dumps(value)}")
        return found
    except ValueError as error:
        raise UserError(
            f"{storage}/{OPTIONS} is damaged ({error}): delete it and run the command that made the set again"
        ) from error


def _shown(options: Mapping[str, Any], key: str) -> str:
    return json.dumps(options[key], ensure_ascii=False) if key in options else "not set"
