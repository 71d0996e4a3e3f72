"""How far a long command is: a bar on a terminal, a line of text now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self


class Progress:
    """Counts what is done.

    Args:
        label: what is counted.
        total: how many there are.
        done: how many were done before.
        show: whether to say anything.
        seconds: between two lines of text.
        stderr: where they go; else to standard output.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        show: bool = True,
        seconds: float = 60,
        stderr: bool = True,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=stderr)
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Bar(
            *columns, TimeRemainingColumn(), console=console, disable=not (show and console.is_terminal)
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="")
        self._lines = show and not console.is_terminal
        self._label, self._total, self._done, self._before = label, total, done, done
        self._start = self._last = time.monotonic()
        self._seconds, self._stderr = seconds, stderr

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` says something of the last one."""
        self._done += count
        self._bar.update(self._task, completed=self._done, note=note)
        now = time.monotonic()
        if self._lines and now - self._last > self._seconds:
            self._last, rate = now, (self._done - self._before) / (now - self._start)
            line = f"{self._label} {self._done} of {self._total}  {note}  {rate:.2f}/s"
            print(line, file=sys.stderr if self._stderr else sys.stdout, flush=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
