"""Configured commands: a structured config, a YAML file, and overrides."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dd3g.errors import UserError

T = TypeVar("T")


def parse(argv: Sequence[str], schema: type[T], program: str = "") -> T:
    """Build `schema` from its defaults, `--config FILE` and overrides, later ones winning.

    Args:
        argv: words after the script's name: `--config file.yaml`, `key=value`, `--key value`, `--key=value`;
            dots reach into sections, dashes count as underscores.
        schema: a dataclass; its class variable `aliases`, if any, maps short names of keys to keys.
        program: how the help calls the command; by default the script's name.

    Raises:
        UserError: for an unknown key, a value of the wrong type or range, or an unreadable file.
    """
    files, overrides, words = [], [], list(argv)
    aliases: dict[str, str] = getattr(schema, "aliases", {})
    if "-h" in words or "--help" in words:
        print(f"usage: {program or Path(sys.argv[0]).name} [--config FILE] [--key value | key=value]...\n")
        print(OmegaConf.to_yaml(OmegaConf.structured(schema)))
        raise SystemExit(0)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not words:
                raise UserError(f"{word!r}: expected --key value or key=value")
            value = words.pop(0)
        key = key.replace("-", "_")
        if key == "config":
            files.append(value)
        else:
            overrides.append(f"{aliases.get(key, key)}={value}")
    try:
        parts = [OmegaConf.load(f) for f in files]
        merged = OmegaConf.merge(OmegaConf.structured(schema), *parts, OmegaConf.from_dotlist(overrides))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, ArithmeticError) as error:
        where = getattr(error, "full_key", None)  # of OmegaConf's errors
        message = f"{where}: {error}".splitlines()[0] if where else str(error).splitlines()[0]
        raise UserError(f"configuration: {message}; --help lists every key with its default") from error


def launch(run: Callable[[Any], Path], schema: type, argv: Sequence[str] | None = None) -> int:
    """Main function of a configured script: exit code 0, or 2 with one line when something is wrong.

    Args:
        run: works from a `schema` object and returns the folder it wrote.
        schema: a dataclass.
        argv: words after the script's name; None takes the command line's.
    """
    try:
        folder = run(parse(sys.argv[1:] if argv is None else argv, schema))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {folder}")
    return 0
