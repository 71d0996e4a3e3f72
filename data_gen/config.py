"""The configuration of `synthesize`, and the options that a set keeps as long as it is worked on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from data_gen.filters import FilterConfig
from data_gen.mattes import MatteConfig
from data_gen.pictures import ModelConfig
from data_gen.pipeline_folders import folder_fingerprint
from data_gen.sidecar import Sidecar, finished_shards
from data_gen.storage import Storage
from dd3g.errors import UserError
from dd3g.setting import setting

OPTIONS = "options.json"
# What commands read from the options.
_RANGES = {"shard_size": (1, 100_000), "shards": (0, 10**9), "filters.duplicate_distance": (-1, 62)}
# Where and how fast the work is done; these may change while a set is made.
FREE = {
    "output",
    "prompts",
    "rank",
    "world",
    "json",
    "device",
    "batch_size",
    "matte.workers",
    "model.attention",
    "model.offload",
    "model.vae_slicing",
}


@dataclass
class SynthesizeConfig:
    """From prompts to shards of RGBA pictures."""

    aliases: ClassVar[dict[str, str]] = {"size": "matte.size"}
    configs: ClassVar[str] = "data_gen"

    prompts: str = setting("", "file that `dd3g data prompts` wrote, or a list of one's own")
    output: str = setting("", "folder or URL of a bucket prefix")
    seed: int = setting(0, "of the run; a picture's follows from it, its prompt and the attempt")
    shard_size: int = setting(1000, "prompts a shard")
    batch_size: int = setting(8, "pictures drawn at once")
    attempts: int = setting(4, "tries a prompt")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps; auto gives each process its own GPU")
    rank: int | None = setting(None, "of this process, where no launcher tells; with world")
    world: int | None = setting(None, "number of processes that make the set")
    json: bool = setting(False, "print the report as JSON")
    model: ModelConfig = field(default_factory=ModelConfig)
    matte: MatteConfig = field(default_factory=MatteConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.shard_size > 100_000:
            raise ValueError(f"shard_size must be at most 100000, got {self.shard_size}")
        if self.attempts > 100:
            raise ValueError(f"attempts must be at most 100, got {self.attempts}")

    def options(self) -> dict[str, Any]:
        """What decides the pictures, flat: `{"seed": 0, "model.path": …}`.

        A folder counts by what is in it: it may be moved, but not trained on while a set is made.
        """
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            nested = value.items() if isinstance(value, dict) else [("", value)]
            flat |= {f"{key}.{k}" if k else key: v for k, v in nested}
        if (folder := Path(self.model.path).expanduser()).is_dir():
            flat["model.path"] = f"a folder with fingerprint {folder_fingerprint(folder)}"
        return {k: v for k, v in flat.items() if k not in FREE}


def fingerprint(options: Mapping[str, Any]) -> str:
    """Hash of options; every sidecar repeats it."""
    return hashlib.sha256(json.dumps(dict(options), sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_options(storage: Storage, options: Mapping[str, Any], write: bool) -> None:
    """Store the options of a set, or compare with those that it was started with.

    Args:
        storage: of the set.
        options: flat and JSON-able.
        write: store them when no picture has been made with others; only one process may.

    Raises:
        UserError: naming the first option that differs.
    """
    if write and not started(storage):  # what failed before its first picture binds nobody
        storage.write(OPTIONS, json.dumps(dict(options), indent=2, default=str) + "\n")
        return
    if not storage.exists(OPTIONS):
        # Ranks with no way to talk may have finished shards before rank 0 begins.
        shards = finished_shards(storage)
        if shards and Sidecar.read(storage, shards[0]).options != fingerprint(options):
            raise UserError(f"{storage} holds pictures made with other options: give another output")
        if write:
            storage.write(OPTIONS, json.dumps(dict(options), indent=2, default=str) + "\n")
        return
    before = read_options(storage)
    now = json.loads(json.dumps(dict(options), default=str))
    for key in (*now, *(k for k in before if k not in now)):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{storage} was started with other options: {key} was {_shown(before, key)}, now "
                f"{_shown(now, key)}; use those, give another output, or delete {storage}"
            )


def started(storage: Storage) -> bool:
    """Whether some of a set's pictures have been made."""
    return bool(finished_shards(storage) or storage.names("parts"))


def read_options(storage: Storage) -> dict[str, Any]:
    """The options of a set.

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
