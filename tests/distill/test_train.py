from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stand_ins.tiny_objects import write_quadruples, write_renders
from stand_ins.training_runs import files, fresh, metrics

from dd3g.configuration import launch, parse
from dd3g.pepd import Generator
from distill.train import DistillConfig, run, training_samples
from distill.train_teacher import TeacherConfig
from distill.train_teacher import run as run_teacher

ROOT = Path(__file__).parents[2]
GENERATOR = {
    "size": 32, "latent_shape": "[4,64,8,8]", "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8,
    "fine": 8, "mid": 16, "head_hidden": 8,
}  # fmt: skip
TEACHER = {"size": 32, "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8, "fine": 8, "mid": 16}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The same as the subprocesses have: another number may round differently."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_renders(folder / "renders"), write_quadruples(folder / "quadruples")


def words(renders, output, section="generator", shape=GENERATOR, **options):
    """Command line of a small run."""
    settings = {
        "renders": f"[{renders}]", "output_dir": output, "train_batch_size": 2, "max_train_steps": 4,
        "checkpointing_steps": 2, "validation_steps": 100, "lr_warmup_steps": 2, "lr_decay_steps": 2,
        "report_to": "none", "mixed_precision": "no",
    }  # fmt: skip
    settings |= {f"{section}.{k}": v for k, v in shape.items()} | options
    return [f"{k}={v}" for k, v in settings.items()]


def distil(renders, output, **options):
    fresh()
    return launch(run, DistillConfig, words(renders, output, **options))


def test_everything_at_once(data, tmp_path, capsys):
    """Renders, quadruples, verification, sheets, TensorBoard, bfloat16; then the same folder again."""
    renders, quadruples = data
    options = {
        "quadruples": f"[{quadruples}]", "quadruples_start": 0.25, "validation_steps": 2,
        "validation_renders": renders,
        "report_to": "tensorboard", "mixed_precision": "bf16", "objective.implicit": 0.05,
        "pretrained_teacher_model": "analytic", "objective.bootstrap": 0.3,
    }  # fmt: skip
    assert distil(renders, tmp_path, **options) == 0
    assert capsys.readouterr().out.strip().endswith(f"wrote {tmp_path}/model")
    lines = metrics(tmp_path)
    assert len(lines) == 4 and "color" not in lines[0] and {"color", "implicit", "structure"} <= set(lines[3])
    for line in lines:
        parts = [v for k, v in line.items() if k not in {"step", "loss", "grad_norm", "lr"}]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-4)
    assert list(tmp_path.glob("logs/**/events.out.tfevents*"))
    assert sorted(p.name for p in tmp_path.glob("sheet-*.png")) == ["sheet-000002.png", "sheet-000004.png"]
    generator = Generator.from_pretrained(tmp_path / "model")
    assert generator.generate(torch.rand(4, 32, 32)).means.isfinite().all()
    assert distil(renders, tmp_path, **options) == 2 and "--resume latest" in capsys.readouterr().err
    assert distil(renders, tmp_path / "next", init_from=tmp_path / "model", max_train_steps=1) == 0


ABLATIONS = {
    "phase 1 off": {"generator.depth": 0},
    "one-shot decoding": {"generator.order": "one_shot"},
    "order swapped": {"generator.order": "swapped"},
    "no copied tokens": {"generator.copy_tokens": "false"},
    "no noise": {"generator.use_noise": "false"},
    "explicit supervision only": {"objective.implicit": 0},
    "literal verification": {"objective.implicit_form": "literal"},
    "score verification": {"objective.implicit_form": "score"},
    "constant weight": {"objective.ramp": "constant"},
}


def test_each_ablation_is_one_switch(data, tmp_path):
    renders, quadruples = data
    options = {
        "quadruples": f"[{quadruples}]", "quadruples_start": 0, "objective.bootstrap": 0,
        "max_train_steps": 1, "objective.implicit": 0.05, "pretrained_teacher_model": "analytic",
    }  # fmt: skip
    losses = []
    for name, switch in {"whole": {}, **ABLATIONS}.items():
        assert distil(renders, tmp_path / name, **options | switch) == 0, name
        (line,) = metrics(tmp_path / name)
        assert ("implicit" in line) == ("objective.implicit" not in switch), name
        losses.append(line["loss"])
    assert all(map(math.isfinite, losses)) and len(set(losses)) == len(losses)


def test_the_teacher_trains(data, tmp_path):
    fresh()
    line = words(data[0], tmp_path, "teacher", TEACHER, validation_steps=4, validation_renders=data[0])
    assert launch(run_teacher, TeacherConfig, line) == 0
    assert len(metrics(tmp_path)) == 4 and (tmp_path / "sheet-000004.png").exists()
    assert (tmp_path / "model/model.safetensors").exists()


def damaged(folder, destination, kind):
    destination.mkdir()
    path = next(folder.glob("*.tar"))
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: len(content) // 2]
    else:  # the last sample's pictures
        place = content.rindex(b"\x89PNG") + 60
        content[place : place + 40] = bytes(40)
    (destination / path.name).write_bytes(content)
    return destination


@pytest.mark.parametrize("kind", ["cut", "pixels"])
@pytest.mark.parametrize("which", [0, 1], ids=["renders", "quadruples"])
def test_corrupt_shards(data, tmp_path, capsys, which, kind):
    bad = damaged(data[which], tmp_path / "bad", kind)
    options = {"quadruples": f"[{bad}]"} if which else {}
    assert distil(data[0] if which else bad, tmp_path / "out", **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "delete" in error and ".tar" in error


@pytest.mark.slow
def test_a_shard_that_a_worker_finds_corrupt(data, tmp_path, capsys):
    """With workers nothing is decoded at the start; the run stops when the bad sample's turn comes."""
    bad = damaged(data[0], tmp_path / "bad", "pixels")
    options = {"dataloader_num_workers": 1, "max_train_steps": 20, "objective.bootstrap": 1}
    assert distil(bad, tmp_path / "out", **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "object2 in shard" in error and "delete the shard" in error
    assert 0 < len(metrics(tmp_path / "out")) < 20


def test_an_exploding_run(data, tmp_path, capsys):
    assert distil(data[0], tmp_path, checkpointing_steps=1, learning_rate=1e30, lr_warmup_steps=0) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the ") and error.count("\n") == 1 and "checkpoint-1: resume" in error
    kept = load_file(tmp_path / "checkpoint-1/model.safetensors")
    assert len(metrics(tmp_path)) == 1 and all(t.isfinite().all() for t in kept.values())


def test_nothing_to_train_on(tmp_path, capsys):
    line = [w for w in words("x", tmp_path) if not w.startswith("renders")]
    for more, message in (
        ([], "set quadruples=[FOLDER], renders=[FOLDER], or both"),
        (["renders=[]"], "set quadruples"),
        ([f"renders=[{tmp_path}/none]"], "none"),
        (["objective.implicit=1"], "pretrained_teacher_model"),
        (
            ["objective.implicit=1", "objective.implicit_every=0", "pretrained_teacher_model=analytic"],
            "implicit_every must be at least 1, got 0",
        ),
        (["init_from=nowhere"], "nowhere"),
    ):
        fresh()
        assert launch(run, DistillConfig, line + more) == 2
        assert message in capsys.readouterr().err


def test_data_of_another_size(data, tmp_path, capsys):
    assert distil(data[0], tmp_path, **{"generator.size": 64, "generator.latent_shape": "[4,64,16,16]"}) == 2
    assert "pictures of 32 pixels" in capsys.readouterr().err


def test_pictures_for_the_sheet_of_another_size(data, tmp_path, capsys):
    """They are refused before the first step, not when the first sheet is due."""
    large = write_renders(tmp_path / "large", count=1, size=64)
    assert distil(data[0], tmp_path / "out", validation_renders=large) == 2
    assert "validation_renders has 4 pictures of 64 pixels" in capsys.readouterr().err
    line = words(data[0], tmp_path / "out", "teacher", TEACHER, validation_renders=large)
    assert launch(run_teacher, TeacherConfig, line) == 2
    assert "validation_renders has 4 pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_verifier_of_another_size(tmp_path, capsys):
    """It is refused before any data is read."""
    shape = {"generator.size": 64, "generator.latent_shape": "[4,64,16,16]"}
    verifier = {"objective.implicit": 0.1, "pretrained_teacher_model": "analytic"}
    assert distil("nowhere", tmp_path, **shape, **verifier) == 2
    assert "analytic sees pictures of 32 pixels, the generator of 64" in capsys.readouterr().err


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(data, tmp_path, optimizer):
    options = {"max_train_steps": 10, "checkpointing_steps": 3, "objective.bootstrap": 0.2}
    options["optimizer"] = optimizer
    assert distil(data[0], tmp_path / "whole", **options) == 0
    line = [
        "distill/train.py",
        *words(data[0], tmp_path / "cut", **options),
        "--resume_from_checkpoint",
        "latest",
    ]
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]
    target = random.SystemRandom().randint(1, 8)
    process = script(sys.executable, *accelerate, *line, start_new_session=True)
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
        "max_train_steps": 20, "checkpointing_steps": 20, "objective.bootstrap": 0.2,
        "objective.implicit": 0.05, "pretrained_teacher_model": "analytic", "learning_rate": 1e-3,
    }  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = script(
        *torchrun, "distill/train.py", *words(data[0], tmp_path / "two", train_batch_size=1, **options)
    )
    assert distil(data[0], tmp_path / "one", train_batch_size=2, **options) == 0
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert out.count("wrote ") == 1
    pairs = list(zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True))
    assert len(pairs) == 20
    for one, two in pairs:
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), f"step {one['step']}"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.slow
def test_split_parameters_follow_whole_ones(data, tmp_path, optimizer):
    """FSDP with gloo: losses, gradients and the averaged model."""
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "objective.bootstrap": 0.2}
    options["optimizer"] = optimizer
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = words(data[0], tmp_path / "split", train_batch_size=1, **options)
    process = script(*torchrun, "tests/stand_ins/fsdp_on_cpu.py", *line)
    assert distil(data[0], tmp_path / "whole", train_batch_size=2, **options) == 0
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    for whole, split in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "split"), strict=True):
        assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
    a, b = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "split"))
    # Muon turns what rounding leaves of a faint direction into a full step.
    off = {n: (a[n] - b[n]).abs() for n in a}
    assert a.keys() == b.keys()
    assert all((d.max() if optimizer == "adamw" else d.mean()) < 1e-4 for d in off.values())


@pytest.mark.slow
def test_the_script_ends_with_code_2(tmp_path):
    process = script(sys.executable, "distill/train.py", "renders=[]", f"output_dir={tmp_path}")
    out, error = process.communicate(timeout=600)
    assert process.returncode == 2 and error.strip().splitlines()[-1].startswith("error: nothing to train on")
