"""What a run shows of itself: a file of numbers, and a progress bar."""

from __future__ import annotations

import json
import math
import time
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

    def add(self, step: int, numbers: dict[str, float]) -> dict[str, float]:
        """Take in one step's numbers; returns what was written, nothing between two lines."""
        self.waiting.append(numbers)
        if step % self.every:
            return {}
        columns = {name: [n[name] for n in self.waiting if name in n] for n in self.waiting for name in n}
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        self.waiting = []
        self.write(step, means | {"lr": numbers["lr"]})
        return means

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add a line."""
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")


class Progress:
    """A bar on a terminal, a line now and then elsewhere.

    Args:
        step: from which the run goes on.
        total: the last one.
        show: whether this process shows anything.
    """

    SECONDS = 15  # between two lines

    def __init__(self, step: int, total: int, show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        self.lines = show and not console.is_terminal
        self.first, self.total = step, total
        self.started = self.last = time.monotonic()
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self.task = self.bar.add_task("training", total=total, completed=step, loss=math.nan)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def show(self, step: int, loss: float) -> None:
        """Tell where the run stands."""
        self.bar.update(self.task, completed=step, loss=loss)
        now = time.monotonic()
        if self.lines and now - self.last > self.SECONDS:
            self.last, rate = now, (step - self.first) / (now - self.started)
            print(f"step {step}/{self.total}  loss {loss:.5f}  {rate:.2f} steps/s", flush=True)

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()
