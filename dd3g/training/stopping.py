"""Signals that ask a training to stop, as schedulers and users send them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from dd3g.command.signals import Interrupted

# Ctrl-C; the end of a job, of a session; and Slurm's warning before its time is up.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
ACCELERATE = "ACCELERATE_DYNAMO_USE_FULLGRAPH"  # set by accelerate launch for all that it starts
LAUNCHED = ("TORCHELASTIC_RUN_ID", ACCELERATE)  # torchrun's, also beneath accelerate launch, comes first
PARENT = os.getppid()  # as of the import: it may end while weights and data are being read
ECHO = 2.0  # seconds in which a launcher hands on what the scheduler has sent to all processes at once


def launcher_has_ended(proc: Path = Path("/proc")) -> bool:
    """Whether a launcher has started this process, and has ended since.

    Args:
        proc: where the system describes its processes.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return False
    if os.getppid() != PARENT:
        return True
    try:  # While Python imported, process 1 may have taken it in; in a container that may be the launcher.
        return PARENT == 1 and b"python" not in (proc / "1/cmdline").read_bytes()
    except OSError:  # not a Linux
        return False


class StopRequest:
    """The first signal is noted in `number`, for the step under way to be finished.

    A second one raises `Interrupted` at once, unless it is the first one's echo, or SIGUSR1, which only says
    again that the time is up.
    """

    def __init__(self) -> None:
        self.noted, self.since = 0, 0.0

    @property
    def number(self) -> int:
        """The first signal, 0 without one; SIGHUP where the launcher has ended and left its processes behind.

        torchrun is ended by signals that it does not know, such as SIGUSR1, and accelerate launch with a
        single process by every one; they do not hand them on.
        """
        if not self.noted and launcher_has_ended():
            self.noted = signal.SIGHUP
        return self.noted

    def note(self, number: int) -> None:
        """Take in a signal."""
        echo = number == self.noted and time.monotonic() - self.since < ECHO
        if self.noted and not echo and signal.Signals(number).name != "SIGUSR1":
            raise Interrupted(number)
        if not self.noted:
            self.noted, self.since = number, time.monotonic()
