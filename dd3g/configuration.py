"""Configured commands: a structured config, a YAML file, and overrides."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dd3g.command import print_help
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
        name = program or Path(sys.argv[0]).name
        print_help(f"usage: {name} [--config FILE] [--key value | key=value]...\n\n{explained(schema)}")
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


def explained(schema: type) -> str:
    """The defaults as YAML, each key with the comment that stands behind it in the source of `schema`.

    Args:
        schema: a dataclass; a section without a comment has the first line of its own class's docstring.
    """
    comments = _comments(schema)
    lines = [f"# {line}" for line in (inspect.getdoc(schema) or "").splitlines()[:1]]
    path: list[str] = []
    for line in OmegaConf.to_yaml(OmegaConf.structured(schema)).splitlines():
        if key := re.match(r"( *)(\w+):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            comment = comments.get(".".join(path))
            line = f"{line}  # {comment}" if comment else line
        lines.append(line)
    for short, long in getattr(schema, "aliases", {}).items():
        lines.append(f"# {short} stands for {long}")
    return "\n".join(lines) + "\n"


def _comments(schema: type) -> dict[str, str]:
    """Key, with dots -> comment."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in schema.__mro__ if is_dataclass(c)]):
        with suppress(OSError):  # a Python without sources
            source = dedent(inspect.getsource(cls))
            lines = source.splitlines()
            [definition] = ast.parse(source).body
            for node in getattr(definition, "body", []):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    behind = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                    if comment := re.search(r"  # (.+)$", behind, re.MULTILINE):
                        found[node.target.id] = comment[1]
    for field in fields(schema):
        section = field.default_factory
        if isinstance(section, type) and is_dataclass(section):
            found.setdefault(field.name, (inspect.getdoc(section) or "").partition("\n")[0])
            found |= {f"{field.name}.{key}": text for key, text in _comments(section).items()}
    return found


def launch(run: Callable[[Any], Path], schema: type, argv: Sequence[str] | None = None) -> int:
    """Main function of a configured script: exit code 0, 2 with one line when something is wrong, or 130.

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
    except KeyboardInterrupt:
        print("stopped: go on with --resume latest", file=sys.stderr)
        return 130
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {folder}")
    return 0
