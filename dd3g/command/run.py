"""What commands share: options, the report, errors and exit codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.progress import Progress
from dd3g.command.signals import raise_what_came, signals_stop
from dd3g.errors import UserError, first_line

# Options that several commands share.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]

UsageError: Any = typer.BadParameter.__mro__[1]  # of all wrong options; typer has no public name for it
RENAMED = {"out": "output"}  # options that had another name once
NO_PLACE = "-o is empty: a shell variable may be unset"
Report = dict[str, Any]  # a list of results, "failed", "seconds", and "error" for what stopped the run


def conclude(
    work: Callable[[Progress], object],
    kind: str,
    several: bool,
    as_json: bool,
    last_line: Callable[[Report], str],
    report: Report,
) -> None:
    """Run a command's work under a progress bar, print its report, and exit.

    Args:
        work: fills the report, whose list of results is called `kind` with an s; given the progress bar.
        kind: what an input is called in the report.
        several: whether one failure leaves others that may succeed.
        as_json: print the report alone.
        last_line: says what was written.
        report: of empty lists; it is printed whatever ends the work.

    Raises:
        typer.Exit: 1 when some of several inputs failed, 2 when the input was bad, 128 + the number of a
            signal that ended the work.
    """
    start = time.perf_counter()
    code = 0
    try:
        # Libraries that print would break the JSON.
        with contextlib.redirect_stdout(sys.stderr), signals_stop(), Progress(not as_json) as progress:
            work(progress)
        if report["failed"]:
            code = 1 if several else 2
    except UserError as e:
        report["error"] = str(e)
        code = 2
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        done = len(report[f"{kind}s"])
        report["error"] = (
            f"stopped by {signal.Signals(number).name} after {done} {kind}s: all files reported are complete"
        )
        code = 128 + number
    except Exception as e:
        report["error"] = explain(e, Path.cwd(), "smaller inputs")
        code = 2
    report["seconds"] = round(time.perf_counter() - start, 3)
    _print_troubles(report, kind, as_json)
    if as_json:
        say(json.dumps(report))
    elif code != 2:
        failed = f", {len(report['failed'])} failed" if report["failed"] else ""
        say(f"{last_line(report)} in {report['seconds']:.1f} s{failed}")
    if code:
        raise typer.Exit(code)


def tell(report: Report, as_json: bool, *lines: str) -> None:
    """Print a report as JSON, or its warnings on stderr and some lines on stdout."""
    if as_json:
        return say(json.dumps(report))
    for warning in report.get("warnings", ()):
        say(f"warning: {warning}", err=True)
    for line in lines:
        say(line)


def _print_troubles(report: Report, kind: str, as_json: bool) -> None:
    """Warnings, failures, what was skipped and why the run stopped, on stderr."""
    for result in report[f"{kind}s"]:
        for warning in result["warnings"] if not as_json else ():
            say(f"warning: {warning}", err=True)
    for failure in report["failed"]:
        name, message = failure[kind], failure["error"]
        say(f"error: {message}" if name in message else f"error: {name}: {message}", err=True)
    if (skipped := report.get("skipped")) and not as_json:
        names = [f"{skip[kind]} ({skip['reason']})" for skip in skipped]
        more = f" and {len(names) - 20} more, which --json names" if len(names) > 20 else ""
        say(f"skipped {len(names)}: {', '.join(names[:20])}{more}", err=True)
    if "error" in report:
        say(f"error: {report['error']}", err=True)


GO_ON = "run the same command again to resume"
STAGE = "DD3G_STAGE"  # in the environment of a command that another one runs, and which that goes on with


def make_app(command: Callable[..., None], go_on: str = GO_ON) -> typer.Typer:
    """A command line around a function with typer's annotations; see `run_command`."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if code := guarded(lambda: command(**options), go_on, bool(options.get("as_json"))):
            raise typer.Exit(code)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda n: RENAMED.get(n, n)}
    app.command(context_settings=settings)(run)
    return app


def command_line(
    command: Callable[..., None], name: str, needs_words: bool = True, go_on: str = GO_ON
) -> Callable[..., int]:
    """The `main` of a command's module, argv -> exit code; see `run_command`."""
    return lambda argv=None: run_command(command, argv, name, needs_words, go_on)


def run_command(
    command: Callable[..., None],
    argv: list[str] | None,
    name: str,
    needs_words: bool = True,
    go_on: str = GO_ON,
) -> int:
    """Run a function as a command line; returns its exit code, 2 with one line when something is wrong.

    Args:
        command: with typer's annotations.
        argv: words after the command's name; None takes the process's.
        name: that usage lines show.
        needs_words: show the help where there are none.
        go_on: what a user may do after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    tolerate_names()

    def run() -> int:
        if re.search(r"(^|\0)(-o|--out(put)?)[\0=]\s*(\0|$)", "\0".join(words)):
            raise UserError(NO_PLACE)  # to Path it would be the current folder
        parser = typer.main.get_command(make_app(command, go_on))
        try:  # typer's own main would swallow Ctrl-C
            with signals_stop(), parser.make_context(name, [*words] or ["-h"] * needs_words) as context:
                parser.invoke(context)
        except UsageError as error:
            return _failed(f"{_wrong_option(error)}; {name} --help explains the options", as_json)
        except typer.Exit as done:
            return done.exit_code if words or not needs_words else 2
        except (UserError, OSError):
            raise
        except Exception as error:
            return _failed(explain(error, Path.cwd(), "smaller inputs"), as_json)
        return 0

    return guarded(run, go_on, as_json)


def _wrong_option(error: Any) -> str:
    """What a `UsageError` says, with the value that was wrong."""
    message, cause = error.format_message().rstrip(".").replace("Value error, ", ""), error.__cause__
    if hasattr(cause, "errors"):  # pydantic's, who calls it the input
        message = message.replace("Input should", f"{cause.errors()[0]['input']!r} should")
    return message


def _failed(message: str, as_json: bool) -> int:
    """Say why a command ended, with --json as an object on stdout too; returns its exit code."""
    say(f"error: {message}", err=True)
    if as_json:
        say(json.dumps({"error": message}))
    return 2


def dispatch(
    commands: Mapping[str, Callable[..., None] | tuple[str, str]],
    argv: list[str] | None,
    name: str,
    about: str,
    otherwise: Callable[..., None] | None = None,
    hint: str = "",
) -> int:
    """Run the command that the first word names; returns its exit code.

    Args:
        commands: by name, a function for `run_command`, or a module with `main(argv)` and a line about it;
            the module is imported when it is asked for.
        argv: words after the group's name; None takes the process's.
        name: of the group.
        about: a line about the group.
        otherwise: runs where the first word names no command, with all words; None: that is an error.
        hint: ends the message of that error.
    """
    words = sys.argv[1:] if argv is None else argv
    tolerate_names()
    first = words[0].replace("_", "-") if words else ""
    if first not in commands and otherwise:
        return run_command(otherwise, words, name)
    if first in ("", "-h", "--help"):
        lines = {key: c[1] if isinstance(c, tuple) else summary(c) for key, c in commands.items()}
        listed = "\n".join(f"  {key:<17}{line}" for key, line in lines.items())
        print_help(f"Usage: {name} COMMAND [ARGS]...\n\n  {about}\n\nCommands:\n{listed}")
        return 0 if words else 2
    if first not in commands:
        message = f"no command {words[0]!r}: choose from {', '.join(commands)}{hint}"
        return _failed(message, "--json" in words)
    command = commands[first]
    if not isinstance(command, tuple):
        return run_command(command, words[1:], f"{name} {first}", needs_words=False)
    return guarded(lambda: import_module(command[0]).main(words[1:]), as_json="--json" in words)


def summary(documented: Callable[..., Any]) -> str:
    """First line of the docstring of a function or class."""
    return (documented.__doc__ or "").partition("\n")[0]


def print_help(text: str) -> None:
    """Print a page; a reader such as `head` may close the pipe early."""
    try:
        print(text, flush=True)
    except OSError as error:
        silence_stdout()
        if not isinstance(error, BrokenPipeError):
            say(f"error: cannot print the help ({error.strerror or error})", err=True)


def explain(error: Exception, out: Path, less: str) -> str:
    """The message for the user about whatever ended the work on one input.

    With DD3G_TRACEBACK in the environment an error that they cannot fix is raised again.

    Args:
        error: what stopped the work on one input.
        out: output folder.
        less: an option that needs less memory.
    """
    raise_what_came(error)  # a signal can be lost in a compiler's callback, whose work then fails
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        where = error.filename or f"to {out} or among temporary files"
        first = "free some space, or " if error.errno in (None, errno.ENOSPC, errno.EDQUOT) else ""
        return (
            f"could not write {where} ({error.strerror or error}): {first}choose another folder with -o, for "
            "temporary files with TMPDIR"
        )
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return f"not enough memory: close other programs, or give {less}"
    if os.environ.get("DD3G_TRACEBACK"):
        raise error
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"unexpected {type(error).__name__}: {first_line(error)} ({Path(last.filename).name}, line "
        f"{last.lineno}): a bug, please report it; DD3G_TRACEBACK=1 shows where it comes from"
    )


def failure(kind: str, name: str, error: Exception, out: Path, less: str) -> dict[str, Any]:
    """What a report says about an input that was not finished, which it calls `kind`; the rest as `explain`.

    Under "files" is what was written all the same.
    """
    entry: dict[str, Any] = {kind: name, "error": explain(error, out, less)}
    return entry | {"files": files} if (files := getattr(error, "files", None)) else entry


def guarded(work: Callable[[], int | None], go_on: str = GO_ON, as_json: bool = False) -> int:
    """Exit code of some work: its own, 2 with one line when something is wrong, that of a signal.

    Args:
        work: returns an exit code; None counts as 0.
        go_on: what a user may do after Ctrl-C.
        as_json: print what ended the work as JSON too.
    """
    try:
        _check_here()
        code = work() or 0
    except typer.Exit as done:
        code = done.exit_code
    except BrokenPipeError:  # a reader such as `head` has seen enough
        silence_stdout()
        code = 0
    except UserError as error:
        code = _failed(str(error), as_json)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = _failed(f"{error}: free some space, then {go_on}" if full else str(error), as_json)
    except KeyboardInterrupt as stop:  # of Ctrl-C, or of another signal that the work took for one
        stopped = "stopped" if os.environ.get(STAGE) else f"stopped: {go_on}"
        say(stopped, err=True)
        if as_json:
            say(json.dumps({"error": stopped}))
        code = getattr(stop, "code", 128 + signal.SIGINT)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        silence_stdout()
    return code


def _check_here() -> None:
    try:
        os.getcwd()
    except OSError as error:  # torch's own libraries would end the process
        raise UserError(f"the current folder is gone ({error.strerror}): cd to one that exists") from error


def tolerate_names() -> None:
    """Let a terminal in cp1252 or latin-1 show names that it cannot, escaped, instead of ending the work."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str, err: bool = False) -> None:
    """Print one line on stdout, or on stderr.

    Raises:
        UserError: when stdout cannot be written to; stderr then has no use either, and is let be.
    """
    # File names may hold bytes that are not text, even where the locale is ASCII; messages hold line breaks.
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
