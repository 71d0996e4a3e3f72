from __future__ import annotations

import contextlib
import json
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

from dd3g import rasterizer
from dd3g.configuration import launch, parse
from dd3g.pepd import Generator
from dd3g.rasterizer import get_ready
from distill import train
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


def test_unpacked_renders_train_alike(data, tmp_path):
    assert distil(data[0], tmp_path / "a") == 0
    assert distil(data[0], tmp_path / "b", unpacked_dir=tmp_path / "disk") == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") and list((tmp_path / "disk").glob("*.bin"))


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


def test_kernels_are_built_before_the_first_step(data, tmp_path, capsys, monkeypatch):
    """Not when the bootstrap ends; where that cannot be done, nothing has been spent yet."""
    drawn = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train, "get_ready", lambda device: drawn.append(device) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distil(data[0], tmp_path)
    assert drawn == [torch.device("cuda", 0)] and not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.setattr(train, "get_ready", lambda device: get_ready(torch.device("cpu")))
    monkeypatch.setattr(rasterizer, "rasterize", lambda *_: 1 / 0)
    assert distil(data[0], tmp_path) == 2
    assert "needs nvcc of torch's CUDA version" in capsys.readouterr().err


def test_a_model_card_says_what_it_was_trained_on(data, tmp_path):
    assert distil(data[0], tmp_path, quadruples=f"[{data[1]}]", max_train_steps=1) == 0
    card = (tmp_path / "model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: dd3g\n") and "Step 1 of 1 of `dd3g train`" in card
    assert f"- quadruples: `{data[1]}`\n- renders: `{data[0]}`\n\nThe licences" in card
    options = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert options["generator"]["width"] == 32 and options["max_train_steps"] == 1


def test_the_result_is_uploaded_when_asked_for(data, tmp_path, capsys, monkeypatch):
    assert distil(data[0], tmp_path / "a", push_to_hub="true") == 2
    assert "push_to_hub needs hub_model_id=OWNER/NAME" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(Generator, "push_to_hub", lambda self, repo: asked.append(repo) or f"hub/{repo}")
    options = {"push_to_hub": "true", "hub_model_id": "ann/chair", "max_train_steps": 1}
    assert distil(data[0], tmp_path / "b", **options) == 0
    assert asked == ["ann/chair"] and "uploaded to hub/ann/chair" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 5])
def test_a_shard_that_a_worker_finds_corrupt(data, tmp_path, capsys, budget):
    """With workers nothing is decoded at the start; the bad sample costs itself, or the run."""
    bad = damaged(data[0], tmp_path / "bad", "pixels")
    options = {"dataloader_num_workers": 1, "max_train_steps": 20, "objective.bootstrap": 1}
    options["max_bad_samples"] = budget
    if budget:
        assert distil(bad, tmp_path / "out", **options) == 0
        error = capsys.readouterr().err
        assert error.count("warning: skipped a sample: object2 in shard") == 1
        assert len(metrics(tmp_path / "out")) == 20
        return
    assert distil(bad, tmp_path / "out", **options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: object2 in shard") and "delete the shard" in error
    assert 0 < len(metrics(tmp_path / "out")) < 20


def test_an_exploding_run(data, tmp_path, capsys):
    assert distil(data[0], tmp_path, checkpointing_steps=1, learning_rate=1e30, lr_warmup_steps=0) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the ") and "checkpoint-1: resume" in error
    kept = load_file(tmp_path / "checkpoint-1/model.safetensors")
    assert len(metrics(tmp_path)) == 1 and all(t.isfinite().all() for t in kept.values())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("objective.implicit=-1", "objective.implicit must be at least 0, got -1.0"),
        ("objective.color=nan", "objective.color must be at least 0, got nan"),
        ("objective.bootstrap=1.5", "objective.bootstrap is a share: give 0 to 1, got 1.5"),
        ("objective.implicit_every=0", "objective.implicit_every must be at least 1, got 0"),
        ("start.rank=0", "start.rank must be at least 1, got 0"),
        ("start.steps=0", "start.steps must be between 1 and 1000"),
        ("start.lower_rate=2", "start.lower_rate must be between 0 and 1"),
        ("objective.implict=1", "Did you mean one of: 'implicit'"),
        ("train_batch_size=two", "train_batch_size: Value 'two' of type 'str' could not be converted"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, word, message):
    assert launch(run, DistillConfig, [f"output_dir={tmp_path / 'out'}", word]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 2\n\tlearning_rate: 1\n", "bad.yaml, line 2: "),
        ("- a\n- b\n", "bad.yaml holds no keys with values"),
        ("seed: 1\nseed: [\n", "bad.yaml, line "),
    ],
)
def test_files_that_are_no_configuration(tmp_path, capsys, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    assert launch(run, DistillConfig, ["--config", str(tmp_path / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


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


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "no"), ("muon", "no"), ("adamw", "bf16")])
@pytest.mark.slow
def test_split_parameters_follow_whole_ones(data, tmp_path, optimizer, precision):
    """FSDP with gloo: losses, gradients and the averaged model; cameras and Gaussians stay float32."""
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "objective.bootstrap": 0.2}
    options |= {"optimizer": optimizer, "mixed_precision": precision}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = words(data[0], tmp_path / "split", train_batch_size=1, **options)
    process = script(*torchrun, "tests/stand_ins/fsdp_on_cpu.py", *line)
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
