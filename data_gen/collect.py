"""Pictures that exist already to shards as `synthesize` makes them: cut out, framed, filtered, described.

dd3g data collect PICTURES --output SET
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image

from data_gen.filters.mattes import MatteConfig, MattePool
from data_gen.filters.rules import UNREADABLE, FilterConfig
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend, flat_options
from data_gen.shards.generate import generate_shards, run
from data_gen.shards.manifest import read_manifests
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from data_gen.sources.pictures import Item, Source, open_source
from dd3g.command.progress import Progress
from dd3g.command.setting import check_ranges, setting
from dd3g.errors import UserError
from dd3g.picture.framing import is_cut_out

USAGE = "dd3g data collect SOURCE --output SET"
MODEL = "collected"  # of pictures whose metadata name no model


@dataclass
class CollectConfig:
    """From pictures that exist already to shards of RGBA pictures."""

    aliases: ClassVar[dict[str, str]] = {"size": "matte.size"}
    positional: ClassVar[str] = "source"
    configs: ClassVar[str] = "data_gen"

    source: str = setting("", "folder or file: pictures, parquet, shards of pictures or of renders")
    output: str = setting("", "folder or URL of a bucket prefix")
    licence: str = setting("unknown", "of pictures whose metadata name none")
    views: int = setting(1, "pictures of each rendered object", 1)
    limit: int = setting(0, "use only the first pictures; 0: all", 0)
    shard_size: int = setting(1000, "pictures per shard, before the filters", 1, 100_000)
    batch_size: int = setting(8, "pictures opened at once", 1)
    device: str = setting("auto", "of mattes and learned filters: auto, cpu, cuda, cuda:1, mps")
    rank: int | None = setting(None, "of this process, where no launcher sets it; with world")
    world: int | None = setting(None, "number of processes that make the set")
    json: bool = setting(False, "print the report as JSON")
    matte: MatteConfig = field(default_factory=MatteConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


def collect(
    config: CollectConfig, group: ProcessGroup | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Collect pictures into a dataset, or what is not there of it yet; by default alone, and without a bar.

    Each picture has one try: one that the filters reject, or that repeats an earlier one, is left out.

    Returns:
        The report of `data_gen.shards.generate.generate_shards`, with "unreadable": the names of the pictures
        that could not be opened, in this run or before.

    Raises:
        UserError: for an unusable source, place or options.
    """
    group, progress = group or ProcessGroup(), progress or Progress(show=False)
    for name in ("source", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is not set: {USAGE}")
    source = open_source(
        config.source,
        config.views,
        progress.say if group.rank == 0 else lambda message: None,
        config.output,
    )
    items = {item.prompt.id: item for item in source.items[: config.limit or None]}
    storage = Storage(config.output)
    spec = DatasetSpec(
        storage,
        [item.prompt for item in items.values()],
        {"source": source.fingerprint, "pictures": len(items)} | flat_options(config),
        lambda: _backend(config, source, items, group, progress),
        config.filters,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        attempts=1,
        device=config.device,
    )
    report = generate_shards(spec, group, progress)
    missing = (pair for manifest in read_manifests(storage) for pair in manifest.missing.items())
    return report | {
        "unreadable": [items[id].name for id, reason in missing if reason == UNREADABLE and id in items]
    }


@contextmanager
def _backend(
    config: CollectConfig,
    source: Source,
    items: dict[str, Item],
    group: ProcessGroup,
    progress: Progress,
) -> Iterator[PictureBackend]:
    opaque: set[str] = set()  # ids of pictures that need a matte

    def opened(request: DrawRequest) -> Image.Image | str:
        item = items[request.prompt.id]
        try:
            image = source.open(item)
        except UserError as error:
            progress.say(f"skipped {error}")
            return UNREADABLE
        # As for the generator's own input: eight times the frame is enough of any picture.
        image = image.reduce(max(1, max(image.size) // (8 * config.matte.size)))
        if is_cut_out(image):
            return image
        if not opaque:  # the first that needs the model, which a dataset with alpha can do without
            group.device(config.device)
            pool.warm()
        opaque.add(item.prompt.id)
        return image.convert("RGB")

    def more(request: DrawRequest) -> dict[str, Any]:
        matte = config.matte.model if request.prompt.id in opaque else "own alpha"
        return dict(items[request.prompt.id].about) | {"matte": matte}

    about = {"model": MODEL, "licence": config.licence, "size": config.matte.size}
    with MattePool(config.matte) as pool:
        yield PictureBackend(lambda batch: [opened(request) for request in batch], pool.submit, about, more)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code of `data_gen.shards.generate.run`."""
    return run(collect, CollectConfig, "dd3g data collect", argv)
