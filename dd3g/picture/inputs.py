"""Which pictures a command line means: files, folders, http(s) addresses, and `-` for standard input."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from dd3g.errors import UserError
from dd3g.io.formats import MESHES, SPLATS
from dd3g.picture.decoding import ADDRESS, SUFFIXES, no_path

# Names of its own files that a command skips when it is given the same folder again.
OWN_PICTURES = (".matte", ".turntable", ".mesh")
# What stands before the suffix of some results: `a.compressed.ply` may be of `a` or of `a.compressed`.
INNER = {f".{head}" for head, _, tail in (f.partition(".") for f in (*SPLATS, *MESHES)) if tail}
STDIN = "-"
LONGEST = 200  # bytes of a stem, of 255 that a name has


@dataclass(frozen=True)
class Input:
    """One picture."""

    name: str  # as messages and the report call it
    stem: str  # of its results: a path below the output folder, without suffix, like no other one's

    @property
    def source(self) -> Any:
        """What `dd3g.picture.load_image` reads."""
        if self.name == STDIN:
            if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
                raise UserError("nothing is piped in: `dd3g infer - < photo.jpg`, or give a picture's path")
            return sys.stdin.buffer
        return self.name if ADDRESS.match(self.name) else Path(self.name)


@dataclass
class Inputs:
    """What a command line names."""

    found: list[Input] = field(default_factory=list)  # the pictures
    # `{"picture", "reason"}` for each file of a folder that is passed over, and each input named again
    skipped: list[dict[str, str]] = field(default_factory=list)
    # `{"picture", "error"}` for each of several inputs that cannot be used
    failed: list[dict[str, str]] = field(default_factory=list)


def find_pictures(inputs: list[str], recursive: bool = False) -> Inputs:
    """The pictures that some words mean; a folder stands for its pictures, sorted by name.

    Args:
        inputs: files, folders, addresses, or `-`.
        recursive: look into folders below folders too; results lie in folders of the same names.

    Raises:
        UserError: when the only input is a folder without pictures, or one that cannot be read, or neither a
            path nor an address; when `recursive` finds no folder to look into.
    """
    if recursive and all(word == STDIN or ADDRESS.match(word) or os.path.isfile(word) for word in inputs):
        raise UserError("--recursive searches folders, but none was given: give one, or leave it out")
    listed = Inputs()
    places: dict[str, Path] = {}  # name -> where its results would go if no other had the same place
    known: dict[str, str] = {}  # what is read -> its name

    def add(name: str, place: Path, read: str) -> None:
        first = known.setdefault(read, name)
        if name in places or first != name:
            reason = "named before" if first == name else f"named before as {first}"
            listed.skipped.append({"picture": name, "reason": reason})
        else:
            places[name] = place

    for word in inputs:
        try:
            if word == STDIN:
                add(word, Path("stdin"), word)
            elif wrong := no_path(word):
                raise UserError(wrong)
            elif ADDRESS.match(word):
                parts = urlsplit(word)
                last = unquote(parts.path).rstrip("/").rpartition("/")[2] or parts.hostname or "picture"
                add(word, Path(re.sub(r"[^\w.-]", "_", last)[-100:]), word)
            elif os.path.isdir(word):  # Path.is_dir would raise where a parent folder may not be searched
                empty = True
                for path, reason in _listed(Path(word), recursive):
                    if reason:
                        listed.skipped.append({"picture": str(path), "reason": reason})
                    else:
                        empty = False
                        add(str(path), path.relative_to(word), os.path.abspath(path))
                if empty:
                    raise UserError(f"the folder {word} holds no pictures ({' '.join(SUFFIXES)})")
            else:
                name = str(Path(word))
                add(f"./{name}" if name == STDIN else name, Path(Path(word).name), os.path.abspath(word))
        except UserError as e:
            if len(inputs) == 1:
                raise
            listed.failed.append({"picture": word, "error": str(e)})
    listed.found = [Input(name, stem) for name, stem in zip(places, _stems([*places.values()]), strict=True)]
    return listed


def _listed(folder: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """Files of a folder, each with a reason to pass it over, or none."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as e:
        reason = e.strerror or e
        raise UserError(f"cannot read the folder {folder} ({reason}): check its permissions") from e
    for path in paths:
        if path.name.startswith("."):
            yield path, "hidden"
        elif os.path.isdir(path):
            if recursive and not path.is_symlink():  # which may lead round in a circle
                yield from _listed(path, recursive)
            else:
                yield path, "a link to a folder" if recursive else "a folder; --recursive searches it"
        elif path.suffix.lower() not in SUFFIXES:
            yield path, "not a picture by its name"
        elif Path(path.stem).suffix in OWN_PICTURES:
            yield path, "a result of this command"
        elif os.path.exists(path) and not os.path.isfile(path):
            yield path, "not a file"
        else:
            yield path, ""


def _stems(places: list[Path]) -> list[str]:
    """Unique stems, each in the folder of its place."""
    stems = [""] * len(places)
    for folder in dict.fromkeys(place.parent for place in places):
        group = [i for i, place in enumerate(places) if place.parent == folder]
        for i, stem in zip(group, output_stems([places[i] for i in group]), strict=True):
            stems[i] = (folder / stem).as_posix()
    return stems


def output_stems(inputs: list[Path]) -> list[str]:
    """A unique name for the results of each input: `a.png` and `a.jpg` give `a_png` and `a_jpg`.

    So does `a.mesh.jpg` beside `a.png`: the `.glb` of one would be the `.mesh.glb` of the other.

    None is longer than file systems allow with a suffix behind it.
    """
    shared = Counter(_alike(p.stem) for p in inputs)
    stems: dict[str, str] = {}
    for p in inputs:
        outer = Path(_alike(p.stem))
        alone = shared[_alike(p.stem)] == 1 and not (outer.suffix in INNER and shared[outer.stem])
        base = p.stem if alone else p.name.replace(".", "_")
        while len(os.fsencode(base)) > LONGEST:
            base = base[:-1]
        stem, n = base, 2
        while _alike(stem) in stems:
            stem, n = f"{base}-{n}", n + 1
        stems[_alike(stem)] = stem
    return list(stems.values())


def _alike(name: str) -> str:
    """The same for names that some file systems take for one: in capitals, with accents composed or not."""
    return normalize("NFC", name).casefold()
