"""One picture that exists already: its id, what is known about it, and where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from data_gen.prompts.lists import Prompt
from dd3g.fingerprint import fingerprint

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
    """One picture that can be opened."""

    prompt: Prompt  # its id, and what is known about what it shows
    name: str  # where it is, for people
    place: Any  # where it is, for the source
    # Goes into its record: source, and licence and model where they are known
    about: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Pictures in a fixed order."""

    fingerprint: str  # changes with the names and sizes of the files

    @property
    def items(self) -> Sequence[Item]:
        """All of them."""

    def open(self, item: Item) -> Image.Image:
        """The picture, upright 8-bit RGBA.

        Raises:
            UserError: when it cannot be used; the others may still be fine.
        """


def named_id(name: str) -> str:
    """An id, as prompts have, from a picture's name."""
    return fingerprint(name)


def describe(
    id: str, metadata: Mapping[str, Any], name: str, place: Any, group: str = "", **about: Any
) -> Item:
    """An item with what metadata says about it.

    Args:
        id: of the picture.
        metadata: under any of the names in `NAMES`; what is not text is left out.
        name: for people.
        place: for the source.
        group: where the metadata names none.
        about: more for the record.
    """
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
