"""Pictures inside larger files: rows of parquet tables, shards of pictures, sheets of rendered objects."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from data_gen.meshes.captions import id_words
from data_gen.sources.pictures import NAMES, Item, described, fingerprint, named_id, valid_id
from dd3g.cameras import ELEVATION
from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.io.tables import PictureTables
from dd3g.picture import read_rgba
from dd3g.picture_sources import SHEET, Found, hold_renders, picture_of


class ParquetRows:
    """Rows of parquet tables; see `PictureTables`.

    Args:
        found: the tables.

    Raises:
        UserError: as `PictureTables`.
    """

    def __init__(self, found: Found) -> None:
        self.fingerprint = fingerprint(found)
        self._tables = PictureTables(found.root, found.files)
        said = self._tables.described([name for names in NAMES.values() for name in names])
        items = []
        for i, row in enumerate(said):
            name = self._tables.name(i)
            items.append(described(named_id(name), row, name, i))
        self.items: Sequence[Item] = items

    def open(self, item: Item) -> Image.Image:
        """See `Source`."""
        return read_rgba(self._tables.read(item.place), item.name)


def open_shards(found: Found, views: int) -> ShardPictures | RenderedViews:
    """Shards of pictures or of rendered objects.

    Raises:
        UserError: when they are neither.
    """
    shards = Shards(sorted(found.files))  # the order that indices of sets made so far count in
    return RenderedViews(found, shards, views) if hold_renders(shards) else ShardPictures(found, shards)


class ShardPictures:
    """Samples of webdataset shards with a picture, and perhaps a json or txt about it.

    Args:
        found: the files.
        shards: what is in them.
    """

    def __init__(self, found: Found, shards: Shards) -> None:
        self._shards = shards
        self.fingerprint = fingerprint(found)
        items: dict[str, Item] = {}
        for i in range(len(shards)):
            key, shard = shards.key(i), shards.where(i).relative_to(found.root).as_posix()
            name = f"{key} in {shard}"
            id = key if valid_id(key) and key not in items else named_id(name)
            items[id] = described(id, _json(shards.read(i, "json", "txt")), name, i)
        self.items: Sequence[Item] = list(items.values())

    def open(self, item: Item) -> Image.Image:
        """See `Source`."""
        return read_rgba(picture_of(self._shards, item.place), item.name)


class RenderedViews:
    """Some views of each rendered object, of those at the elevation of the generator's cameras.

    Args:
        found: the files that tools/render_objects.py wrote.
        shards: what is in them.
        views: how many of each object at most; which ones depends on the object only.
    """

    def __init__(self, found: Found, shards: Shards, views: int) -> None:
        self._shards = shards
        self.fingerprint = f"{fingerprint(found)}, {views} views"
        items = []
        for i in range(len(shards)):
            key = shards.key(i)
            meta = _json(shards.read(i, "json"))
            try:
                count, elevation, azimuth = len(meta["viewmats"]), meta["elevation"], meta["azimuth"]
                words = {"text": " ".join(id_words(meta["id"]))}
                level = _level(meta["quads"], elevation) or list(range(count))
                for view in sorted(random.Random(key).sample(level, min(views, len(level)))):
                    about = {"view": view, "azimuth": azimuth[view], "elevation": elevation[view]}
                    name = f"{key} view {view}"
                    about["object"] = meta["id"]
                    items.append(described(named_id(name), words | meta, name, (i, view, count), **about))
            except (KeyError, IndexError, TypeError) as error:
                raise UserError(
                    f"{key} in {shards.where(i)} is no rendered object ({error!r}): render it again with "
                    "tools/render_objects.py"
                ) from error
        self.items: Sequence[Item] = items

    def open(self, item: Item) -> Image.Image:
        """See `Source`."""
        index, view, count = item.place
        sheet = _sheet(self._shards, index)
        width = sheet.width // count
        return read_rgba(sheet.crop((view * width, 0, (view + 1) * width, sheet.height)), item.name)


@lru_cache(maxsize=2)  # views of one object come one after the other
def _sheet(shards: Shards, index: int) -> Image.Image:
    return read_rgba(
        shards.read(index, SHEET).get(SHEET, b""), f"{shards.key(index)} in {shards.where(index)}"
    )


def _level(quads: list[list[int]], elevation: list[float]) -> list[int]:
    """Views of the quads whose elevation is nearest to the generator's."""
    distance = [abs(elevation[quad[0]] - ELEVATION) for quad in quads]
    return [v for quad, d in zip(quads, distance, strict=True) if d < min(distance) + 0.5 for v in quad]


def _json(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample says about itself; nothing when that cannot be read."""
    try:
        found = json.loads(sample.get("json", b"{}"))
        said = found if isinstance(found, dict) else {}
    except ValueError:
        said = {}
    return {"text": sample["txt"].decode("utf-8", "replace")} | said if "txt" in sample else said
