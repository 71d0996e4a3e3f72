"""Pictures that exist already to shards as `synthesize` makes them: cut out, framed, filtered, described.

python -m data_gen collect PICTURES --output SET
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from PIL import Image

from data_gen.filters.mattes import MatteConfig, MattePool
from data_gen.filters.rules import UNREADABLE, FilterConfig
from data_gen.progress import Progress
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend
from data_gen.shards.generate import run
from data_gen.shards.manifest import ShardManifest, finished_shards
from data_gen.shards.options import FREE
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from data_gen.sources.pictures import Item, Source, open_source
from data_gen.synthesize import WAITING, launched, own_options, sentence
from dd3g.configuration import parse
from dd3g.errors import UserError

USAGE = "python -m data_gen collect SOURCE --output SET [--json] [--rank R --world N]"
MODEL = "collected"  # of pictures whose metadata name no model
SHOWN = 20  # unreadable pictures that are named at the end


@dataclass
class CollectConfig:
    """From pictures that exist already to shards of RGBA pictures."""

    aliases: ClassVar[dict[str, str]] = {"size": "matte.size"}

    source: str = ""  # pictures, parquet, shards of pictures or of rendered objects: a folder or a file
    output: str = ""  # folder or URL of a bucket prefix
    licence: str = "unknown"  # of pictures whose metadata name none
    views: int = 1  # pictures of each rendered object
    limit: int = 0  # use only the first pictures; 0: all
    shard_size: int = 1000  # pictures a shard, before the filters
    batch_size: int = 8  # pictures opened at once
    device: str = "auto"  # of mattes and learned filters: auto, cpu, cuda, cuda:1, mps
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
    config: CollectConfig, ranks: ProcessGroup | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Collect pictures into a set, or what is not there of it yet.

    Each picture has one try: one that the filters reject, or that repeats an earlier one, is left out.

    Args:
        config: the set.
        ranks: which process this is; None: the only one.
        progress: is told how far it is; None: nobody is.

    Returns:
        The report of `data_gen.shards.generate.run`, with "unreadable": the names of the pictures that could not be
        opened, in this run or before.

    Raises:
        UserError: for an unusable source, place or options.
    """
    ranks, progress = ranks or ProcessGroup(), progress or Progress(show=False)
    for name in ("source", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is not set: {USAGE}")
    source = open_source(
        config.source, config.views, progress.say if ranks.rank == 0 else lambda message: None
    )
    items = {item.prompt.id: item for item in source.items[: config.limit or None]}
    storage = Storage(config.output)
    job = DatasetSpec(
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
    config: CollectConfig, source: Source, items: dict[str, Item], ranks: ProcessGroup, progress: Progress
) -> Iterator[PictureBackend]:
    opaque: set[str] = set()  # ids of pictures that need a matte

    def opened(draw: DrawRequest) -> Image.Image | str:
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

    def draw(batch: list[DrawRequest]) -> Sequence[Image.Image | str]:
        return [opened(d) for d in batch]

    def more(draw: DrawRequest) -> dict[str, Any]:
        matte = config.matte.model if draw.prompt.id in opaque else "own alpha"
        return dict(items[draw.prompt.id].about) | {"matte": matte}

    about = {"model": MODEL, "licence": config.licence, "size": config.matte.size}
    with MattePool(config.matte) as pool:
        yield PictureBackend(draw, pool.submit, about, more)


def _unreadable(storage: Storage, items: dict[str, Item]) -> list[str]:
    return [
        items[id].name
        for number in finished_shards(storage)
        for id, reason in ShardManifest.read(storage, number).missing.items()
        if reason == UNREADABLE and id in items
    ]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code.

    As of `synthesize`, and 1 when some pictures could not be opened.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own = own_options()
    own.add_argument("-o", "--output")
    try:
        # A path may hold signs that mean something in the configuration: these two stay out of it.
        given = {"source": words.pop(0)} if words and not words[0].startswith("-") else {}
        mine, rest = own.parse_known_args(words)
        given |= {"output": mine.output} if mine.output else {}
        config = replace(parse(rest, CollectConfig, USAGE), **given)
        ranks, report = launched(mine, partial(collect, config))
    except (argparse.ArgumentError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks.rank == 0 or not ranks.together:
        print(json.dumps(report) if mine.as_json else sentence(report))
        for name in report["unreadable"][:SHOWN] if not mine.as_json else ():
            print(f"error: could not be opened: {name}", file=sys.stderr)
        if len(report["unreadable"]) > SHOWN and not mine.as_json:
            print(
                f"error: nor could {len(report['unreadable']) - SHOWN} more; --json names them",
                file=sys.stderr,
            )
        if report["unreadable"] and not mine.as_json:
            print("to have these too, repair them and collect into another --output", file=sys.stderr)
    if report["waiting"]:
        return WAITING
    return 1 if report["unreadable"] else 0
