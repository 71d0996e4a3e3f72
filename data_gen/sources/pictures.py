"""Pictures that exist already: files, rows of tables, samples of shards, views of rendered objects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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
    EncodedPictures,
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


def open_source(
    path: str | Path, views: int = 1, warn: Warn = lambda message: None, output: str | Path = ""
) -> DescribedPictures | RenderedViews:
    """Find out what `path` is: pictures with or without metadata.jsonl, parquet, shards, or rendered objects.

    Args:
        path: a folder or a file.
        views: pictures taken of each rendered object.
        warn: is called with metadata that cannot be used.
        output: where the results go, see `find_sources`.

    Raises:
        UserError: when it is none of these.
    """
    found = find_sources(path, output)
    opened = open_pictures(found)
    if isinstance(opened, Shards):
        return RenderedViews(found, opened, views)
    return DescribedPictures(found, opened, warn)


def _files_fingerprint(found: Found) -> str:
    """Number and hash of files, by their names below a folder and their sizes."""
    lines = (f"{name} {size}\n" for name, size in found.listing())
    return f"{len(found.files)} files {fingerprint(*lines)}"


class DescribedPictures:
    """Encoded pictures with the metadata that lies beside them.

    `items` are all of them in a fixed order; `fingerprint` changes with the names and sizes of the files.
    Files are described by a metadata.jsonl and by the first folder below their root, their group; rows by the
    other columns of their table; samples by their json or txt.

    Args:
        found: the files.
        encoded: the pictures in them.
        warn: is called with lines of the metadata that cannot be used.
    """

    def __init__(self, found: Found, encoded: EncodedPictures, warn: Warn) -> None:
        self.fingerprint, self._encoded = _files_fingerprint(found), encoded
        if isinstance(encoded, PictureTables):
            rows = encoded.described([name for names in NAMES.values() for name in names])
            self.items = [self._at(i, row) for i, row in enumerate(rows)]
        elif isinstance(encoded, ShardPictures):
            self.items = list(_samples(found, encoded.shards).values())
        else:
            file = found.root / METADATA
            about = dict(_metadata(file, warn)) if file.is_file() else {}
            if about:
                self.fingerprint += f" {fingerprint(file.read_bytes())}"
            self.items = [self._at(i, about.pop(encoded.name(i), {})) for i in range(len(encoded))]
            for name in about:
                warn(f"{file} describes {name}, which is not there")

    def _at(self, index: int, metadata: Mapping[str, Any]) -> Item:
        name = self._encoded.name(index)
        group = name.partition("/")[0] if "/" in name and not isinstance(self._encoded, PictureTables) else ""
        return _item(fingerprint(name), metadata, name, index, group)

    def open(self, item: Item) -> Image.Image:
        """The picture, upright 8-bit RGBA.

        Raises:
            UserError: when it cannot be used; the others may still be fine.
        """
        return read_rgba(self._encoded.read(item.place), self._encoded.where(item.place))


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


class RenderedViews:
    """Some views of each rendered object, of those at the elevation of the generator's cameras.

    `items` and `fingerprint` are as of `DescribedPictures`.

    Args:
        found: the files that `dd3g data render` wrote.
        shards: what is in them.
        views: how many of each object at most; which ones depends on the object only.
    """

    def __init__(self, found: Found, shards: Shards, views: int) -> None:
        self._shards = shards
        self.items: list[Item] = []
        self.fingerprint = f"{_files_fingerprint(found)}, {views} views"
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
                    self.items.append(_item(fingerprint(name), words | meta, name, (i, view, count), **about))
            except (KeyError, IndexError, TypeError) as error:
                raise UserError(
                    f"{key} in {shards.where(i)} is not a rendered object ({error!r}): render it again with "
                    "`dd3g data render`"
                ) from error

    def open(self, item: Item) -> Image.Image:
        """See `DescribedPictures.open`."""
        index, view, count = item.place
        sheet = _sheet(self._shards, index)
        width = sheet.width // count
        return read_rgba(sheet.crop((view * width, 0, (view + 1) * width, sheet.height)), item.name)


@lru_cache(maxsize=2)  # views of one object come one after the other
def _sheet(shards: Shards, index: int) -> Image.Image:
    return read_rgba(
        shards.read(index, SHEET).get(SHEET, b""), f"{shards.key(index)} in {shards.where(index)}"
    )
