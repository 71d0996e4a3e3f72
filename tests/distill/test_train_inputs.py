"""Options, files and shards that no training can start from, or that spoil it."""

from __future__ import annotations

from functools import partial

import pytest
from safetensors.torch import load_file
from stand_ins.distilled import TEACHER, distil, words
from stand_ins.published_teachers import write_imagedream, write_zero123plus
from stand_ins.tiny_objects import write_renders
from stand_ins.training_runs import fresh, metrics

from dd3g.command.configuration import launch
from distill.train import DistillConfig, run
from distill.train_teacher import TeacherConfig
from distill.train_teacher import run as run_teacher

# The same as the subprocesses have: another number may round differently.
pytestmark = pytest.mark.usefixtures("one_thread")


def damaged(folder, destination, kind, last=True):
    destination.mkdir()
    path = next(folder.glob("*.tar"))
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: len(content) // 2]
    else:  # the last sample's pictures, or the first's
        place = (content.rindex if last else content.index)(b"\x89PNG") + 60
        content[place : place + 40] = bytes(40)
    (destination / path.name).write_bytes(content)
    return destination


@pytest.mark.parametrize("which", [0, 1], ids=["renders", "quadruples"])
def test_shards_that_were_cut_short(data, tmp_path, capsys, which):
    bad = damaged(data[which], tmp_path / "bad", "cut")
    options = {"quadruples": f"[{bad}]"} if which else {}
    assert distil(data[0] if which else bad, tmp_path / "out", **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "delete" in error and ".tar" in error


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_damaged_quadruple_costs_itself(data, tmp_path, capsys, last):
    """Also one that options would be compared with at the start."""
    bad = damaged(data[1], tmp_path / "bad", "pixels", last)
    line = [w for w in words("", tmp_path / "out", quadruples=f"[{bad}]") if not w.startswith("renders=")]
    fresh()
    assert launch(run, DistillConfig, [*line, "max_train_steps=12", "objective.bootstrap=1"]) == 0
    name = "q2" if last else "q0"
    assert capsys.readouterr().err.count(f"warning: skipped a sample: {name} in shard {bad}") == 1
    assert len(metrics(tmp_path / "out")) == 12


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("budget", [0, 5])
def test_a_damaged_render_costs_itself_or_the_run(data, tmp_path, capsys, forked_workers, budget, workers):
    bad = damaged(data[0], tmp_path / "bad", "pixels")
    options = {"dataloader_num_workers": workers, "max_train_steps": 12, "objective.bootstrap": 1}
    options["max_bad_samples"] = budget
    if budget:
        assert distil(bad, tmp_path / "out", **options) == 0
        error = capsys.readouterr().err
        assert error.count("warning: skipped a sample: object2 in shard") == 1
        assert len(metrics(tmp_path / "out")) == 12
        return
    assert distil(bad, tmp_path / "out", **options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: object2 in shard") and "delete the shard" in error
    assert 0 < len(metrics(tmp_path / "out")) < 12


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
        ("objective.bootstrap=1.5", "objective.bootstrap must be between 0 and 1, got 1.5"),
        ("objective.implicit_every=0", "objective.implicit_every must be at least 1, got 0"),
        ("start.rank=0", "start.rank must be at least 1, got 0"),
        ("start.steps=0", "start.steps must be between 1 and 1000"),
        ("start.lower_rate=2", "start.lower_rate must be between 0 and 1"),
        ("objective.implict=1", "Did you mean one of: 'implicit'"),
        ("renders=folder", "renders is a list: give renders=[A,B]"),
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
        ("- a\n- b\n", "bad.yaml: it holds no keys with values"),
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


@pytest.mark.parametrize("kind", ["mvdream", "zero123plus-v1.2"])
def test_a_verifier_that_cannot_verify(tmp_path, capsys, kind):
    """At the start, not at the end of the bootstrap: one draws captions, the other has cameras of its own."""
    write = write_zero123plus if kind.startswith("zero") else partial(write_imagedream, ip_dim=0)
    verifier = {"objective.implicit": 0.1, "pretrained_teacher_model": write(tmp_path / kind)}
    assert distil("nowhere", tmp_path / "out", **verifier) == 2
    assert f"{kind} cannot verify" in capsys.readouterr().err
