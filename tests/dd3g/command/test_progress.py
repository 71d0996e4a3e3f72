from __future__ import annotations

import hashlib
import os
from types import SimpleNamespace

import pytest

from dd3g.command.progress import Progress, print_first
from dd3g.fingerprint import fingerprint


def test_a_line_now_and_then_where_no_terminal_is(capsys):
    with Progress(seconds=-1) as progress:
        progress.phase("pictures", 10, done=4)
        progress.advance(2, "loss 0.5")
    error = capsys.readouterr().err
    assert error.startswith("6 of 10 pictures, loss 0.5  ") and error.endswith(" left\n")


def test_what_takes_long_is_told_while_it_is_worked_on(capsys):
    with Progress(total=1, name="inputs", seconds=-1) as progress:
        progress.at("a.mp4, frame 7 of 9")
    assert capsys.readouterr().err == "a.mp4, frame 7 of 9\n"


def test_work_that_ends_by_the_clock_counts_what_the_time_allows(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dd3g.command.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress(seconds=0) as progress:
        progress.phase("steps", 60_000)
        now[0] += 4
        progress.advance(8, seconds=30)  # two a second
        now[0] += 4
        progress.advance(60_000 - 16, seconds=1e9)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "8 of about 68 steps, 2/s, 0:00:30 left"
    assert second.startswith("59992 of 60000 steps, ")


def test_no_lines_in_between_and_none_when_hidden(capsys):
    for progress in (Progress(total=3, name="shards"), Progress(show=False, seconds=-1)):
        with progress:
            progress.at("a")
            progress.advance()
    assert capsys.readouterr().err == ""


def test_what_is_said_is_not_read_as_markup(capsys):
    Progress().say("[red]x[/red] {y}")
    assert capsys.readouterr().err == "[red]x[/red] {y}\n"


def test_the_first_lines_and_how_many_more(capsys):
    print_first(["a", "b", "c"], 2, "{} more in {x}")
    assert capsys.readouterr().err == "a\nb\n1 more in {x}\n"
    print_first(["a", "b"], 2, "{} more")
    assert capsys.readouterr().err == "a\nb\n"


@pytest.mark.parametrize("name", ["a", "Größe", os.fsdecode(b"\xff.png")])
def test_fingerprint_is_of_the_bytes_in_every_locale(name):
    data = name.encode("utf-8", "surrogateescape")
    expected = hashlib.sha256(data + b" 3\n").hexdigest()[:16]
    assert fingerprint(name, " 3\n") == fingerprint(data, b" 3\n") == expected
