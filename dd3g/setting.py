"""Fields of a configuration that say what they are for, and what they may be."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any


def setting(default: Any, help: str, least: float | None = None, most: float = math.inf) -> Any:
    """A dataclass field with its default, and the words that `--help` shows for it.

    Args:
        default: of the field; each object has its own copy of a list or a dictionary.
        help: what the value means, its unit or choices.
        least: of a number that `check_ranges` holds; None: it may be any.
        most: likewise; without it a number is finite.
    """
    metadata = {"help": help} if least is None else {"help": help, "range": (least, most)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(config: Any, section: str = "") -> None:
    """Hold the numbers of a configuration against the ranges of its settings.

    Args:
        config: a dataclass. A field that only changes its base's default keeps its base's range.
        section: stands before names in the message.

    Raises:
        ValueError: for the first number outside, with its range.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for cls in reversed(type(config).__mro__):
        for name, one in getattr(cls, "__dataclass_fields__", {}).items():
            ranges |= {name: one.metadata["range"]} if "range" in one.metadata else {}
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and not (least <= value <= most and value < math.inf):
            limits = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
            raise ValueError(f"{section}{name} must be {limits}, got {value}")
