"""Pictures that exist already: what they are called, what is known about them, and how to open them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from data_gen.prompts.lists import Prompt
from dd3g.picture import read_rgba
from dd3g.picture_sources import Found, find_sources

METADATA = "metadata.jsonl"
# Names under which tables and records keep what we call by the first.
NAMES = {
    "text": ("text", "prompt", "caption"),
    "group": ("group", "category", "label"),
    "noun": ("noun",),
    "style": ("style",),
    "licence": ("licence", "license"),
    "model": ("model",),
    "file": ("file_name", "file", "image"),
}


@dataclass(frozen=True)
class Item:
    """One picture that can be opened.

    Args:
        prompt: its id, and what is known about what it shows.
        name: where it is, for people.
        place: where it is, for the source.
        about: goes into its record: source, and licence and model where they are known.
    """

    prompt: Prompt
    name: str
    place: Any
    about: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Pictures in a fixed order.

    Args:
        items: all of them.
        fingerprint: changes with the names and sizes of the files.
    """

    items: Sequence[Item]
    fingerprint: str

    def open(self, item: Item) -> Image.Image:
        """The picture, upright 8-bit RGBA.

        Raises:
            UserError: when it cannot be used; the others may still be fine.
        """
        ...


Warn = Callable[[str], None]


def open_source(path: str | Path, views: int = 1, warn: Warn = lambda message: None) -> Source:
    """Find out what `path` is: pictures with or without metadata.jsonl, parquet, shards, or rendered objects.

    Args:
        path: a folder or a file.
        views: pictures taken of each rendered object.
        warn: is told of metadata that cannot be used.

    Raises:
        UserError: when it is none of these.
    """
    from data_gen.sources.packed import ParquetRows, open_shards

    found = find_sources(path)
    if found.kind == "shards":
        return open_shards(found, views)
    if found.kind == "tables":
        return ParquetRows(found)
    return PictureFiles(found, warn)


def fingerprint(found: Found) -> str:
    """Number and hash of files, by their names below a folder and their sizes."""
    sha = hashlib.sha256()
    for name, size in found.listing():
        sha.update(os.fsencode(f"{name} {size}\n"))
    return f"{len(found.files)} files {sha.hexdigest()[:16]}"


def named_id(name: str) -> str:
    """An id, as prompts have, from a picture's name."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def valid_id(text: object) -> bool:
    """Whether it can be the key of a sample."""
    return isinstance(text, str) and text.isascii() and text.replace("-", "").isalnum() and len(text) <= 128


def described(
    id: str, found: Mapping[str, Any], name: str, place: Any, group: str = "", **about: Any
) -> Item:
    """An item with what metadata says about it.

    Args:
        id: of the picture.
        found: metadata under any of the names in `NAMES`; what is not text is left out.
        name: for people.
        place: for the source.
        group: where the metadata names none.
        about: more for the record.
    """
    said = {}
    for key, names in NAMES.items():
        texts = [found[n] for n in names if isinstance(found.get(n), str)]
        said[key] = " ".join(_plain(texts[0]).split()) if texts else ""
    prompt = Prompt(id, said["text"], said["group"] or _plain(group), said["noun"], style=said["style"])
    known = {k: said[k] for k in ("licence", "model") if said[k]}
    return Item(prompt, name, place, {"source": _plain(name)} | known | about)


def _plain(text: str) -> str:
    # File names may hold bytes that are no text.
    return text.encode("utf-8", "replace").decode()


class PictureFiles:
    """Picture files, described by a metadata.jsonl and by the folders they lie in.

    Args:
        found: the pictures; the first folder below their root is a picture's group.
        warn: is told of lines of the metadata that cannot be used.
    """

    def __init__(self, found: Found, warn: Warn) -> None:
        self.fingerprint = fingerprint(found)
        metadata = found.root / METADATA
        about = dict(_metadata(metadata, warn)) if metadata.is_file() else {}
        if about:
            self.fingerprint += f" {hashlib.sha256(metadata.read_bytes()).hexdigest()[:16]}"
        items = []
        for file in found.files:
            name = file.relative_to(found.root).as_posix()
            group = name.partition("/")[0] if "/" in name else ""
            items.append(described(named_id(name), about.pop(name, {}), name, file, group))
        for name in about:
            warn(f"{metadata} describes {name}, which is not there")
        self.items: Sequence[Item] = items

    def open(self, item: Item) -> Image.Image:
        """See `Source`."""
        return read_rgba(item.place, str(item.place))


def _metadata(path: Path, warn: Warn) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, what is said about it) of each usable line."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = json.loads(line)
            names = [found[n] for n in NAMES["file"] if isinstance(found.get(n), str)]
            yield Path(names[0]).as_posix(), found
        except (ValueError, AttributeError):
            warn(f"{path}, line {number}, is no JSON object")
        except IndexError:
            warn(f"{path}, line {number}, has no {NAMES['file'][0]}")
