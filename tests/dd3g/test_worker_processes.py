"""Work in several processes: order, processes that are killed, and signals to the one that waits."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from stand_ins.infer_command import ROOT

from dd3g import processes
from dd3g.errors import UserError
from dd3g.machine import cores_each
from dd3g.processes import from_launcher, map_in_processes, usable_cores
from dd3g.training.config import LoopConfig

SLEEPERS = """
import os, time
from pathlib import Path
from dd3g.processes import map_in_processes
from dd3g.command.signals import signals_stop

def sleep(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    with signals_stop():
        list(map_in_processes(sleep, [FOLDER] * 9, 2))
"""


def end_in(second, number):
    time.sleep(0.05 * (3 - number))
    if number == second:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.environ.get("BEGUN")


def begin():
    os.environ["BEGUN"] = "yes"


@pytest.mark.slow
def test_results_come_in_order_and_a_killed_process_is_told(monkeypatch):
    monkeypatch.delenv("BEGUN", raising=False)
    found = list(map_in_processes(partial(end_in, None), range(3), 2, begin))
    assert found == [(0, "yes"), (1, "yes"), (2, "yes")] and "BEGUN" not in os.environ
    with pytest.raises(UserError, match="was killed, perhaps for lack of memory: run the same command again"):
        list(map_in_processes(partial(end_in, 1), range(3), 2))


def test_what_a_launcher_says_of_a_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (from_launcher("RANK"), from_launcher("WORLD_SIZE"), from_launcher("LOCAL_WORLD_SIZE")) == (
        0,
        1,
        1,
    )
    monkeypatch.setenv("RANK", "3")
    assert from_launcher("RANK") == 3
    for name, value in (("WORLD_SIZE", "0"), ("WORLD_SIZE", "two"), ("RANK", "-1"), ("LOCAL_RANK", "")):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"{name} is '{value}' in the environment: unset it, or set"):
            from_launcher(name)
    monkeypatch.setenv("WORLD_SIZE", "two")  # which was a traceback
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        LoopConfig(num_train_epochs=1).count_epochs(10)


def test_one_process_works_in_this_one(monkeypatch):
    monkeypatch.delenv("BEGUN", raising=False)
    assert list(map_in_processes(partial(end_in, None), range(2), 1, begin)) == [(0, "yes"), (1, "yes")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_all_processes_at_once_without_a_word(tmp_path, name):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS.replace("FOLDER", repr(str(tmp_path / "begun"))))
    (tmp_path / "begun").mkdir()
    process = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=-1, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while len(begun := list((tmp_path / "begun").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    # Ctrl-C reaches every process of a terminal, a scheduler's signal the first.
    (os.killpg if name == "SIGINT" else os.kill)(process.pid, getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert "leaked" not in error and error.splitlines()[-1] == f"dd3g.command.signals.Interrupted: {name}"
    assert error.count("Traceback") == 1  # of the script above, not of its processes
    for path in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(None, 200), ("max 100000", 200), ("1600000 100000", 16), ("150000 100000", 1), ("50000 100000", 1)],
)
def test_cores_are_those_that_may_be_used(tmp_path, monkeypatch, quota, cores):
    """Of a machine with 200: what a container may have of them, in shares of the clock."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(200), raising=False)
    monkeypatch.setattr(processes, "QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores_each() == max(1, cores // 8)
