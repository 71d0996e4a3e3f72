"""Pictures that exist already to shards as `synthesize` makes them: cut out, framed, filtered, described.

dd3g data collect PICTURES --output SET
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

from PIL import Image

from data_gen.config import FREE
from data_gen.factory import run
from data_gen.filters import UNREADABLE, FilterConfig
from data_gen.job import Draw, Job, Workshop
from data_gen.mattes import MatteConfig, MattePool
from data_gen.progress import Progress
from data_gen.ranks import Ranks
from data_gen.sidecar import Sidecar, finished_shards
from data_gen.sources import Item, Source, open_source
from data_gen.storage import Storage
from data_gen.synthesize import WAITING, launched, sentence
from dd3g.configuration import launch
from dd3g.errors import UserError
from dd3g.setting import setting

USAGE = "dd3g data collect SOURCE --output SET"
MODEL = "collected"  # of pictures whose metadata name no model
SHOWN = 20  # unreadable pictures that are named at the end


@dataclass
class CollectConfig:
    """From pictures that exist already to shards of RGBA pictures."""

    aliases: ClassVar[dict[str, str]] = {"size": "matte.size"}
    positional: ClassVar[str] = "source"
    configs: ClassVar[str] = "data_gen"

    source: str = setting("", "folder or file: pictures, parquet, shards of pictures or of renders")
    output: str = setting("", "folder or URL of a bucket prefix")
    licence: str = setting("unknown", "of pictures whose metadata name none")
    views: int = setting(1, "pictures of each rendered object")
    limit: int = setting(0, "use only the first pictures; 0: all")
    shard_size: int = setting(1000, "pictures a shard, before the filters")
    batch_size: int = setting(8, "pictures opened at once")
    device: str = setting("auto", "of mattes and learned filters: auto, cpu, cuda, cuda:1, mps")
    rank: int | None = setting(None, "of this process, where no launcher tells; with world")
    world: int | None = setting(None, "number of processes that make the set")
    json: bool = setting(False, "print the report as JSON")
    matte: MatteConfig = field(default_factory=MatteConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        for name in ("views", "shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, got {self.limit}")

    def options(self) -> dict[str, Any]:
        """What decides the pictures beside the source, flat."""
        flat: dict[str, Any] = {k: getattr(self, k) for k in ("licence", "shard_size", "batch_size")}
        for section in ("matte", "filters"):
            flat |= {f"{section}.{k}": v for k, v in asdict(getattr(self, section)).items()}
        return {k: v for k, v in flat.items() if k not in FREE}


def collect(
    config: CollectConfig, ranks: Ranks | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Collect pictures into a set, or what is not there of it yet.

    Each picture has one try: one that the filters reject, or that repeats an earlier one, is left out.

    Args:
        config: the set.
        ranks: which process this is; None: the only one.
        progress: is told how far it is; None: nobody is.

    Returns:
        The report of `data_gen.factory.run`, with "unreadable": the names of the pictures that could not be
        opened, in this run or before.

    Raises:
        UserError: for an unusable source, place or options.
    """
    ranks, progress = ranks or Ranks(), progress or Progress(show=False)
    for name in ("source", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is not set: {USAGE}")
    source = open_source(
        config.source, config.views, progress.say if ranks.rank == 0 else lambda message: None
    )
    items = {item.prompt.id: item for item in source.items[: config.limit or None]}
    storage = Storage(config.output)
    job = Job(
        storage,
        [item.prompt for item in items.values()],
        {"source": source.fingerprint, "pictures": len(items)} | config.options(),
        lambda: _workshop(config, source, items, ranks, progress),
        config.filters,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        attempts=1,
        device=config.device,
    )
    report = run(job, ranks, progress)
    return report | {"unreadable": _unreadable(storage, items)}


@contextmanager
def _workshop(
    config: CollectConfig, source: Source, items: dict[str, Item], ranks: Ranks, progress: Progress
) -> Iterator[Workshop]:
    opaque: set[str] = set()  # ids of pictures that need a matte

    def opened(draw: Draw) -> Image.Image | str:
        item = items[draw.prompt.id]
        try:
            image = source.open(item)
        except UserError as error:
            progress.say(f"skipped {error}")
            return UNREADABLE
        # As for the generator's own input: eight times the frame is enough of any picture.
        image = image.reduce(max(1, max(image.size) // (8 * config.matte.size)))
        if image.getchannel("A").getextrema()[0] < 255:
            return image
        if not opaque:  # the first that needs the model, which a set with alpha can do without
            ranks.device(config.device)
            pool.warm()
        opaque.add(item.prompt.id)
        return image.convert("RGB")

    def draw(batch: list[Draw]) -> Sequence[Image.Image | str]:
        return [opened(d) for d in batch]

    def more(draw: Draw) -> dict[str, Any]:
        matte = config.matte.model if draw.prompt.id in opaque else "own alpha"
        return dict(items[draw.prompt.id].about) | {"matte": matte}

    about = {"model": MODEL, "licence": config.licence, "size": config.matte.size}
    with MattePool(config.matte) as pool:
        yield Workshop(draw, pool.submit, about, more)


def _unreadable(storage: Storage, items: dict[str, Item]) -> list[str]:
    return [
        items[id].name
        for number in finished_shards(storage)
        for id, reason in Sidecar.read(storage, number).missing.items()
        if reason == UNREADABLE and id in items
    ]


def run_config(config: CollectConfig) -> int:
    """Collect and tell about it; returns `synthesize`'s exit code, or 1 when pictures did not open."""
    ranks, report = launched(partial(collect, config), config.rank, config.world, show=not config.json)
    unreadable = report["unreadable"]
    if ranks.rank == 0 or not ranks.together:
        print(json.dumps(report) if config.json else sentence(report))
        if unreadable and not config.json:
            for name in unreadable[:SHOWN]:
                print(f"error: could not be opened: {name}", file=sys.stderr)
            if len(unreadable) > SHOWN:
                print(f"error: nor could {len(unreadable) - SHOWN} more; --json names them", file=sys.stderr)
            print("to have these too, repair them and collect into another --output", file=sys.stderr)
    if report["waiting"]:
        return WAITING
    return 1 if unreadable else 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run_config, CollectConfig, argv, "dd3g data collect")
