"""Pictures inside larger files: rows of parquet tables, shards of pictures, sheets of rendered objects."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from data_gen.captions import id_words
from data_gen.sources import NAMES, Item, described, fingerprint, named_id, valid_id
from dd3g.cameras import ELEVATION
from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.picture import SUFFIXES, read_rgba

IMAGE_COLUMNS = ("image", "picture", "img", "png", "jpg")
SHEET, DEPTH = "rgba.png", "depth.png"  # what a rendered object's sample holds


class ParquetRows:
    """Rows of parquet tables with a column of encoded pictures: bytes, or a struct that holds bytes.

    Args:
        root: their folder.
        files: the tables, sorted.

    Raises:
        UserError: when pyarrow is missing, or a table cannot be read or has no such column.
    """

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.fingerprint = fingerprint(files, root)
        self._columns: dict[Path, str] = {}
        items: list[Item] = []
        for file in files:
            table = _parquet(file)
            names = table.schema_arrow.names
            self._columns[file] = _image_column(file, table)
            wanted = [n for listed in NAMES.values() for n in listed if n in names and n not in IMAGE_COLUMNS]
            number = 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                rows = _rows(file, group, wanted) if wanted else [{}] * count
                for i, row in enumerate(rows):
                    name = f"{file.relative_to(root).as_posix()} row {number}"
                    items.append(described(named_id(name), row, name, (file, group, i)))
                    number += 1
        self.items: Sequence[Item] = items

    def open(self, item: Item) -> Image.Image:
        """See `Source`."""
        file, group, row = item.place
        column = self._columns[file]
        value = _pictures(file, group, column)[row][column]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"{item.name} holds no picture")
        return read_rgba(data, item.name)


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("parquet files need the extra 'data': pip install 'dd3g[data]'") from error
    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise UserError(f"{file} is no parquet file or is damaged ({error}): copy it again") from error


def _image_column(file: Path, table: Any) -> str:
    from pyarrow import types

    for name in IMAGE_COLUMNS:
        if name in table.schema_arrow.names:
            kind = table.schema_arrow.field(name).type
            if types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind):
                return name
    raise UserError(
        f"{file} has the columns {', '.join(table.schema_arrow.names)}: one of {', '.join(IMAGE_COLUMNS)} "
        "must hold encoded pictures"
    )


@lru_cache(maxsize=2)  # rows come in order
def _pictures(file: Path, group: int, column: str) -> list[dict[str, Any]]:
    return _rows(file, group, [column])


def _rows(file: Path, group: int, columns: list[str]) -> list[dict[str, Any]]:
    from pyarrow import ArrowException

    try:
        return _parquet(file).read_row_group(group, columns).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged in row group {group} ({error}): copy it again") from error


def open_shards(root: Path, files: Sequence[Path], views: int) -> ShardPictures | RenderedViews:
    """Shards of pictures or of rendered objects.

    Raises:
        UserError: when they are neither.
    """
    shards = Shards(files)
    extensions = set(shards.read(0)) if len(shards) else set()
    if {SHEET, DEPTH} <= extensions:
        return RenderedViews(root, shards, views)
    if extensions & set(_PICTURES):
        return ShardPictures(root, shards)
    raise UserError(
        f"{files[0]}: its samples hold {', '.join(sorted(extensions - {'__key__'})) or 'nothing'}; expected "
        f"pictures ({', '.join(_PICTURES)}) or rendered objects ({SHEET}, {DEPTH})"
    )


_PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)


class ShardPictures:
    """Samples of webdataset shards with a picture, and perhaps a json or txt about it.

    Args:
        root: the folder of the shards.
        shards: the shards.
    """

    def __init__(self, root: Path, shards: Shards) -> None:
        self._shards = shards
        self.fingerprint = fingerprint(shards.paths, root)
        items: dict[str, Item] = {}
        for i in range(len(shards)):
            key, shard = shards.key(i), shards.where(i).relative_to(root).as_posix()
            name = f"{key} in {shard}"
            id = key if valid_id(key) and key not in items else named_id(name)
            items[id] = described(id, _json(shards.read(i, "json", "txt")), name, i)
        self.items: Sequence[Item] = list(items.values())

    def open(self, item: Item) -> Image.Image:
        """See `Source`."""
        sample = self._shards.read(item.place, *_PICTURES)
        data = next((sample[e] for e in _PICTURES if e in sample), None)
        if data is None:
            raise UserError(f"{item.name} holds no picture")
        return read_rgba(data, item.name)


class RenderedViews:
    """Some views of each rendered object, of those at the elevation of the generator's cameras.

    Args:
        root: the folder of the shards.
        shards: of tools/render_objects.py.
        views: how many of each object at most; which ones depends on the object only.
    """

    def __init__(self, root: Path, shards: Shards, views: int) -> None:
        self._shards = shards
        self.fingerprint = f"{fingerprint(shards.paths, root)}, {views} views"
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
