"""Signals that end a process become an exception, so that nothing half-done stays behind."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_came: list[int] = []  # signals, see `signals_stop`
_waits: list[None] = []  # one for each `signals_wait` that is open


class Interrupted(KeyboardInterrupt):
    """A signal that ends a process has come; `number` says which, `code` the exit code.

    That is 128 + the signal's number, but 0 for SIGUSR1, by which a scheduler says that the time is up and
    the job is to be queued again.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.code = number, 0 if self.args[0] == "SIGUSR1" else 128 + number


@contextlib.contextmanager
def signals_stop(*names: str, instead: Callable[[int], None] | None = None) -> Iterator[None]:
    """Inside, signals end the work by an exception, so that nothing half-done stays behind.

    Args:
        names: of the signals; without any, those that end a program.
        instead: called with the number of a signal where the work can end by itself.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if instead:
            return instead(number)
        _came.append(number)
        if not _waits:
            raise Interrupted(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
        for name in names or ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has not all of them
            if number and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _came.clear()


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, signals of `signals_stop` end the work only after the block, whose steps belong together."""
    _waits.append(None)
    try:
        yield
    finally:
        _waits.pop()
    raise_what_came()


def raise_what_came(cause: Exception | None = None) -> None:
    """End the work if a signal has come and did not yet end it.

    Args:
        cause: an error that the signal has led to.

    Raises:
        Interrupted: for the last one.
    """
    if _came:
        raise Interrupted(_came[-1]) from cause
