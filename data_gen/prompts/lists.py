"""A prompt and its id, and lists of them: our own jsonl files, and what users bring along."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.picture.sources import TEXT_KEYS

MAX_CHARACTERS = 1000  # text encoders of picture models read a few hundred
_ADVICE = "turn a list of your own into prompts with dd3g data prompts --from FILE"
_ENDS = string.punctuation + string.whitespace


@dataclass(frozen=True)
class Prompt:
    """What one picture shall show."""

    id: str  # `prompt_id` of the text
    text: str  # for the picture model
    # Of the noun. This and what follows is what the text was put together from; empty where unknown
    group: str = ""
    noun: str = ""  # what is to be seen
    attribute: str = ""  # adjective and colour
    material: str = ""  # what it is made of
    style: str = ""  # what kind of picture
    view: str = ""  # from where


_ABOUT = tuple(f.name for f in fields(Prompt))[2:]


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends: prompts that agree in this are the same."""
    return " ".join(text.lower().split()).strip(_ENDS)


def prompt_id(text: str) -> str:
    """First 16 hex digits of the sha256 of the normalised text: the same for ever, fit for a file name."""
    return fingerprint(normalise(text))


def to_jsonl(prompts: Iterable[Prompt]) -> str:
    """Prompts as the text of a file, one JSON object a line."""
    return "".join(json.dumps(vars(prompt), ensure_ascii=False) + "\n" for prompt in prompts)


def read_prompts(path: str | Path, advice: str = _ADVICE) -> list[Prompt]:
    """Read what `to_jsonl` gave; `advice` says what to do with a line that is not a prompt.

    Raises:
        UserError: when it is missing, empty, not such a file, or names an id twice.
    """
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            prompt = Prompt(**json.loads(line))
            if not all(isinstance(v, str) for v in vars(prompt).values()):
                raise ValueError("a value is not text")
            if not (prompt.id and prompt.id.isascii() and prompt.id.replace("-", "").isalnum()):
                raise ValueError(f"id {prompt.id!r} is not of letters, digits and hyphens")
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: no prompt ({error}); {advice}") from error
        if (first := lines.setdefault(prompt.id, number)) != number:
            raise UserError(f"{path}, line {number}: has the id of line {first}, {prompt.id}: remove one")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompts: write some with dd3g data prompts")
    return prompts


def prompts_from(path: str | Path) -> tuple[list[Prompt], list[tuple[int, str]]]:
    """Turn a user's list into prompts; lines that cannot serve are skipped.

    Args:
        path: a text file with one prompt a line, or a .jsonl file with one object a line, whose text, prompt
            or caption is used.

    Returns:
        The prompts, and the number, from 1, of each skipped line, and why.

    Raises:
        UserError: when the file cannot be read, or no line is left.
    """
    prompts: list[Prompt] = []
    skipped: list[tuple[int, str]] = []
    first: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            prompt = _prompt(line, number == 1, Path(path).suffix.lower() == ".jsonl")
            if before := first.get(prompt.id):
                raise ValueError(f"repeats line {before}")
        except ValueError as error:
            skipped.append((number, str(error)))
            continue
        first[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise UserError(
            f"{path} holds no usable prompt: give one a line, UTF-8, up to {MAX_CHARACTERS} characters"
        )
    return prompts, skipped


def _prompt(data: bytes, at_start: bool, is_object: bool) -> Prompt:
    """One user's line; a ValueError says in a few words what is wrong with it."""
    try:
        line = data.decode("utf-8-sig" if at_start else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {data[error.start]:#04x})") from error
    if not line.strip():
        raise ValueError("is empty")
    about: dict[str, str] = {}
    if is_object:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"is not an object like {{{json.dumps(TEXT_KEYS[0])}: ...}}")
        texts = [found[k] for k in TEXT_KEYS if isinstance(found.get(k), str)]
        if not texts:
            raise ValueError(f"has no {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}")
        line, about = texts[0], {k: found[k] for k in _ABOUT if isinstance(found.get(k), str)}
    text = " ".join(line.split())
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is {len(text)} characters long, more than {MAX_CHARACTERS}")
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise ValueError("holds control characters")
    if not any(c.isalnum() for c in text):
        raise ValueError("holds no word")
    return Prompt(prompt_id(text), text, **about)


def _lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as stream:
            yield from ((number, line) for number, line in enumerate(stream, 1))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): check the path") from error
