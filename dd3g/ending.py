"""How work ends: any error in one line, signals, and output that cannot be written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from dd3g.errors import UserError, first_line


def explain(error: Exception, out: Path, less: str) -> str:
    """The message for the user about whatever ended the work on one input.

    With DD3G_TRACEBACK in the environment an error that they cannot fix is raised again.

    Args:
        error: what stopped the work on one input.
        out: output folder.
        less: an option that needs less memory.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        where = error.filename or f"to {out} or among temporary files"
        return (
            f"could not write {where} ({error.strerror or error}): free some space, or choose another folder "
            "with -o, for temporary files with TMPDIR"
        )
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return f"not enough memory: close other programs, or give {less}"
    if os.environ.get("DD3G_TRACEBACK"):
        raise error
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"unexpected {type(error).__name__}: {first_line(error)} ({Path(last.filename).name}, line "
        f"{last.lineno}): a defect, please report it; with DD3G_TRACEBACK=1 it shows where it comes from"
    )


class Interrupted(KeyboardInterrupt):
    """A signal that ends a process has come; `number` says which, `code` the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.code = number, 128 + number


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the work as Ctrl-C does, so that nothing half-done stays behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
        for number in (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(
    work: Callable[[], int | None],
    go_on: str = "run the same command again to resume",
    as_json: bool = False,
) -> int:
    """Exit code of some work: its own, 2 with one line when something is wrong, that of a signal.

    Args:
        work: returns an exit code; None counts as 0.
        go_on: what a user may do after Ctrl-C.
        as_json: whether a program waits for a report; it is told of Ctrl-C where the work did not begin.
    """
    try:
        code = work() or 0
    except typer.Exit as done:
        code = done.exit_code
    except (UserError, OSError) as error:
        say(f"error: {error}", err=True)
        code = 2
    except KeyboardInterrupt as stop:  # of Ctrl-C, or of another signal that the work took for one
        say(f"stopped: {go_on}", err=True)
        if as_json:
            say(json.dumps({"error": f"stopped: {go_on}"}))
        code = getattr(stop, "code", 128 + signal.SIGINT)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        silence_stdout()
    return code


def tolerate_names() -> None:
    """Let a terminal in cp1252 or latin-1 show names that it cannot, escaped, instead of ending the work."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str, err: bool = False) -> None:
    """Print one line on stdout, or on stderr.

    Raises:
        UserError: when stdout cannot be written to; stderr then has no use either, and is let be.
    """
    # File names may hold bytes that are not text, and messages of libraries may hold line breaks.
    # A name whose bytes are text is known as such, even where the locale has only ASCII.
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "replace")
    line = " ".join(data.decode("utf-8", "backslashreplace").split("\n"))
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    try:
        typer.echo(line.encode(encoding, "backslashreplace").decode(encoding), err=err)
    except OSError as error:
        if not err:
            silence_stdout()
            if not isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
                raise UserError(f"cannot print the report ({error.strerror or error})") from error


def silence_stdout() -> None:
    """Let what could not be printed go when Python ends, which would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
