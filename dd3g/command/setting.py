"""Fields of a configuration, or options of a command, that say what they are for, and what they may be."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints


def setting(
    default: Any, help: str, least: float | None = None, most: float = math.inf, option: str = ""
) -> Any:
    """A dataclass field with its default, and the words that `--help` shows for it.

    Args:
        default: of the field; each object has its own copy of a list or a dictionary.
        help: what the value means, its unit or choices.
        least: of a number that `check_ranges` holds, -inf for any that is finite; None: it may be any.
        most: likewise; without it a number is finite.
        option: names of a command line's, where it is not the field's with dashes.
    """
    metadata = {"help": help, "option": option} | ({} if least is None else {"range": (least, most)})
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
        if value is not None and not (least <= value <= most and abs(value) < math.inf):
            limits = f"between {least:g} and {most:g}"
            if most == math.inf:
                limits = f"at least {least:g}" if least > -math.inf else "a finite number"
            raise ValueError(f"{section}{name} must be {limits}, got {value}")


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command: its parameter of a dataclass becomes an option for each of the settings in it.

    Args:
        command: with typer's annotations; a flag that is off by default has no form with --no.
    """
    hints, groups, parameters = get_type_hints(command, include_extras=True), {}, []
    for name, own in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += [(key, kind, default) for key, kind, default in _options(hints[name])]
        else:
            parameters.append((name, hints[name], own.default))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {n: cls(**{f.name: values.pop(f.name) for f in fields(cls)}) for n, cls in groups.items()}
        command(**values, **made)

    by_name = inspect.Parameter.KEYWORD_ONLY
    signature = [inspect.Parameter(n, by_name, default=d, annotation=kind) for n, kind, d in parameters]
    vars(run)["__signature__"] = inspect.Signature(signature)
    run.__annotations__ = {name: kind for name, kind, _ in parameters}
    return run


def _options(cls: type) -> list[tuple[str, Any, Any]]:
    """Name, annotated type and default of the option that each setting of a dataclass becomes."""
    import typer

    hints, found = get_type_hints(cls), []
    for one in fields(cls):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        words = one.metadata["option"].split()
        if default is False and not words:
            words = [f"--{one.name.replace('_', '-')}"]
        least, most = one.metadata.get("range", (None, math.inf))
        about = typer.Option(
            *words, help=one.metadata["help"], min=least, max=None if most == math.inf else most
        )
        found.append((one.name, Annotated[hints[one.name], about], default))
    return found
