"""The file of numbers that a run leaves."""

from __future__ import annotations

import json
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
                except (json.JSONDecodeError, KeyError):
                    break  # a line torn by a kill is the last one
        with replacing(path) as partial:
            partial.write_text("".join(kept))
        self.file = path.open("a", buffering=1)
        self.every = every
        self.waiting: list[dict[str, float]] = []

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Take in one step's numbers; the learning rate is that of a line's last step."""
        self.waiting.append(numbers)
        if step % self.every == 0:
            columns = {k: [n[k] for n in self.waiting if k in n] for n in self.waiting for k in n}
            means = {k: sum(values) / len(values) for k, values in columns.items()}
            self.write(step, means | {"lr": numbers["lr"]})
            self.waiting = []

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add a line."""
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")
