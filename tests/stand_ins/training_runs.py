"""What the tests of training runs share."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from stand_ins.forked import ROOT, Forked

PATIENCE = 1200  # seconds: each process loads torch, and others may be at work on the machine


def fresh():
    """Forget accelerate's process-wide state: every run of a script is a process of its own."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


TORCHRUN = "torch.distributed.run", "--standalone", "--nproc_per_node", "2"
ACCELERATE = "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"


def torchrun(*line, seconds=PATIENCE, launcher=None):
    """A script in two processes: exit code and what it said; where they do not end, where each of them stood.

    torchrun gives every process a session of its own, so a time-out of `subprocess` would leave them behind.
    Without a launcher they are forked.
    """
    if launcher is None:
        process = Forked(*line, processes=2)
    else:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher, *line],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        )  # fmt: skip
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        for child in map(int, found.stdout.split()):
            os.kill(child, signal.SIGABRT)  # the fault handler tells the stack
        os.kill(process.pid, signal.SIGTERM)
        raise AssertionError(
            f"two processes did not end in {seconds} s:\n{process.communicate()[1]}"
        ) from None
    return process.returncode, said


def in_this_process(module, *arguments, seconds=None, some_may_fail=False):
    """In place of `distill.recipe.run_stage`."""
    fresh()
    module += ".__main__" if module == "distill.evaluation" else ""
    assert importlib.import_module(module).main(list(arguments)) <= some_may_fail


def metrics(output):
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
