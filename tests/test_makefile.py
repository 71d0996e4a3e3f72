"""`make demo` and `make test`, with a stand-in for Python that writes down what it is asked."""

import os
import shutil
import subprocess

import pytest
from stand_ins.infer_command import ROOT, run, written

FAKE = """#!/bin/sh
echo "$@" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
if [ "$1 $2" = "-m dd3g.models" ]; then exit 2; fi  # no network
"""


@pytest.fixture
def make(here):
    """Runs make in a copy of the project and returns the words of each call of Python."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, here)
    (here / "python").write_text(FAKE)
    (here / "python").chmod(0o755)

    def call(*words):
        (here / "log").write_text("")
        environment = os.environ | {"LOG": str(here / "log"), "PYTHON": str(here / "python")}
        done = subprocess.run(["make", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in (here / "log").read_text().splitlines()]

    return call


def test_demo_installs_once_and_runs_a_command_that_works(make, here, stub):
    venv, install, fetch, demo = make("demo")
    assert venv == ["-m", "venv", ".venv"]
    assert install[:3] == ["-m", "pip", "install"] and install[-2:] == ["-e", ".[video]"]
    assert install[install.index("-c") + 1] == "constraints.txt"
    assert fetch == ["-m", "dd3g.models", "fetch", "u2netp"]
    assert make("demo") == [fetch, demo]
    assert make("demo", "DEMO=chair.png")[-1][:3] == ["-m", "dd3g.infer", "chair.png"]

    assert demo[:3] == ["-m", "dd3g.infer", "assets/lamp.png"]
    shutil.copytree(ROOT / "assets", here / "assets")
    run(*demo[2:])
    assert written() == ["lamp.glb", "lamp.html", "lamp.matte.png", "lamp.ply", "lamp.turntable.mp4"]


def test_test_installs_what_the_tests_need_and_runs_them(make):
    *_, install, fetch, test = make("test")
    assert install[-2:] == ["-e", ".[dev]"]
    assert test == [
        "-m",
        "pytest",
        "-n",
        "logical",
        "--maxprocesses",
        "8",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
    ]
    assert make("test") == [fetch, test]
    assert make("test-fast") == [[*test, "-m", "not", "slow"]]
    *_, page, site = make("docs")
    assert page[:2] == ["-m", "dd3g.infer"] and page[3:] == ["-o", "docs/live", "--format", "ply", "--viewer"]
    assert site == ["-m", "mkdocs", "build", "--strict"]
    assert make("clean") == [] and make("demo")[1][-1] == ".[video]"
