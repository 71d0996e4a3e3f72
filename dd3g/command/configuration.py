"""Configured commands: a dataclass, YAML files by name or path, and overrides."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.reader import ReaderError

from dd3g.command.run import NO_PLACE, guarded, print_help, summary
from dd3g.command.signals import signals_stop
from dd3g.errors import UserError
from dd3g.processes import from_launcher

T = TypeVar("T")
# What OmegaConf says in its own terms, and without the key -> what to do.
ADVICE = {
    r"TupleConfig length (\d+) does not match type hint length (\d+)": r"give \2 values in brackets, got \1",
    r"Value '(\$VALUE|None)' of type '(\$VALUE_TYPE|NoneType)'": "a value",
    r"Cannot merge incompatible container types": "give a list as [A,B], and a section as {KEY: VALUE}",
    r"Merge error: (\w+) is not a subclass of .*": r"a section has keys of its own, got \1",
}

KEYS = "--help lists every key with its default"


def parse(argv: Sequence[str], schema: type[T], advice: str = KEYS) -> T:
    """Build `schema` from its defaults, `--config NAME|FILE` and overrides, later ones winning.

    Args:
        argv: words after the command's name: `--config nano`, `key=value`, `--key value`, `--key=value`,
            `--key` alone for what is true or false; dots reach into sections, dashes count as underscores.
            A text, or one of a list, is taken as typed, but for quotes around it, null and ~; other values
            are YAML.
        schema: a dataclass of `dd3g.command.setting` fields. It may have class variables: `aliases`, short
            names of keys; `configs`, the folder of its packaged configurations; `positional`, the key of a
            first word without dashes.
        advice: ends messages: what tells which keys there are.

    Raises:
        UserError: for an unknown key, a value of the wrong type or range, or an unreadable file.
    """
    files, overrides, paths = _read_words(argv, schema)
    default, merged = OmegaConf.structured(schema), OmegaConf.structured(schema)
    for file in files:
        with _reported(advice, str(file)):
            part = OmegaConf.load(file)
            if not isinstance(part, DictConfig):
                raise ValueError("it holds no keys with values")
            _fill_empty(part, default)
            merged.merge_with(part)
    for key, text in overrides:
        with _reported(advice, f"{key}={text}"):
            part = _read_override(key, text, schema)
            _fill_empty(part, default)
            merged.merge_with(part)
    with _reported(advice):
        _expand_home(merged)
        config: Any = OmegaConf.to_object(merged)
        return replace(config, **{key: os.path.expanduser(path) for key, path in paths.items()})


@contextmanager
def _reported(advice: str, place: str = "") -> Iterator[None]:
    """Report what is wrong within by the key, or by the `place`: a file, or an override."""
    try:
        yield
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"configuration: {_first_line(error, place)}; {advice}") from error


def _read_override(key: str, text: str, schema: Any) -> DictConfig:
    """An override as a configuration; YAML would make 20251201 of the folder 2025_12_01."""
    kind = _kind_of(key, schema)
    if text in ("null", "~") or kind not in (str, list[str]):
        return OmegaConf.from_dotlist([f"{key}={text}"])
    plain = kind is str and not re.fullmatch(r"(['\"]).*\1", text, re.DOTALL)
    part = OmegaConf.create()
    OmegaConf.update(part, key, text if plain else yaml.load(text, yaml.BaseLoader))
    return part


def _kind_of(key: str, kind: Any) -> Any:
    """Type of a dotted key of a configuration, that besides None; None for one that it does not have."""
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
        if NoneType in get_args(kind):
            kind = next(k for k in get_args(kind) if k is not NoneType)
    return kind


def _read_words(
    argv: Sequence[str], schema: type
) -> tuple[list[Path], list[tuple[str, str]], dict[str, str]]:
    """Files, keys and texts of overrides, and paths by key."""
    words, kinds = list(argv), get_type_hints(schema)
    aliases: dict[str, str] = getattr(schema, "aliases", {}) | {"o": "output"}
    files: list[Path] = []
    overrides: list[tuple[str, str]] = []
    paths: dict[str, str] = {}
    positional: str = getattr(schema, "positional", "")
    first, equals, _ = (words or [""])[0].partition("=")
    is_key = equals and first.replace("-", "_").partition(".")[0] in {*kinds, *aliases, "config"}
    if positional and first and not first.startswith("-") and not is_key:
        paths[positional] = words.pop(0)
    while words:
        word = words.pop(0)
        named = word.startswith("--") or word.partition("=")[0] == "-o"
        key, equals, value = word.lstrip("-" if named else "").partition("=")
        key = key.replace("-", "_")
        key = aliases.get(key, key)
        if not equals:
            if named and _kind_of(key, schema) is bool:
                value = "true"
            elif named and words:
                value = words.pop(0)
            else:
                raise UserError(f"{word!r}: expected --key value or key=value")
        if key == "config":
            files.append(find_config(value, getattr(schema, "configs", "")))
        elif key in ("output", "output_dir") and not value.strip():
            raise UserError(NO_PLACE)
        elif key == "output":
            paths["output" if "output" in kinds else "output_dir"] = value
        else:
            overrides.append((key, value))
    return files, overrides, paths


def _fill_empty(node: Any, default: Any) -> None:
    """Take a key without a value for the empty text or list: a shell makes `key=` of `key=''`."""
    for key in [k for k in node if k in default and k not in ("output", "output_dir")]:
        value, usual = node[key], default[key]
        if isinstance(value, DictConfig) and isinstance(usual, DictConfig):
            _fill_empty(value, usual)
        elif value is None and isinstance(usual, str):
            node[key] = ""
        elif value is None and isinstance(usual, ListConfig):
            node[key] = []


def _expand_home(node: Any) -> None:
    """Take ~/ for the user's home where shells do not: within a list, and in a file."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            _expand_home(value)
        elif isinstance(value, str) and value.startswith("~/"):
            node[key] = os.path.expanduser(value)


def _first_line(error: Exception, place: str) -> str:
    """What an error says, with the key or the line of the file that it is about, else the place."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, UnicodeDecodeError | ReaderError):
        return f"{place} holds what is no text ({said}): give YAML"
    if mark := getattr(error, "problem_mark", None):  # of YAML's errors
        problem = getattr(error, "problem", said)
        if not mark.name.startswith("<"):
            return f"{mark.name}, line {mark.line + 1}: {problem}"
        return f"{place} cannot be read ({problem}): close brackets and quotes, and quote signs such as # : ,"
    where = getattr(error, "full_key", None)  # of OmegaConf's
    if where and "is not a ListConfig" in said:
        return f"{where} is a list: give {where}=[A,B]"
    for theirs, advice in ADVICE.items():
        said = re.sub(theirs, advice, said)
    return ": ".join(filter(None, (where or place, said)))


def find_config(name: str, folder: str) -> Path:
    """The YAML file that `--config` means: a path, or `nano` for the packaged `configs/FOLDER/nano.yaml`.

    Raises:
        UserError: when there is neither.
    """
    package = Path(__file__).parents[1]
    # A wheel holds the configurations in the package; a clone has them beside it.
    root = package if (package / "configs").is_dir() else package.parent
    home = root / "configs" / folder
    for path in (Path(name), home / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(p.stem for p in home.glob("*.yaml"))) or "none"
    raise UserError(f"configuration: no file {name}, and no packaged configuration of that name ({names})")


def explained(schema: type) -> str:
    """The defaults as YAML, each key with its `dd3g.command.setting` help.

    Args:
        schema: a dataclass; a section without help of its own has the first line of its class's docstring.
    """
    helps = _helps(schema)
    lines = [f"# {summary(schema)}"]
    path: list[str] = []
    for line in OmegaConf.to_yaml(OmegaConf.structured(schema)).splitlines():
        if key := re.match(r"( *)(\w+):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            text = helps.get(".".join(path))
            line = f"{line}  # {text}" if text else line
        lines.append(line)
    for short, long in getattr(schema, "aliases", {}).items():
        lines.append(f"# {short} stands for {long}")
    return "\n".join(lines) + "\n"


def _helps(schema: type, prefix: str = "") -> dict[str, str]:
    """Key, with dots -> help."""
    found: dict[str, str] = {}
    # A field that only changes its base's default keeps its base's help.
    for cls in reversed([c for c in schema.__mro__ if is_dataclass(c)]):
        for field in fields(cls):
            section, text = field.default_factory, field.metadata.get("help")
            if isinstance(section, type) and is_dataclass(section):
                text = text or summary(section)
                found |= _helps(section, f"{prefix}{field.name}.")
            if text:
                found[f"{prefix}{field.name}"] = text
    return found


def launch(
    run: Callable[[Any], Path | int], schema: type, argv: Sequence[str] | None = None, name: str = ""
) -> int:
    """Main function of a configured command: its exit code; see `dd3g.command.run.guarded`.

    Args:
        run: works from a `schema` object; returns an exit code, or the folder it wrote, to be printed.
        schema: a dataclass.
        argv: words after the command's name; None takes the command line's.
        name: of the command.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if "-h" in words or "--help" in words:
        word = getattr(schema, "positional", "").upper()
        options = f"{word} [--config NAME|FILE] [--key value | key=value]...".strip()
        print_help(f"Usage: {name or Path(sys.argv[0]).name} {options}\n\n{explained(schema)}")
        return 0
    as_json = "--json" in words
    has_json = "json" in get_type_hints(schema)  # and prints a report of its own
    resumable = "resume" in getattr(schema, "aliases", {})

    def work() -> int:
        with signals_stop("SIGUSR1") if resumable else nullcontext():
            done = run(parse([w for w in words if has_json or w != "--json"], schema))
        if isinstance(done, int):
            return done
        if from_launcher("RANK") == 0:
            print(json.dumps({"output": str(done)}) if as_json else f"wrote {done}")
        return 0

    if resumable:
        return guarded(work, "continue with --resume latest", as_json)
    return guarded(work, as_json=as_json)
