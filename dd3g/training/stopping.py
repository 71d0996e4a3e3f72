"""Signals that ask a training to stop, as schedulers and users send them."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

# Ctrl-C; the end of a job, of a session; and Slurm's warning before its time is up.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Stopped(KeyboardInterrupt):
    """A training ended on a signal, with a checkpoint.

    `code` is what a command exits with: 128 + the signal's number, but 0 for SIGUSR1, by which a scheduler
    says that the time is up and the job is to be queued again.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.code = 0 if self.args[0] == "SIGUSR1" else 128 + number


class StopRequest:
    """While this is entered, the first signal is noted in `number`, for the step under way to be finished.

    A second one raises `Stopped` at once. Outside the main thread, where Python handles no signals, `number`
    stays 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise Stopped(number)
        self.number = number
