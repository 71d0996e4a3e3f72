"""The real command, killed at random moments, alone and as one of two ranks: nothing is made twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from stand_ins.made_up_dataset import contents
from stand_ins.training_runs import PATIENCE

from data_gen.reports.verify import verify
from data_gen.shards.manifest import ShardManifest, finished_shards
from data_gen.shards.storage import Storage
from data_gen.synthesize import main
from dd3g.io.shards import Shards

ROOT = Path(__file__).parents[2]
COUNT = 120


def command(folder):
    prompt_file = folder.parent / "prompts.txt"
    prompt_file.write_text("\n".join(f"a thing of number {i}" for i in range(COUNT)))
    settings = ["shard_size=15", "batch_size=2", "size=32", "model.height=64", "matte.workers=1"]
    config = ["--config", str(ROOT / "configs/data_gen/shapes.yaml")]
    return [*config, f"prompts={prompt_file}", f"output={folder}", *settings]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "set"
    assert main(command(folder)) == 0
    return folder


def start(folder, *more):
    """The command as a process of its own; a fork, because importing takes longer than the work."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(main([*command(folder), *more]))
        finally:
            os._exit(99)
    return child


def kill_later(process, folder, seconds):
    """Kill a process some time after it has begun to commit; whether it was still at work."""
    before = {p.name for p in folder.rglob("*.tar")}
    while {p.name for p in folder.rglob("*.tar")} == before:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1] == signal.SIGKILL


def tries(folder):
    """Every (id, attempt) of finished shards and of parts: what has been committed."""
    storage, found = Storage(folder), []
    finished = finished_shards(storage)
    for shard in finished:
        manifest = ShardManifest.read(storage, shard)
        found += [(r["id"], r["attempt"]) for r in (*manifest.records, *manifest.rejections)]
    for path in folder.glob("parts/*/*.tar"):
        if int(path.parent.name.removeprefix("pictures-")) not in finished:
            found += [(v["id"], v["attempt"]) for v in json.loads(Shards(path)[-1]["json"])["verdicts"]]
    return found


def check(folder, whole):
    """The set is that of a run that was never killed, each picture once."""
    assert contents(folder) == contents(whole)
    assert max(Counter(tries(folder)).values()) == 1
    ids = Counter(s["__key__"] for s in Shards(folder))
    assert (
        max(ids.values()) == 1
        and sum(ids.values()) + len(json.loads((folder / "index.json").read_text())["missing_ids"]) == COUNT
    )
    assert verify(Storage(folder))["ok"]


def test_killed_at_three_random_moments(whole, tmp_path):
    rng, folder, kills = random.Random(0), tmp_path / "set", 0
    committed = set()
    for _ in range(3):
        kills += kill_later(start(folder), folder, rng.uniform(0, 0.15))
        now = tries(folder)
        assert len(now) == len(set(now)) and committed <= set(now)  # nothing twice, nothing lost
        committed = set(now)
    assert kills
    assert main(command(folder)) == 0
    check(folder, whole)


def test_one_of_two_ranks_killed(whole, tmp_path):
    """Ranks of their own, side by side; one is killed and started again while the other works on."""
    rng, folder = random.Random(1), tmp_path / "set"
    ranks = [start(folder, "--rank", str(r), "--world", "2") for r in range(2)]
    assert kill_later(ranks[1], folder, rng.uniform(0, 0.1))
    again = start(folder, "--rank", "1", "--world", "2")
    codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in (ranks[0], again)]
    assert set(codes) <= {0, 3}
    for turn in range(10):  # in turns, until rank 0 has written the index
        code = main([*command(folder), "--rank", str(turn % 2), "--world", "2"])
        if code == 0 and turn % 2 == 0:
            break
    check(folder, whole)


@pytest.mark.slow
def test_one_of_two_ranks_of_a_launch_killed(whole, tmp_path):
    """The other and the launcher end too, and the same launch goes on."""
    folder = tmp_path / "set"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "data_gen"]
    launch = [sys.executable, *words, "synthesize", *command(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen(launch, cwd=ROOT, env=environment, **quiet)
    while not list(folder.rglob("*.tar")):
        assert launcher.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert launcher.wait(timeout=PATIENCE) != 0
    assert main(command(folder)) == 0
    check(folder, whole)
