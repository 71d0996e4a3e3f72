"""What a dataset is made from: its prompts, its options, and the backend that draws and mattes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from data_gen.filters.rules import FilterConfig
from data_gen.prompts.lists import Prompt, read_prompts
from data_gen.shards.manifest import CHUNKS, ShardManifest, finished_shards
from data_gen.shards.storage import Storage
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from data_gen.filters.mattes import Matted

PROMPTS = "prompts.jsonl"  # in a dataset: what was asked for
OPTIONS = "options.json"
# What commands read from the options.
_RANGES = {"shard_size": (1, 100_000), "shards": (0, 10**9), "filters.duplicate_distance": (-1, 62)}
# Where and how fast the work is done may change; what is drawn from counts by its content, not by its place.
FREE = {
    "rank", "world", "json",
    "output", "prompts", "source", "views", "limit", "device", "batch_size", "matte.workers",
    "model.attention", "model.offload", "model.vae_slicing",
}  # fmt: skip


@dataclass(frozen=True)
class DrawRequest:
    """One try at one prompt; its seed depends on the run, the prompt and the attempt only."""

    prompt: Prompt
    attempt: int
    seed: int


def seed_of(seed: int, prompt: str, attempt: int) -> int:
    """Seed of a picture, 48 bits, by that of the run, the id of the prompt, and the attempt from 0 on."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}:{attempt}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class PictureBackend:
    """What makes pictures; opened only by a process that has some to make."""

    # A batch of tries -> for each a picture (RGB, or RGBA with straight alpha), or why there is none
    draw: Callable[[list[DrawRequest]], Sequence[Image.Image | str]]
    # Pictures -> their mattes, None where no object was found; returns at once
    matte: Callable[[list[Image.Image]], Future[list[Matted | None]]]
    about: Mapping[str, Any]  # goes into every record: model, licence, matte, size
    # Of a try, what else goes into its record; wins over `about`
    more: Callable[[DrawRequest], dict[str, Any]] = lambda request: {}
    # Of cut-outs, (S, S, 4) uint8 each, and their prompts, more than `data_gen.filters.rules` measures; asked
    # only about those that pass so far
    scores: Callable[[list[NDArray[np.uint8]], list[str]], list[dict[str, float]]] | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset to be made; every shard is a pure function of this and its number."""

    storage: Storage  # where it lies
    prompts: Sequence[Prompt]  # all of them; shard s owns prompts[s * shard_size : (s + 1) * shard_size]
    # What must be the same whenever the dataset is worked on, flat and JSON-able; with "shard_size"
    options: Mapping[str, Any]
    backend: Callable[[], AbstractContextManager[PictureBackend]]  # opens the picture model and the mattes
    filters: FilterConfig = field(default_factory=FilterConfig)  # thresholds
    seed: int = 0  # of the run
    shard_size: int = 1000  # prompts a shard
    batch_size: int = 8  # pictures drawn at once; decides nothing about them
    attempts: int = 4  # tries a prompt
    device: str = "auto"  # where learned filters run, as `dd3g.nn.checkpoint.find_device` takes it

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.prompts) // self.shard_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the options; every manifest repeats it."""
        return options_fingerprint(self.options)

    def owned(self, shard: int) -> Sequence[Prompt]:
        """The prompts of one shard."""
        return self.prompts[shard * self.shard_size : (shard + 1) * self.shard_size]


def stored_prompts(storage: Storage) -> list[Prompt]:
    """The prompts of a dataset.

    Raises:
        UserError: when they are missing or damaged.
    """
    with storage.reading(PROMPTS) as [path]:
        return read_prompts(path, f"delete {storage}/{PROMPTS} and run the command that made the set again")


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
    """Compare options, flat and JSON-able, with those that a dataset was started with.

    With `write`, which only one process may, they are stored when no picture has been made with others.

    Raises:
        UserError: naming the first option that differs.
    """
    text, shards = json.dumps(dict(options), indent=2, default=str) + "\n", finished_shards(storage)
    if storage.exists(OPTIONS) and (shards or storage.names(CHUNKS) or not write):
        before, now = read_options(storage), json.loads(text)
        for key in now | before:
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{storage} was started with other options: {key} was {_shown(before, key)}, now "
                    f"{_shown(now, key)}; use those, give another output, or delete {storage}"
                )
        return
    # Ranks with no way to talk may have finished shards before rank 0 begins.
    if shards and ShardManifest.read(storage, shards[0]).options != options_fingerprint(options):
        raise UserError(f"{storage} holds pictures made with other options: give another output")
    if write:
        storage.write(OPTIONS, text)


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
        if "mesh files" in found:
            raise UserError(f"{storage} holds renders of `dd3g data render`: give a set of pictures")
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
