"""Signals during a run: which wait for the step, which do not, and what they leave."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from stand_ins import line_run
from stand_ins.line import fit_line, squared
from stand_ins.line_run import LINE
from stand_ins.training_runs import ACCELERATE, PATIENCE, TORCHRUN, fresh, metrics, torchrun

from dd3g.command.configuration import launch
from dd3g.command.run import guarded
from dd3g.command.signals import Interrupted
from dd3g.training import LoopConfig, checkpoints, stopping

pytestmark = pytest.mark.usefixtures("one_thread")  # several threads would take longer here


def asked_at(step, *signals):
    """The loss, during whose call at this step the process gets signals."""

    def loss(model, batch, now):
        if now == step:
            for name in signals:
                os.kill(os.getpid(), getattr(signal, name))
        return squared(model, batch, now)

    return loss


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbs: its folder and network."""
    folder, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)
    model, _ = fit_line(folder)
    torch.set_num_threads(threads)
    return folder, model


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 0)]
)
def test_a_signal_ends_the_run_with_a_checkpoint_of_its_step(whole, tmp_path, name, code):
    undisturbed, model = whole
    handler = signal.getsignal(getattr(signal, name))
    assert guarded(lambda: fit_line(tmp_path / "cut", loss=asked_at(4, name)) and None) == code
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "cut")] == ["checkpoint-3", "checkpoint-5"]
    assert [line["step"] for line in metrics(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    assert signal.getsignal(getattr(signal, name)) == handler
    again, _ = fit_line(tmp_path / "cut", resume_from_checkpoint="latest")
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_a_second_signal_does_not_wait_for_the_step(tmp_path):
    with pytest.raises(Interrupted, match="SIGINT"):
        fit_line(tmp_path, loss=asked_at(4, "SIGTERM", "SIGINT"))
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-3"]


@pytest.mark.parametrize(
    "names", [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGTERM", "SIGUSR1", "SIGTERM")], ids="-".join
)
def test_an_echo_waits_for_the_step(tmp_path, names):
    """A scheduler signals all processes of a job, and the launcher among them hands it on to the others."""
    with pytest.raises(Interrupted, match=names[0]):
        fit_line(tmp_path, loss=asked_at(4, *names))
    assert checkpoints.checkpoints(tmp_path)[-1].name == "checkpoint-5"


def test_the_same_signal_from_an_impatient_user(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "ECHO", 0.0)
    with pytest.raises(Interrupted, match="SIGINT"):
        fit_line(tmp_path, loss=asked_at(4, "SIGINT", "SIGINT"))
    assert checkpoints.checkpoints(tmp_path)[-1].name == "checkpoint-3"


def test_the_time_is_up_is_no_reason_for_haste(tmp_path, monkeypatch):
    """Whenever it is said again."""
    monkeypatch.setattr(stopping, "ECHO", 0.0)
    with pytest.raises(Interrupted) as stopped:
        fit_line(tmp_path, loss=asked_at(4, "SIGUSR1", "SIGUSR1", "SIGUSR1"))
    assert stopped.value.code == 0 and checkpoints.checkpoints(tmp_path)[-1].name == "checkpoint-5"


def test_the_time_is_up_before_the_run_has_begun(tmp_path):
    """While a teacher is loaded, say: the job is queued again all the same."""
    before = signal.getsignal(signal.SIGUSR1)

    def run(config):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise AssertionError("the signal did not end it")

    assert launch(run, LoopConfig, [f"output_dir={tmp_path / 'out'}"]) == 0
    assert signal.getsignal(signal.SIGUSR1) == before and not (tmp_path / "out").exists()


def test_nohup_is_respected(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit_line(tmp_path, loss=asked_at(4, "SIGHUP"))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(metrics(tmp_path)) == 8


def test_a_signal_in_the_last_step_leaves_a_finished_run(tmp_path):
    fit_line(tmp_path, loss=asked_at(7, "SIGTERM"))
    assert (tmp_path / "model/line.pt").is_file() and len(metrics(tmp_path)) == 8


@pytest.mark.parametrize(("signals", "kept"), [(["SIGTERM"], 6), (["SIGTERM", "SIGHUP"], 3)])
def test_a_signal_in_the_middle_of_a_checkpoint(whole, tmp_path, monkeypatch, signals, kept):
    """One is noted, and the checkpoint is finished first; a second one leaves the last whole checkpoint."""
    save = checkpoints.save_file

    def interrupted(tensors, path, metadata):
        save(tensors, path, metadata)
        if path.name == "model.safetensors" and checkpoints.checkpoints(path.parent.parent):
            for name in signals:
                os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", interrupted)
        with pytest.raises(Interrupted):
            fit_line(tmp_path / "cut")
    assert checkpoints.checkpoints(tmp_path / "cut")[-1].name == f"checkpoint-{kept}"
    again, _ = fit_line(tmp_path / "cut", resume_from_checkpoint="latest")
    assert all(map(torch.equal, whole[1].parameters(), again.parameters()))
    assert not (tmp_path / "cut" / checkpoints.SCRATCH).exists()


SIGNALLED = """
import os, signal, sys, time
from stand_ins import line_run

class Points(line_run.Points):
    def __getitem__(self, index):
        if index == 18:  # of the second process, for its fifth step
            os.kill({target}, signal.{name})
            time.sleep({pause})
        return super().__getitem__(index)

line_run.Points = Points
sys.exit(line_run.main())
"""


TARGETS = {"one": "os.getpid()", "launcher": "os.getppid()"}


def signalled(folder, name, target, split, *words, launcher=TORCHRUN):
    """A line in the processes of a launcher, the last of which sends a signal: exit code and words."""
    script = folder / "signalled.py"
    pause = 5 if target == "launcher" else 0  # in which it hands the signal on
    script.write_text(SIGNALLED.format(target=TARGETS[target], name=name, pause=pause))
    options = {"launcher": launcher} if target == "launcher" and not split else {}
    return torchrun(str(script), str(folder / "cut"), *split, "train_batch_size=2", *words, **options)


@pytest.mark.slow
@pytest.mark.parametrize("split", [[], ["fsdp"]], ids=["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("name", "target", "code"),
    [("SIGTERM", "one", 1), ("SIGUSR1", "one", 0), ("SIGKILL", "one", 1), ("SIGTERM", "launcher", 1)],
)
def test_a_signal_to_one_of_two_processes(tmp_path, name, target, code, split):
    """All leave at one step, and one process alone goes on with the curve that nothing has disturbed."""
    found, said = signalled(tmp_path, name, target, split)
    assert found == code, said
    last = checkpoints.checkpoints(tmp_path / "cut")[-1].name
    assert last == ("checkpoint-3" if name == "SIGKILL" else "checkpoint-4")
    goes_on(tmp_path)


def goes_on(folder):
    again = ["train_batch_size=4", "resume_from_checkpoint=latest", "allow_changed=true"]
    for name, words in (("whole", []), ("cut", again)):
        fresh()
        settings = [f"{k}={v}" for k, v in LINE.items()]
        assert launch(line_run.run, LoopConfig, [*settings, f"output_dir={folder / name}", *words]) == 0
    whole, cut = (metrics(folder / name) for name in ("whole", "cut"))
    assert [line["step"] for line in cut] == [line["step"] for line in whole] == list(range(1, 9))
    for a, b in zip(whole, cut, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    a, b = (load_file(folder / n / "checkpoint-8/model.safetensors") for n in ("whole", "cut"))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "name"),
    [(TORCHRUN, "SIGUSR1"), (TORCHRUN, "SIGKILL"), (ACCELERATE, "SIGUSR1"), (ACCELERATE, "SIGTERM")],
    ids=lambda value: value if isinstance(value, str) else value[0].partition(".")[0],
)
def test_processes_do_not_outlive_their_launcher(tmp_path, launcher, name):
    """They would hold the folder, and the machine, with nobody to stop them."""
    code, said = signalled(
        tmp_path, name, "launcher", [], "max_train_steps=1000000", "lr_decay_steps=0", launcher=launcher
    )
    assert code == -getattr(signal, name), said
    deadline = time.monotonic() + PATIENCE
    while (tmp_path / "cut/.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not (tmp_path / "cut/.lock").exists()
    last = int(checkpoints.checkpoints(tmp_path / "cut")[-1].name.removeprefix("checkpoint-"))
    assert 4 <= last == metrics(tmp_path / "cut")[-1]["step"]


def test_a_launcher_that_ended_while_python_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping.os, "getppid", lambda: 1)
    monkeypatch.setattr(stopping, "PARENT", 1)
    (tmp_path / "1").mkdir()
    command = tmp_path / "1/cmdline"
    command.write_bytes(b"/sbin/init\0")
    assert not stopping.launcher_has_ended(tmp_path)  # a shell's, under nohup
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_FULLGRAPH", "False")
    assert stopping.launcher_has_ended(tmp_path) and not stopping.launcher_has_ended(tmp_path / "none")
    command.write_bytes(b"/usr/bin/python3\0-m\0torch.distributed.run\0")  # of a container
    assert not stopping.launcher_has_ended(tmp_path)
    monkeypatch.setattr(stopping, "PARENT", 7)
    with pytest.raises(Interrupted, match="SIGHUP"):
        fit_line(tmp_path / "run")
    assert not (tmp_path / "run").exists()
