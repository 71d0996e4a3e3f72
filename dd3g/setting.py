"""Fields of a configuration that say what they are for."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its default, and the words that `--help` shows for it.

    Args:
        default: of the field; each object has its own copy of a list or a dictionary.
        help: what the value means, its unit or choices.
    """
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})
