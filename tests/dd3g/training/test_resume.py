"""Resume that can be trusted: what is changed, damaged, moved or run twice."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stand_ins import line_run
from stand_ins.line_run import LINE, Points
from stand_ins.training_runs import files, fresh, metrics, torchrun

from dd3g.command.configuration import launch
from dd3g.errors import UserError
from dd3g.io.atomic import only_user
from dd3g.training import LoopConfig, data, fit
from dd3g.training.checkpoints import checkpoints
from dd3g.training.data import batches

ROOT = Path(__file__).parents[3]
LATEST = "resume_from_checkpoint=latest"


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The same as the subprocesses have."""


def line(folder, *words):
    """Exit code of a run in this process."""
    fresh()
    settings = [f"{k}={v}" for k, v in LINE.items()]
    return launch(line_run.run, LoopConfig, [*settings, f"output_dir={folder}", *map(str, words)])


SCRIPT = ROOT / "tests/stand_ins/line_run.py"


def lines(folder, *words, script=SCRIPT):
    """A run of two processes: exit code and what it said."""
    return torchrun(str(script), str(folder), *words)


def seen(folder):
    """Step -> samples that all processes saw, in order."""
    found = {}
    for path in folder.glob("seen-*.txt"):
        for row in path.read_text().splitlines():
            step, index = map(int, row.split())
            found.setdefault(step, []).append(index)
    return {step: sorted(indices) for step, indices in found.items()}


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("seed=1", r"seed 0 \(now 1\)"),
        ("train_batch_size=2", r"train_batch_size 4 \(now 2\)"),
        ("ema_decay=0.5", r"ema_decay 0.998 \(now 0.5\)"),
        ("mixed_precision=bf16", r"mixed_precision no \(now bf16\)"),
        ("learning_rate=0.1", r"learning_rate 0.05 \(now 0.1\)"),
    ],
)
def test_a_changed_option_is_named_and_needs_leave(tmp_path, capsys, word, named):
    assert line(tmp_path, "max_train_steps=3") == 0
    before = files(tmp_path)
    assert line(tmp_path, LATEST, word) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"checkpoint-3 was written with other options: {named};.*--allow-changed", error)
    assert "delet" not in error and files(tmp_path) == before
    assert line(tmp_path, LATEST, word, "--allow-changed") == 0
    assert re.search(f"changed since checkpoint-3: {named}", capsys.readouterr().err)
    assert metrics(tmp_path)[-1]["step"] == 8


def test_where_how_long_and_how_fast_may_change(tmp_path, capsys):
    assert line(tmp_path / "a", "max_train_steps=3") == 0
    (tmp_path / "a").rename(tmp_path / "b")
    free = ["max_minutes=9", "checkpointing_steps=2", "dataloader_prefetch_factor=3", "logging_steps=2"]
    assert line(tmp_path / "b", LATEST, *free) == 0
    assert "max_train_steps 3 (now 8), max_minutes 0.0 (now 9.0)" in capsys.readouterr().err


@dataclass
class FromFolders(LoopConfig):
    """A trainer that reads folders."""

    renders: list[str] = field(default_factory=list)
    init_from: str = ""


def test_a_folder_may_be_spelt_in_another_way(tmp_path, capsys, monkeypatch):
    """As long as it is the same one, also from another current folder; another one is named."""
    data, link, elsewhere = tmp_path / "home/data", tmp_path / "link", tmp_path / "home/work"
    for folder in (data / "a", data / "b", elsewhere):
        folder.mkdir(parents=True)
    link.symlink_to(data)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def trained(renders, init_from, *words):
        fresh()
        settings = [*(f"{k}={v}" for k, v in LINE.items()), f"renders={renders}", f"init_from={init_from}"]
        return launch(line_run.run, FromFolders, [*settings, f"output_dir={tmp_path}", *words])

    monkeypatch.chdir(tmp_path / "home")
    assert trained("[data/a, data/b]", "data/", "max_train_steps=3") == 0
    monkeypatch.chdir(elsewhere)
    for here in ("../data", data, link, "~/data", f"{data}/./"):
        assert trained(f"[{here}/a, {here}/b/]", here, LATEST, "max_train_steps=3") == 0
        assert "changed" not in capsys.readouterr().err
    assert trained(f"[{data}/b, {data}/a]", data, LATEST) == 2
    error = capsys.readouterr().err
    assert "other options: renders ['data/a', 'data/b'] (now [" in error and "init_from" not in error
    data.rename(tmp_path / "moved")
    assert trained(f"[{tmp_path}/moved/a, {tmp_path}/moved/b]", data, LATEST) == 2
    assert "other options: renders" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_names_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [*(f"{k}={v}" for k, v in LINE.items()), "output_dir=run"]
    assert launch(line_run.run, FromFolders, [*settings, "renders=[a]", "max_train_steps=3"]) == 0
    (checkpoint,) = checkpoints(tmp_path / "run")
    about = json.loads((checkpoint / "state.json").read_text())
    assert about.pop("folder") == str(tmp_path)
    (checkpoint / "state.json").write_text(json.dumps(about))
    fresh()
    assert launch(line_run.run, FromFolders, [*settings, f"renders=[{tmp_path}/a]", LATEST]) == 0
    assert "resumed from" in capsys.readouterr().out and metrics(tmp_path / "run")[-1]["step"] == 8


def test_the_current_folder_may_go_while_a_run_lasts(tmp_path, monkeypatch):
    """As a job's own one on a cluster; its checkpoints lie elsewhere."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    drawn = line_run.generator_for
    monkeypatch.setattr(line_run, "generator_for", lambda *of: shutil.rmtree(here, True) or drawn(*of))
    assert line(tmp_path / "run", "max_train_steps=3") == 0
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert json.loads((checkpoint / "state.json").read_text())["folder"] == str(here)


def test_a_run_says_what_it_was_started_with(tmp_path):
    assert line(tmp_path, "max_train_steps=3") == 0
    assert line(tmp_path, LATEST) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    first, second = record["sessions"]
    assert (first["from_step"], second["from_step"]) == (0, 3) and len(record["run"]) == 8
    assert first["config"]["learning_rate"] == 0.05 and second["config"]["max_train_steps"] == 8
    assert first["processes"] == 1 and first["precision"] == "no"
    assert {"commit", "command", "machine", "versions", "date"} <= set(first)
    state = json.loads((tmp_path / "checkpoint-8/state.json").read_text())
    assert state["config"]["seed"] == 0 and state["step"] == 8 and state["consumed"] == 32


@pytest.mark.parametrize("change", [{"step": 5}, {"config": None}, {"consumed": None}], ids=str)
def test_a_state_that_does_not_fit_its_folder(tmp_path, capsys, change):
    assert line(tmp_path, "max_train_steps=6") == 0
    path = tmp_path / "checkpoint-6/state.json"
    about = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in about.items() if change.get(k, 1) is not None}))
    assert line(tmp_path, LATEST) == 0
    error = capsys.readouterr().err
    assert "it is now damaged-checkpoint-6, continuing from checkpoint-3" in error
    assert ("state.json is of another step" in error) == ("step" in change)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run `whole`, and the same run `cut` after six steps."""
    folder, threads = tmp_path_factory.mktemp("trained"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        assert line("whole") == 0 and line("cut", "max_train_steps=6") == 0
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["cut", "zeros", "bomb", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    trained, tmp_path, monkeypatch, capsys, name, damage
):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cut/checkpoint-6" / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        content[middle : middle + 20] = bytes(20)
        wrong = {"cut": content[:50], "zeros": content, "bomb": pickle.dumps(Bomb(), 2)}
        path.write_bytes(wrong[damage])
    # Asked for by name, nothing else will do.
    assert line("cut", "resume_from_checkpoint=cut/checkpoint-6") == 2
    assert "checkpoint-6: damaged (" in capsys.readouterr().err
    assert line("cut", LATEST) == 0
    said = capsys.readouterr().err
    assert "it is now damaged-checkpoint-6, continuing from checkpoint-3" in said
    assert (tmp_path / "cut/damaged-checkpoint-6").is_dir() and not (tmp_path / "exploded").exists()
    assert [p.name for p in checkpoints(Path("cut"))] == ["checkpoint-6", "checkpoint-8"]
    whole, again = (load_file(tmp_path / n / "checkpoint-8/model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_without_a_whole_checkpoint_nothing_starts(tmp_path, capsys):
    assert line(tmp_path, "max_train_steps=3") == 0
    (tmp_path / "checkpoint-3/model.safetensors").write_bytes(b"")
    assert line(tmp_path, LATEST) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint-3: damaged (model.safetensors is not what was written)" in error
    assert "delet" not in error and (tmp_path / "checkpoint-3").is_dir()


def test_a_checkpoint_of_another_model(tmp_path, capsys, monkeypatch):
    assert line(tmp_path, "max_train_steps=3") == 0

    class Wider(line_run.Line):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(3, 2)

    monkeypatch.setattr(line_run, "Line", Wider)
    assert line(tmp_path, LATEST) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "another model (out.weight has shape (1, 3) there, (2, 3) here)" in error
    assert "delet" not in error


def test_a_checkpoint_of_an_earlier_version(tmp_path, capsys):
    assert line(tmp_path, "max_train_steps=3") == 0
    folder = tmp_path / "checkpoint-3"
    (folder / "state.json").unlink()
    (folder / "optimizer.bin").write_bytes(b"pickle")
    assert line(tmp_path, LATEST) == 2
    assert "checkpoint-3 is of an earlier version" in capsys.readouterr().err


def test_a_folder_that_is_in_use(tmp_path, capsys):
    with only_user(tmp_path):
        assert line(tmp_path) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"is in use by process {os.getpid()} on " in error
        assert not list(tmp_path.glob("*"))[1:] and not (tmp_path / "metrics.jsonl").exists()
    assert line(tmp_path) == 0 and len(metrics(tmp_path)) == 8
    assert not (tmp_path / ".lock").exists()


def test_a_killed_process_holds_nothing(tmp_path):
    holder = "from dd3g.io.atomic import only_user; import os\nwith only_user('.'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", holder], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (tmp_path / ".lock").exists()
    with only_user(tmp_path):
        pass


class Ranks:
    """An accelerator that is one of several processes."""

    def __init__(self, processes, rank):
        self.num_processes, self.process_index, self.device = processes, rank, torch.device("cpu")


def test_another_number_of_processes_goes_on_where_they_stopped():
    config = LoopConfig(train_batch_size=2, max_train_steps=6, gradient_accumulation_steps=2)
    samples = []
    consumed = 0
    for processes, first, steps in ((2, 0, 3), (4, 3, 2), (1, 5, 1)):
        ranks = [batches(Ranks(processes, r), Points(), config, first, consumed) for r in range(processes)]
        for _ in range(steps * 2):
            samples += [i for rank in ranks for i in next(rank).index.tolist()]
        consumed += steps * 2 * 2 * processes
        if first + steps == 6:
            assert all(next(rank, None) is None for rank in ranks)
    assert samples == list(range(consumed)) and consumed == 24 + 32 + 4


def test_there_are_no_more_workers_than_cores(monkeypatch):
    """A config for 16 cores took a minute and a half to make its first step on two."""

    class Started(Exception):
        pass

    def loader(*_, num_workers, **__):
        raise Started(num_workers)

    monkeypatch.setattr(data, "DataLoader", loader)
    for cores, local, workers in ((2, 1, 2), (64, 8, 8), (64, 1, 12), (1, 4, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        with pytest.raises(Started, match=f"^{workers}$"):
            next(batches(Ranks(1, 0), Points(), LoopConfig(dataloader_num_workers=12), 0, 0))


@pytest.mark.slow
def test_a_checkpoint_moves_between_one_process_ddp_and_fsdp(tmp_path):
    """Each goes on from the other's, with the weights that one process alone comes to."""
    run = {
        "one": lambda *words: (line(tmp_path / "moved", "train_batch_size=4", *words), ""),
        "ddp": lambda *words: lines(tmp_path / "moved", "train_batch_size=2", *words),
        "fsdp": lambda *words: lines(tmp_path / "moved", "fsdp", "train_batch_size=2", *words),
    }
    for number, kind in enumerate(("fsdp", "one", "ddp", "fsdp", "one")):
        code, said = run[kind](
            f"max_train_steps={3 * number + 3}", "lr_decay_steps=0", LATEST, "--allow-changed"
        )
        assert code == 0, said
        assert number == 0 or metrics(tmp_path / "moved")[-1]["step"] == 3 * number + 3
    assert line(tmp_path / "whole", "max_train_steps=15", "lr_decay_steps=0") == 0
    wanted = {step: list(range(4 * step, 4 * step + 4)) for step in range(15)}
    assert seen(tmp_path / "moved") == wanted == seen(tmp_path / "whole")
    for name in ("model", "average", "optimizer"):
        a, b = (load_file(tmp_path / n / f"checkpoint-15/{name}.safetensors") for n in ("whole", "moved"))
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a), name
    a, b = (torch.load(tmp_path / n / "line.pt", weights_only=True) for n in ("whole", "moved"))
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


@pytest.mark.slow
def test_the_main_process_alone_decides_where_to_go_on(tmp_path):
    """Ranks whose folder is another disk, or is stale, start where the main one does."""
    assert line(tmp_path / "run", "max_train_steps=3", "train_batch_size=8") == 0
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import os, runpy, sys\n"
        "if os.environ['RANK'] == '1': sys.argv[1] += '-of-another-node'\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    code, said = lines(tmp_path / "run", LATEST, "--allow-changed", script=script)
    assert code == 0, said
    there = seen(tmp_path / "run-of-another-node")
    assert sorted(there) == [3, 4, 5, 6, 7] and there[3] == [28, 29, 30, 31]
    assert not checkpoints(tmp_path / "run-of-another-node")


@pytest.mark.slow
@pytest.mark.parametrize("key, values", [("learning_rate", [0.1, 0.2]), ("checkpointing_steps", [2, 3])])
def test_processes_with_different_options(tmp_path, key, values):
    script = tmp_path / "different.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"sys.argv.append(f\"{key}={{{values}[int(os.environ['RANK'])]}}\")\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    code, said = lines(tmp_path / "run", script=script)
    assert code != 0
    wanted = f"error: process 1 has other options than process 0: {key} {values[0]} (now {values[1]})"
    assert wanted in said


class Some(Points):
    """So many points."""

    count = 7

    def __len__(self):
        return self.count


def test_what_another_machine_or_a_changed_folder_brings_is_named(tmp_path, capsys, monkeypatch):
    """Precision that "auto" chose, and data that grew or shrank: what was asked for is the same."""
    monkeypatch.setattr(line_run, "Points", Some)
    monkeypatch.setattr(LoopConfig, "precision", property(lambda self: "no"))
    assert line(tmp_path, "max_train_steps=3", "mixed_precision=auto") == 0
    monkeypatch.setattr(Some, "count", 5)
    monkeypatch.setattr(LoopConfig, "precision", property(lambda self: "bf16"))
    capsys.readouterr()
    assert line(tmp_path, "max_train_steps=4", "mixed_precision=auto", LATEST) == 0
    assert "precision no (now bf16), items 7 (now 5)" in capsys.readouterr().err


def test_epochs_end_alike_with_other_batches(tmp_path, monkeypatch):
    """Twice as large from the middle on: 28 samples in all, none left out and none seen twice."""
    monkeypatch.setattr(line_run, "Points", Some)
    epochs = ["num_train_epochs=4", "train_batch_size=2"]
    assert line(tmp_path, *epochs, "max_minutes=1e-9", "checkpointing_steps=1") == 0
    steps = max(line["step"] for line in metrics(tmp_path))
    assert line(tmp_path, epochs[0], "train_batch_size=4", LATEST, "--allow-changed", "max_minutes=0") == 0
    last = metrics(tmp_path)[-1]["step"]
    assert last == steps + math.ceil((28 - 2 * steps) / 4)
    assert line(tmp_path, epochs[0], "train_batch_size=4", LATEST, "max_minutes=0") == 0
    assert metrics(tmp_path)[-1]["step"] == last


def test_epochs_in_place_of_steps(monkeypatch):
    config = LoopConfig(num_train_epochs=2.5, train_batch_size=3, gradient_accumulation_steps=2)
    config.count_epochs(12)
    assert config.max_train_steps == 5
    monkeypatch.setenv("WORLD_SIZE", "4")
    config.count_epochs(12)
    assert config.max_train_steps == 2
    # Four processes go on where one stopped, or one where four did: the rest of the samples, no more.
    config.count_epochs(12, step=2, consumed=12)
    assert config.max_train_steps == 2 + 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    config.count_epochs(12, step=1, consumed=24)
    assert config.max_train_steps == 1 + 1
    config.count_epochs(12, step=2, consumed=30)
    assert config.max_train_steps == 2
    plain = LoopConfig(max_train_steps=11)
    plain.count_epochs(12)
    assert plain.max_train_steps == 11
    with pytest.raises(UserError, match="set max_train_steps"):
        fit(torch.nn.Linear(1, 1), None, None, config)
