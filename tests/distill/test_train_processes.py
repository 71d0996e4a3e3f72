"""The training script: killed and resumed, and in two processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from stand_ins.distilled import distil, words
from stand_ins.forked import ROOT, Forked
from stand_ins.training_runs import ACCELERATE, TORCHRUN, files, metrics

from dd3g.command.configuration import parse
from distill.train import DistillConfig, training_samples

# The same as the subprocesses have: another number may round differently.
pytestmark = pytest.mark.usefixtures("one_thread")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
}  # fmt: skip


def test_several_processes_count_samples_together(data, monkeypatch, tmp_path):
    line = words(
        data[0], tmp_path, quadruples=f"[{data[1]}]", quadruples_start=0.5, gradient_accumulation_steps=3
    )
    config = parse(line, DistillConfig)
    assert training_samples(config).start == 2 * 3 * 4 // 2
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert training_samples(config).start == 4 * 2 * 3 * 4 // 2


def script(*line, **options):
    return subprocess.Popen(
        line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize(("optimizer", "launched"), [("adamw", True), ("muon", False)])
@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(data, tmp_path, optimizer, launched):
    options = {"max_train_steps": 10, "checkpointing_steps": 3, "objective.bootstrap": 0.2}
    options["optimizer"] = optimizer
    assert distil(data[0], tmp_path / "whole", **options) == 0
    line = [
        "distill/train.py",
        *words(data[0], tmp_path / "cut", **options),
        "--resume_from_checkpoint",
        "latest",
    ]
    target = random.SystemRandom().randint(1, 8)
    if launched:
        process = script(sys.executable, "-m", *ACCELERATE, *line, start_new_session=True)
    else:
        process = Forked(*line)
    record, deadline = tmp_path / "cut/metrics.jsonl", time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if record.exists() and record.read_bytes().count(b"\n") >= target:
            break
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert record.exists(), "the run did not start"
    assert distil(data[0], tmp_path / "cut", resume_from_checkpoint="latest", **options) == 0
    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    for name in ("metrics.jsonl", "model/model.safetensors", "checkpoint-10/model.safetensors"):
        assert whole[Path(name)] == cut[Path(name)], f"{name} differs after a kill at step {target}"


@pytest.mark.slow
def test_two_processes_follow_one(data, tmp_path):
    options = {
        "max_train_steps": 12, "checkpointing_steps": 12, "objective.bootstrap": 0.2,
        "objective.implicit": 0.05, "pretrained_teacher_model": "analytic", "learning_rate": 1e-3,
    }  # fmt: skip
    line = words(data[0], tmp_path / "two", train_batch_size=1, **options)
    process = script(sys.executable, "-m", *TORCHRUN, "distill/train.py", *line)
    assert distil(data[0], tmp_path / "one", train_batch_size=2, **options) == 0
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert out.count("wrote ") == 1
    pairs = list(zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True))
    assert len(pairs) == 12
    for one, two in pairs:
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), f"step {one['step']}"


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "no"), ("muon", "no"), ("adamw", "bf16")])
@pytest.mark.slow
def test_split_parameters_follow_whole_ones(data, tmp_path, optimizer, precision):
    """FSDP with gloo: losses, gradients and the averaged model; cameras and Gaussians stay float32."""
    options = {"max_train_steps": 3, "checkpointing_steps": 3, "objective.bootstrap": 0.4}
    options |= {"optimizer": optimizer, "mixed_precision": precision}
    line = words(data[0], tmp_path / "split", train_batch_size=1, **options)
    process = Forked("tests/stand_ins/fsdp_on_cpu.py", *line, processes=2)
    assert distil(data[0], tmp_path / "whole", train_batch_size=2, **options) == 0
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    close = 1e-4 if precision == "no" else 2e-3  # bfloat16 rounds batches of one and of two apart
    for whole, split in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "split"), strict=True):
        assert split["loss"] == pytest.approx(whole["loss"], rel=close)
        assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=10 * close)
    a, b = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "split"))
    # Muon turns what rounding leaves of a faint direction into a full step, and AdamW does so in bfloat16.
    off = {n: (a[n] - b[n]).abs() for n in a}
    assert a.keys() == b.keys()
    exact = optimizer == "adamw" and precision == "no"
    assert all((d.max() if exact else d.mean()) < (1e-4 if precision == "no" else 1e-3) for d in off.values())


@pytest.mark.slow
def test_the_script_ends_with_code_2(tmp_path):
    process = script(sys.executable, "distill/train.py", "renders=[]", f"output_dir={tmp_path}")
    out, error = process.communicate(timeout=600)
    assert process.returncode == 2 and error.strip().splitlines()[-1].startswith("error: nothing to train on")
