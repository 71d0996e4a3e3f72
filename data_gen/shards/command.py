"""The command line of whatever generates a dataset, on one process or as one of several."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from data_gen.shards.index import missing_sentence
from data_gen.shards.process_group import ProcessGroup
from dd3g.command.configuration import launch
from dd3g.command.progress import Progress, print_first

WAITING = 3  # exit code
SHOWN = 20  # unreadable pictures that are named at the end

Generate = Callable[[Any, ProcessGroup, Progress], dict[str, Any]]


def run(generate: Generate, schema: type, name: str, argv: Sequence[str] | None = None) -> int:
    """Parse the words, generate, and report; returns the exit code.

    0: done; 1: done, but some pictures could not be opened; 2: something is wrong, as one line explains; 3:
    all is well, but other ranks are not done, and the same command must be started again when they are.

    Args:
        generate: makes the dataset and returns the report of `generate_shards`.
        schema: the configuration, with `rank`, `world` and `json` among its keys.
        name: of the command.
        argv: words after the command's name; None takes the process's.
    """

    def work(config: Any) -> int:
        group = ProcessGroup.find(config.rank, config.world)
        try:
            report = generate(config, group, Progress(group.rank == 0 and not config.json))
        finally:
            group.leave()
        unreadable = report.get("unreadable", [])
        if group.rank == 0 or not group.together:
            print(json.dumps(report) if config.json else _sentence(report))
            if unreadable and not config.json:
                lines = [f"error: {name} could not be opened" for name in unreadable]
                print_first(lines, SHOWN, "error: {} more could not be opened; --json names them")
                print("to include them, repair them and collect into another --output", file=sys.stderr)
        return WAITING if report["waiting"] else 1 if unreadable else 0

    return launch(work, schema, argv, name)


def _sentence(report: dict[str, Any]) -> str:
    """What a report comes to, for people."""
    if report["waiting"]:
        return f"{report['drawn']} more pictures in {report['output']}; waiting for {report['waiting']}"
    if "pictures" not in report:
        return f"the set in {report['output']} is complete; rank 0 writes its index"
    found = f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in "
    missing = missing_sentence(report["missing"])
    return f"{found}{report['output']} ({report['seconds']} s){'; ' + missing if missing else ''}"
