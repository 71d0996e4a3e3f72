"""Pictures that exist already: files, rows of tables, samples of shards, views of rendered objects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from data_gen.meshes.captions import id_words
from data_gen.prompts.lists import Prompt
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.shards import Shards
from dd3g.io.tables import PictureTables
from dd3g.picture.decoding import read_rgba
from dd3g.picture.sources import (
    SHEET,
    TEXT_KEYS,
    Found,
    ShardPictures,
    find_sources,
    level_views,
    open_pictures,
    sample_metadata,
)

METADATA = "metadata.jsonl"
# Names under which tables and records keep what we call by the first.
NAMES = {
    "text": TEXT_KEYS,
    "group": ("group", "category", "label"),
    "noun": ("noun",),
    "style": ("style",),
    "licence": ("licence", "license"),
    "model": ("model",),
    "file": ("file_name", "file", "image"),
}
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """One picture that can be opened."""

    prompt: Prompt  # its id, and what is known about what it shows
    name: str  # where it is, for people
    place: Any  # where it is, for the source
    # Goes into its record: source, and licence and model where they are known
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """Pictures that exist already."""

    items: list[Item]  # all of them, in a fixed order
    fingerprint: str  # changes with the names and sizes of the files
    # The picture of an item, upright 8-bit RGBA; a UserError when it cannot be used, as others still may
    open: Callable[[Item], Image.Image]


def open_source(
    path: str | Path, views: int = 1, warn: Warn = lambda message: None, output: str | Path = ""
) -> Source:
    """Find out what `path` is: pictures with or without metadata.jsonl, parquet, shards, or rendered objects.

    Pictures are described by that file and by the first folder below their root, their group; rows by the
    other columns of their table; samples by their json or txt.

    Args:
        path: a folder or a file.
        views: pictures taken of each rendered object, at most; which ones depends on the object only.
        warn: is called with metadata that cannot be used.
        output: where the results go, see `find_sources`.

    Raises:
        UserError: when it is none of these.
    """
    found = find_sources(path, output)
    opened = open_pictures(found)
    lines = (f"{name} {size}\n" for name, size in found.listing())
    files = f"{len(found.files)} files {fingerprint(*lines)}"
    if isinstance(opened, Shards):
        return Source(list(_views(opened, views)), f"{files}, {views} views", partial(_open_view, opened))

    def picture(item: Item) -> Image.Image:
        return read_rgba(opened.read(item.place), opened.where(item.place))

    if isinstance(opened, ShardPictures):
        return Source(list(_samples(found, opened.shards).values()), files, picture)
    names = [opened.name(i) for i in range(len(opened))]
    if isinstance(opened, PictureTables):
        rows = opened.described([name for names in NAMES.values() for name in names])
        items = [_item(fingerprint(n), row, n, i) for i, (n, row) in enumerate(zip(names, rows, strict=True))]
        return Source(items, files, picture)
    file = found.root / METADATA
    about = dict(_metadata(file, warn)) if file.is_file() else {}
    if about:
        files += f" {fingerprint(file.read_bytes())}"
    items = [
        _item(fingerprint(n), about.pop(n, {}), n, i, n.rpartition("/")[0].partition("/")[0])
        for i, n in enumerate(names)
    ]
    for name in about:
        warn(f"{file} describes {name}, which is not there")
    return Source(items, files, picture)


def _item(id: str, metadata: Mapping[str, Any], name: str, place: Any, group: str = "", **about: Any) -> Item:
    """An item with what metadata says about it, under any of `NAMES`; `group` is for where it names none."""
    known = {}
    for key, names in NAMES.items():
        texts = [metadata[n] for n in names if isinstance(metadata.get(n), str)]
        known[key] = " ".join(_plain(texts[0]).split()) if texts else ""
    prompt = Prompt(id, known["text"], known["group"] or _plain(group), known["noun"], style=known["style"])
    named = {k: known[k] for k in ("licence", "model") if known[k]}
    return Item(prompt, name, place, {"source": _plain(name)} | named | about)


def _plain(text: str) -> str:
    # File names may hold bytes that are not text.
    return text.encode("utf-8", "replace").decode()


def _metadata(path: Path, warn: Warn) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, what is known about it) of each usable line."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = json.loads(line)
            names = [found[n] for n in NAMES["file"] if isinstance(found.get(n), str)]
            yield Path(names[0]).as_posix(), found
        except (ValueError, AttributeError):
            warn(f"{path}, line {number}, is not a JSON object")
        except IndexError:
            warn(f"{path}, line {number}, has no {NAMES['file'][0]}")


def _samples(found: Found, shards: Shards) -> dict[str, Item]:
    """Items by id: the sample's key, unless it is taken or cannot be the key of a sample of ours."""
    items: dict[str, Item] = {}
    for i in range(len(shards)):
        key = shards.key(i)
        name = f"{key} in {shards.where(i).relative_to(found.root).as_posix()}"
        valid = key.isascii() and key.replace("-", "").isalnum() and len(key) <= 128
        id = key if valid and key not in items else fingerprint(name)
        items[id] = _item(id, sample_metadata(shards.read(i, "json", "txt")), name, i)
    return items


def _views(shards: Shards, views: int) -> Iterator[Item]:
    """Some views of each rendered object, of those at the elevation of the generator's cameras."""
    for i in range(len(shards)):
        key = shards.key(i)
        meta = sample_metadata(shards.read(i, "json"))
        try:
            count, elevation, azimuth = len(meta["viewmats"]), meta["elevation"], meta["azimuth"]
            words = {"text": " ".join(id_words(meta["id"]))}
            level = level_views(meta["quads"], elevation) or list(range(count))
            for view in sorted(random.Random(key).sample(level, min(views, len(level)))):
                about = {"view": view, "azimuth": azimuth[view], "elevation": elevation[view]}
                about["object"] = meta["id"]
                name = f"{key} view {view}"
                yield _item(fingerprint(name), words | meta, name, (i, view, count), **about)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"{key} in {shards.where(i)} is not a rendered object ({error!r}): render it again with "
                "`dd3g data render`"
            ) from error


def _open_view(shards: Shards, item: Item) -> Image.Image:
    index, view, count = item.place
    sheet = _sheet(shards, index)
    width = sheet.width // count
    return read_rgba(sheet.crop((view * width, 0, (view + 1) * width, sheet.height)), item.name)


@lru_cache(maxsize=2)  # views of one object come one after the other
def _sheet(shards: Shards, index: int) -> Image.Image:
    return read_rgba(
        shards.read(index, SHEET).get(SHEET, b""), f"{shards.key(index)} in {shards.where(index)}"
    )
