"""How far a long command is: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_drawn: list[Progress] = []  # bars on the screen, the last one entered at the end


class Progress:
    """Counts what is done, in phases.

    Args:
        show: whether to say anything.
        total: of a first phase; leave both out where `phase` follows.
        name: of what it counts.
        seconds: between two lines where no terminal is attached.
    """

    def __init__(self, show: bool = True, total: int = 0, name: str = "", seconds: float = 60) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._lines, self._seconds = show and not console.is_terminal, seconds
        note = TextColumn("{task.fields[note]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), note)
        hidden = not (show and console.is_terminal)
        self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)
        self._task: Any = None
        self.phase(name, total)

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Begin counting `name`, of which `done` of `total` were there before."""
        self.name, self.total, self.done, self._before = name, total, done, done
        self._start = self._printed = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, completed=done, note="")

    @property
    def rate(self) -> float:
        """Done a second, in this phase."""
        return (self.done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def at(self, item: str) -> None:
        """Show `item` on the bar, which is worked on now; where there is none, now and then as a line."""
        self._bar.update(self._task, description=item)
        if self._lines and time.monotonic() - self._printed > self._seconds:
            self._printed = time.monotonic()
            self.say(item)

    def advance(self, count: int = 1, note: str = "", seconds: float = math.inf) -> None:
        """Count `count` more as done.

        Args:
            count: how many.
            note: stands beside the rate, such as a loss.
            seconds: after which the work ends, done or not.
        """
        self.done += count
        total, about = self.total, ""
        if self.rate * seconds < total - self.done:
            total, about = self.done + round(self.rate * seconds), "about "
        note = f"{note}  {self.rate:.3g}/s".strip()
        self._bar.update(self._task, completed=self.done, total=total, note=note)
        if self._lines and time.monotonic() - self._printed > self._seconds and self.rate:
            self._printed = time.monotonic()
            left = timedelta(seconds=round((total - self.done) / self.rate))
            self.say(f"{self.done} of {about}{total} {self.name}, {note}, {left} left")

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items one by one, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        if self._lines:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        _drawn.append(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        _drawn.remove(self)
        self._bar.stop()


@contextmanager
def paused() -> Iterator[None]:
    """Take the bar off the screen while something else draws there."""
    bars = [progress._bar for progress in _drawn[-1:]]
    for bar in bars:
        bar.stop()
    try:
        yield
    finally:
        for bar in bars:
            bar.start()


def track(items: Sequence[T], name: str) -> Iterator[T]:
    """The items one by one, counted on a bar as `name`."""
    with Progress(total=len(items), name=name) as progress:
        yield from progress.each(items)


def print_first(lines: Sequence[str], most: int, rest: str) -> None:
    """Print lines on stderr, and beyond some of them only how many there are.

    Args:
        lines: all of them.
        most: lines that are printed.
        rest: line that stands for the others, with {} in place of their number.
    """
    for line in lines[:most]:
        print(line, file=sys.stderr)
    if len(lines) > most:
        print(rest.replace("{}", str(len(lines) - most)), file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the bars and notes of diffusers and transformers, which every rank would print every time."""
    names = [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name)]
    logs = [importlib.import_module(f"{name}.utils.logging") for name in names]
    levels = [log.get_verbosity() for log in logs]
    for log in logs:
        log.set_verbosity(logging.CRITICAL)  # errors are raised as well
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar()
