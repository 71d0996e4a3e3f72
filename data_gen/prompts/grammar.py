"""What prompts are made of: nouns by group, and the adjectives, colours and materials that suit each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

WORDS = Path(__file__).parent / "words"  # a file of nouns per group, one per line, with their attributes
WHOLE = "whole object in view"


@dataclass(frozen=True)
class Choices:
    """What a prompt may say of one noun; index 0 of each list says nothing."""

    states: tuple[str, ...]  # adjectives of size, age, form or mood
    colours: tuple[str, ...]  # for the materials that come in any colour, and for no material
    materials: tuple[str, ...]  # words put before the noun, or phrases with {} in its place
    plain: float  # share of prompts that name no material
    whole: str  # how a prompt asks for an uncropped object
    fits: NDArray[np.bool_]  # (materials, states, colours) whether these go together

    def count(self) -> int:
        """Number of triples that go together."""
        return int(self.fits.sum())


class Grammar:
    """The word lists of a folder.

    Args:
        folder: holds kinds.yaml and a file of nouns for each group that is named there.
    """

    def __init__(self, folder: Path = WORDS) -> None:
        rules = yaml.safe_load((folder / "kinds.yaml").read_text(encoding="utf-8"))
        # How an object is shown: styles, views, lights and backgrounds; every combination is possible
        self.scene = [_list(rules["styles"]), _list(rules["views"], ";")]
        self.scene += [_list(rules["lights"]), _list(rules["backgrounds"])]
        self.colours = _list(rules["colours"])
        self._sets = {k: words(rules[k]) for k in ("substances", "tints", "tinted", "metals")}
        self._alone = set(_list(rules["alone"]))
        self._kinds = {g: kind for kind in rules["kinds"].values() for g in _list(kind["groups"])}
        self._exceptions = {
            group: {word: _list(materials) for materials, listed in rows.items() for word in listed.split()}
            for group, rows in rules["exceptions"].items()
        }
        self.nouns = {
            g: tuple((folder / f"{g}.txt").read_text(encoding="utf-8").splitlines())
            for g in sorted(self._kinds)
        }

    def choices(self, group: str, noun: str) -> Choices:
        """Everything that a prompt may say of a noun of a group."""
        kind, named = self._kinds[group], words(noun)
        special = self._exceptions.get(group, {})
        listed = [special[word] for word in noun.lower().split() if word in special]
        materials = listed[0] if listed else _list(kind["materials"])
        if named & self._sets["substances"]:
            materials = ()
        colours = self.colours if kind.get("coloured", True) and not named & self._sets["tints"] else ()
        states = ("", *(s for s in _list(kind["states"]) if not words(s) & named))
        materials = ("", *(m for m in materials if not words(m) & named))
        fits = np.ones((len(materials), len(states), 1 + len(colours)), np.bool_)
        for i, material in enumerate(map(words, materials[1:]), 1):
            metal = bool(material & self._sets["metals"])
            fits[i, [s in self._alone or s == "rusty" and not metal for s in states]] = False
            fits[i, :, 1:] &= bool(material & self._sets["tinted"])
        return Choices(states, ("", *colours), materials, kind["plain"], kind.get("whole", WHOLE), fits)


@lru_cache(maxsize=1)
def own_grammar() -> Grammar:
    """The grammar that comes with the package."""
    return Grammar()


def words(text: str) -> frozenset[str]:
    """The words of a phrase, in lower case; hyphens part words."""
    return frozenset(re.findall(r"[a-z']+", text.lower()))


@lru_cache(maxsize=512)
def _list(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(separator) if part.strip())
