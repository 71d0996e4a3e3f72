"""Sets of quadruples that are stopped, killed, or made by several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from stand_ins.forked import ROOT, Forked
from stand_ins.simulated_sets import command, digests

from dd3g.io.atomic import only_user
from distill.quadruples import Quadruples
from distill.simulate import _partial_state, main

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_time_limit_stops_between_shards(pictures, teacher, tmp_path, capsys):
    words = command(pictures, teacher, tmp_path / "set", "--per-shard", "1", "--json")
    assert main([*words, "--max-minutes", "0.0000001"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] < 12 and not report["complete"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


@pytest.mark.slow
def test_killed_at_random_and_started_again_makes_the_same_set(pictures, teacher, tmp_path):
    options = ("--per-shard", "1", "--seeds", "4", "--steps", "60")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert main(command(pictures, teacher, whole, *options)) == 0
    words = ["-m", "distill.simulate", *command(pictures, teacher, torn, *options)]
    random = np.random.default_rng(0)
    for stop_after in (3, 11):
        process = Forked(*words)
        while process.poll() is None and len(list(torn.glob("*.tar"))) < stop_after:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it finished before it was killed"
        done = {p.name: p.read_bytes() for p in torn.glob("*.tar")}
        assert stop_after <= len(done) < 24
        assert all((whole / name).read_bytes() == data for name, data in done.items())
        times = {name: (torn / name).stat().st_mtime_ns for name in done}
    last = Forked(*words)
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert {k: v for k, v in digests(torn).items() if k[0] != "."} == digests(whole)
    assert all((torn / name).stat().st_mtime_ns == t for name, t in times.items())  # nothing was made twice
    assert len(Quadruples(torn)) == 24


@pytest.mark.slow
def test_two_processes_share_the_shards(pictures, teacher, tmp_path):
    options = ("--per-shard", "2", "--seeds", "2")
    assert main(command(pictures, teacher, tmp_path / "one", *options)) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += "--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
    launch += ["-m", "distill.simulate", *command(pictures, teacher, tmp_path / "two", *options, "--json")]
    done = subprocess.run(launch, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert report["written"] == 6 and report["complete"] and report["quadruples"] == 12
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_each_process_asks_its_own_gpu(monkeypatch):
    """A GPU that answers keeps memory for who asked: accelerate must have chosen it before."""
    events = []

    class State:
        def __init__(self, cpu, timeout):
            events.append("cpu" if cpu else "chosen")
            self.device = torch.device("cpu" if cpu else "cuda:3")

    def answer(name):
        events.append(f"asked {name}")
        return torch.device(name)

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("dd3g.nn.checkpoint.find_device", answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: events.append(f"set {device}"))
    assert [_partial_state(name)[1].type for name in ("cuda", "cpu", "auto")] == ["cuda", "cpu", "cuda"]
    assert events == ["chosen", "asked cuda", "cpu", "asked cpu", "chosen", "set cuda:3"]


def test_a_set_has_one_maker_and_one_batch_size(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "set"
    with only_user(out):
        assert main(command(pictures, teacher, out)) == 2
    assert "set is in use by process" in capsys.readouterr().err and not list(out.glob("*.tar"))
    assert main(command(pictures, teacher, out, "--batch-size", "2")) == 0
    assert main(command(pictures, teacher, out, "--batch-size", "3")) == 2
    assert "batch_size 2 (now 3)" in capsys.readouterr().err


def test_processes_on_cpus_share_the_work_by_default(monkeypatch):
    """`torchrun -m distill.simulate` with --device auto, where there is no GPU."""
    asked = []
    monkeypatch.setattr("accelerate.PartialState", lambda cpu, timeout: asked.append(cpu) or _Lone())
    for cuda, device in ((False, "auto"), (True, "auto"), (True, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        _partial_state(device)
    assert asked == [True, False, True]


class _Lone:
    device = torch.device("cpu")


@pytest.mark.slow
def test_torchrun_makes_each_shard_once(pictures, teacher, tmp_path):
    words = [str(pictures), "--teacher", str(teacher), "--output", str(tmp_path / "set"), "--per-shard", "3"]
    process = Forked("-m", "distill.simulate", *words, "--json", processes=2)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    (report,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert report["written"] == report["shards"] == 4 and report["quadruples"] == 12
