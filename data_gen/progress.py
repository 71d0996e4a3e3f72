"""How far a long command is: a bar with rate and time left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

SECONDS_BETWEEN_LINES = 60


class Progress:
    """Counts what is done, in phases.

    Args:
        show: whether to say anything.
    """

    def __init__(self, show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._lines = show and not console.is_terminal
        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
        shown = show and console.is_terminal
        self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown)
        self._task: Any = None
        self.phase("", 0)

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Begin counting `name`, of which `done` of `total` were there before."""
        self.name, self.total, self.done, self._before = name, total, done, done
        self._start = self._said = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, completed=done, rate="")

    @property
    def rate(self) -> float:
        """Done a second, in this phase."""
        return (self.done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self._bar.update(self._task, completed=self.done, rate=f"{self.rate:.1f}/s")
        if self._lines and time.monotonic() - self._said > SECONDS_BETWEEN_LINES and self.rate:
            self._said = time.monotonic()
            left = timedelta(seconds=round((self.total - self.done) / self.rate))
            line = f"{self.done} of {self.total} {self.name}, {self.rate:.1f}/s, {left} left"
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line for people, above the bar."""
        if self._lines:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bar.stop()
