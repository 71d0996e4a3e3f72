"""The command line of whatever generates a dataset, on one process or as one of several."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from data_gen.shards.index import missing_sentence
from data_gen.shards.process_group import ProcessGroup
from dd3g.configuration import parse
from dd3g.errors import UserError
from dd3g.progress import Progress, print_first

WAITING = 3  # exit code
SHOWN = 20  # unreadable pictures that are named at the end

Generate = Callable[[Any, ProcessGroup, Progress], dict[str, Any]]


def run(generate: Generate, schema: type, usage: str, argv: Sequence[str] | None = None) -> int:
    """Parse the words, generate, and report; returns the exit code.

    0: done; 1: done, but some pictures could not be opened; 2: something is wrong, as one line explains; 3:
    all is well, but other ranks are not done, and the same command must be started again when they are.

    Args:
        generate: makes the dataset and returns the report of `generate_shards`.
        schema: the configuration; where it has a key `source`, the first word may be one.
        usage: what the help calls the command.
        argv: words after the command's name; None takes the process's.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--json", action="store_true", dest="as_json")
    own.add_argument("--rank", type=int)
    own.add_argument("--world", type=int)
    own.add_argument("-o", "--output")
    words = list(sys.argv[1:] if argv is None else argv)
    # A path may hold signs that mean something in the configuration: these two stay out of it.
    given = {}
    if words and not words[0].startswith("-") and "source" in {f.name for f in fields(schema)}:
        given["source"] = words.pop(0)
    try:
        mine, rest = own.parse_known_args(words)
        if mine.output:
            given["output"] = mine.output
        config: Any = parse(rest, schema, usage)
        for key, value in given.items():
            setattr(config, key, value)
        group = ProcessGroup.find(mine.rank, mine.world)
        try:
            report = generate(config, group, Progress(group.rank == 0 and not mine.as_json))
        finally:
            group.leave()
    except (argparse.ArgumentError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unreadable = report.get("unreadable", [])
    if group.rank == 0 or not group.together:
        print(json.dumps(report) if mine.as_json else _sentence(report))
        if unreadable and not mine.as_json:
            lines = [f"error: could not be opened: {name}" for name in unreadable]
            print_first(lines, SHOWN, "error: nor could {} more; --json names them")
            print("to have these too, repair them and collect into another --output", file=sys.stderr)
    return WAITING if report["waiting"] else 1 if unreadable else 0


def _sentence(report: dict[str, Any]) -> str:
    """What a report comes to, for people."""
    if report["waiting"]:
        return f"{report['drawn']} pictures more in {report['output']}; it waits for {report['waiting']}"
    if "pictures" not in report:
        return f"the set in {report['output']} is complete; rank 0 writes its index"
    found = f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in "
    missing = missing_sentence(report["missing"])
    return f"{found}{report['output']} ({report['seconds']} s){'; ' + missing if missing else ''}"
