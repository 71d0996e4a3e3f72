"""What a dataset is made from: its prompts, its options, and the backend that draws and mattes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from data_gen.filters.rules import FilterConfig
from data_gen.prompts.lists import Prompt, read_prompts
from data_gen.shards.options import options_fingerprint
from data_gen.shards.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from data_gen.filters.mattes import Matted

PROMPTS = "prompts.jsonl"  # in a dataset: what was asked for


def stored_prompts(storage: Storage) -> list[Prompt]:
    """The prompts of a dataset.

    Raises:
        UserError: when they are missing or damaged.
    """
    with storage.reading(PROMPTS) as [path]:
        return read_prompts(path, f"delete {storage}/{PROMPTS} and run the command that made the set again")


@dataclass(frozen=True)
class DrawRequest:
    """One try at one prompt; its seed depends on the run, the prompt and the attempt only."""

    prompt: Prompt
    attempt: int
    seed: int


def seed_of(seed: int, prompt: str, attempt: int) -> int:
    """Seed of a picture, 48 bits.

    Args:
        seed: of the run.
        prompt: id of the prompt.
        attempt: 0, 1, …
    """
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
