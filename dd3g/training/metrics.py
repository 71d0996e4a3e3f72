"""The file of numbers that a run leaves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dd3g.io.atomic import replacing


class Metrics:
    """metrics.jsonl: one JSON object a line; lines after the step that a run resumes from are dropped.

    Args:
        path: of the file.
        step: from which the run goes on.
        every: steps over which a line's numbers are averaged.
    """

    def __init__(self, path: Path, step: int, every: int = 1) -> None:
        kept = []
        if path.exists() and step:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # torn by a kill or a full disk
        with replacing(path) as partial:
            partial.write_text("".join(kept))
        self.path, self.torn = path, ""
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.every = every
        self.waiting: list[dict[str, float]] = []

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.file)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Take in one step's numbers; the learning rate is that of a line's last step."""
        self.waiting.append(numbers)
        if step % self.every == 0:
            columns = {k: [n[k] for n in self.waiting if k in n] for n in self.waiting for k in n}
            means = {k: sum(values) / len(values) for k, values in columns.items()}
            self.write(step, means | {"lr": numbers["lr"]})
            self.waiting = []

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add a line; a disk that is full costs lines, not the run."""
        try:
            os.write(self.file, (self.torn + json.dumps({"step": step, **numbers}) + "\n").encode())
            self.torn = ""
        except OSError as error:
            if not self.torn:
                print(f"warning: cannot write {self.path} ({error.strerror})", file=sys.stderr)
            self.torn = "\n"  # what is there of this line is no part of the next one
