"""Commands of the pages: each of them exists, and so does every option and key that it is shown with."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dd3g.__main__ import main
from dd3g.command import configuration, run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LAUNCHERS = ("torchrun", "accelerate", "sbatch")
NONE = {"COMMAND", "NETWORK"}  # stand for any of them


def shown(page):
    """Lines that are commands, without what follows or leads them: (words, whether they are whole)."""
    text = page.read_text("utf-8")
    for block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.partition("  #")[0].partition(" #")[0].split("&&"):
                yield part.strip(), True
    for line in INLINE.findall(FENCED.sub("", text)):
        yield " ".join(line.split()), False


def words_of(line):
    """The command's words as `dd3g` or `python -m` gets them, its module first; None for other commands."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S+|time|python|\S*/python", words[0]):
        words.pop(0)
    if words and words[0] in LAUNCHERS:
        place = next((i for i, w in enumerate(words) if w.endswith(".py") or w == "-m"), None)
        if words[0] == "sbatch":
            return ["distill.train", *words[2:]]
        if place is None:
            return None
        words = words[place:]
        if words[0] != "-m":
            words = ["-m", words[0].removesuffix(".py").replace("/", "."), *words[1:]]
    if words[:1] == ["dd3g"] and len(words) > 1:
        return ["dd3g.__main__", *words[1:]]
    if words[:1] == ["-m"] and words[1].split(".")[0] in ("tools", "distill", "dd3g", "data_gen"):
        return words[1:]
    return None


def found():
    for page in PAGES:
        for line, whole in shown(page):
            words = words_of(line)
            # Without options a sentence names a command only.
            if words and not NONE & set(words) and (whole or re.search(" -(?!m )|=", line)):
                yield pytest.param(words, whole, id=f"{page.name}: {line}"[:100])


class Parsed(BaseException):
    """The words were understood; nothing need be done."""


@pytest.fixture
def only_read(monkeypatch):
    """Commands read their words and do nothing."""
    make, parse = run.make_app, configuration.parse

    def make_app(function, *more):
        return make(functools.wraps(function)(lambda **options: None))

    def read(argv, schema):
        parse(argv, schema)
        raise Parsed

    monkeypatch.setattr(run, "make_app", make_app)
    monkeypatch.setattr(configuration, "parse", read)


def test_pages_show_commands():
    assert len(list(found())) > 70
    assert words_of("torchrun --nproc_per_node 8 -m distill.simulate a --seeds 1")[0] == "distill.simulate"
    assert words_of("HF_HUB_OFFLINE=1 dd3g train x=1") == ["dd3g.__main__", "train", "x=1"]
    assert words_of("pip install gsplat") is None


@pytest.mark.parametrize(("words", "whole"), list(found()))
def test_a_command_of_a_page_is_understood(words, whole, only_read, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    module, *rest = words
    rest = [w for w in rest if w.strip(".…") and "…" not in w]
    monkeypatch.setattr(sys, "argv", [module])
    start = main if module == "dd3g.__main__" else import_module(module).main
    if "argv" not in inspect.signature(start).parameters:  # of a script that typer runs
        start = functools.partial(run.run_command, start, name=module)
    try:
        code = start(rest)
    except Parsed:
        return
    said = capsys.readouterr().err
    # A sentence may name an option alone; what it lacks is on the line before it.
    assert code == 0 or (not whole and re.search("Missing (argument|option)|expected --key value", said)), (
        said
    )
