"""The Slurm script against stand-ins for srun and scontrol: it stops in time, and is queued again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins.training_runs import metrics

from dd3g.training.checkpoints import checkpoints

ROOT = Path(__file__).parents[1]
SRUN = """#!/bin/bash
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1
"$@" &
child=$!
asked=
trap 'asked=1; kill -USR1 $child' USR1
wait $child
code=$?
if [ $asked ]; then wait $child; code=$?; fi
exit $code
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) echo localhost ;;
  requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as Slurm does; returns the process."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1", "REQUEUED": str(tmp_path / "requeued"), "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "ACCELERATE_USE_CPU": "true",
        "DD3G_TRAIN": f"{sys.executable} tests/stand_ins/line_run.py {tmp_path / 'run'}",
    }  # fmt: skip

    def start(*words, **variables):
        script = ["bash", "configs/slurm/train.sbatch", *words]
        return subprocess.Popen(
            script, cwd=ROOT, env=environment | variables, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_on_in_the_next(job, tmp_path):
    first = job("max_train_steps=1000000", "lr_decay_steps=0", "checkpointing_steps=1000000")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/metrics.jsonl").exists() or not metrics(tmp_path / "run")[2:]:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 0, said
    assert (tmp_path / "requeued").read_text() == "41\n"
    (kept,) = checkpoints(tmp_path / "run")
    step = int(kept.name.removeprefix("checkpoint-"))
    assert metrics(tmp_path / "run")[-1]["step"] == step >= 3
    second = job(f"max_train_steps={step + 2}", "lr_decay_steps=0", "checkpointing_steps=1000000")
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0 and f"from step {step} of {step + 2}" in said
    assert (tmp_path / "requeued").read_text() == "41\n"  # a finished run is not queued again


@pytest.mark.slow
def test_a_job_that_fails_says_so(job, tmp_path):
    failed = job("learning_rate=-1")
    _, said = failed.communicate(timeout=300)
    assert failed.returncode == 2 and "learning_rate must be at least 0" in said
    assert not (tmp_path / "requeued").exists()


def test_a_node_gets_the_shards_of_its_set_alone(job, tmp_path):
    """Links are followed, since what they lead to is not on the node; what another job left there goes."""
    (tmp_path / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    for name in ("rsync", "mkdir"):
        (tmp_path / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/{name}.txt\n')
        (tmp_path / name).chmod(0o755)
    staged = job(STAGE=f"{tmp_path}/some shards/", DD3G_TRAIN="true", SLURM_PROCID="0", SLURM_LOCALID="0",
                 SLURM_NTASKS="1")  # fmt: skip
    assert staged.wait(timeout=60) == 0, staged.stderr.read()
    said = (tmp_path / "rsync.txt").read_text().splitlines()
    assert said == ["-aL", "--delete", f"{tmp_path}/some shards", "/tmp/stage/"]
    assert (tmp_path / "mkdir.txt").read_text() == "-p\n/tmp/stage\n"


def test_a_job_whose_time_is_up_while_python_imports(job, tmp_path):
    """Before anything handles the signal, it kills the process."""
    imports = tmp_path / "imports.sh"
    imports.write_text(f"touch {tmp_path / 'begun'}\nexec sleep 100\n")
    early = job(DD3G_TRAIN=f"bash {imports}")
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert early.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    early.send_signal(signal.SIGUSR1)
    _, said = early.communicate(timeout=60)
    assert early.returncode == 0, said
    assert (tmp_path / "requeued").read_text() == "41\n"
