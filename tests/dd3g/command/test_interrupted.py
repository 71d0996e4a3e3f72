"""What is left, and what is said, when a run is ended from outside, and what the next one removes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins.infer_command import ROOT, StubGenerator, picture, run, written

from dd3g import load_image
from dd3g.__main__ import main
from dd3g.command.run import explain
from dd3g.command.signals import Interrupted, signals_stop, signals_wait
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import TEMPORARY, remove_leftovers, scratch_folder, temporary_folder
from dd3g.io.splats import save

# The real command, with a generator that takes its time.
SLOW = """
import sys, time, dd3g.pepd
from stand_ins.infer_command import StubGenerator
from dd3g.__main__ import main
draw = StubGenerator.generate
def generate(self, picture, seed=0, **how):
    if seed:
        print("waits", file=sys.stderr, flush=True)
        time.sleep(600)
    return draw(self, picture, seed)
StubGenerator.generate = generate
dd3g.pepd.Generator = StubGenerator
sys.exit(main(sys.argv[1:]))
"""


def start(*words):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "DD3G_TRACEBACK": ""}
    command = [sys.executable, "-c", SLOW, "infer", *words]
    return subprocess.Popen(
        command, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True,
        preexec_fn=usual_signals,
    )  # fmt: skip


def usual_signals():
    """As in a terminal: nohup and shells without job control have some ignored, which children inherit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_leaves_whole_results_and_a_report(here, stub, name):
    process = start(str(picture("a.png")), "--samples", "3", "--json")
    assert process.stderr.readline() == "waits\n"
    # The first sample is final; the second is under way.
    assert written() == ["a-0.ply", "a.matte.png"] and len(Gaussians.load("out/a-0.ply")) == 20
    process.send_signal(getattr(signal, name))
    out, error = process.communicate(timeout=500)
    assert written() == ["a-0.ply", "a.matte.png"]
    if name == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == 128 + getattr(signal, name)
    report = json.loads(out)
    assert report["error"] == f"stopped by {name} after 1 pictures: all files reported are complete"
    (entry,) = report["pictures"]
    assert entry["samples"] == [{"seed": 0, "gaussians": 20, "files": ["out/a-0.ply"]}]
    assert error == f"error: {report['error']}\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_signal_between_files_that_move_waits_for_the_report(here, stub, monkeypatch, name, count):
    """It comes after the first of four files, or the last; what lies there is what the report names."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # which nohup has ignored
    replace, moved = Path.replace, []

    def move(path, target):
        result = replace(path, target)
        moved.append(target)
        if len(moved) == count:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(Path, "replace", move)
    try:
        result = run(picture("a.png"), "--samples", 2, "--format", "ply,spz,glb", "--json", code=128 + number)
    finally:
        signal.signal(number, before)
    report = json.loads(result.stdout)
    (entry,) = report["pictures"]
    named = [*entry["samples"][0]["files"], entry["matte"]]
    assert sorted(named) == sorted(f"out/{name}" for name in written())
    assert written() == ["a-0.glb", "a-0.ply", "a-0.spz", "a.matte.png"] and len(entry["samples"]) == 1
    assert report["error"].startswith(f"stopped by {name} after 1 pictures")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    "words", ["convert a.ply out/b.spz", "view a.ply", "turntable a.ply -o out/t.gif --frames 2 --size 16"]
)
def test_a_signal_leaves_no_half_file_of_any_command(here, monkeypatch, capsys, words, name):
    save(StubGenerator().generate(load_image(picture("a.png"))), "a.ply")
    number, replace = getattr(signal, name), os.replace

    def stopped(part, path):
        if Path(path).parent != Path("out"):
            return replace(part, path)  # a kernel that numba keeps
        assert len(written()) == 1  # the file is written, under another name
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(os, "replace", stopped)
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert main([*words.split(), "--json"]) == 128 + number
    finally:
        signal.signal(number, before)
    assert written() == []
    shown = capsys.readouterr()
    assert shown.err == "stopped: run the same command again to resume\n"
    assert json.loads(shown.out) == {"error": shown.err.strip()}


def test_what_a_killed_run_left_goes_with_the_next(here, stub):
    Path("out").mkdir()
    code = "from pathlib import Path; import os, time; from dd3g.io.atomic import temporary_folder\n"
    code += "with temporary_folder(Path('out')) as f:\n"
    code += "  (f / 'half.ply').touch(); print(f, flush=True); time.sleep(600)"
    living, killed = (
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=-1, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        for _ in range(2)
    )
    folders = [Path(p.stdout.readline().strip()) for p in (living, killed)]
    killed.kill()
    killed.wait()
    hour_ago = time.time() - 3600
    for folder in folders:
        assert folder.name.startswith(TEMPORARY) and (folder / "half.ply").is_file()
        os.utime(folder, (hour_ago, hour_ago))
    run(picture("a.png"))
    assert written() == sorted(["a.matte.png", "a.ply", folders[0].name, f"{folders[0].name}/half.ply"])
    living.kill()
    living.wait()
    run("a.png")
    assert written() == ["a.matte.png", "a.ply"]
    with temporary_folder(Path("out")) as young:
        remove_leftovers(Path("out"))
        assert young.is_dir()


@pytest.mark.parametrize(
    "words", ["convert a.ply out/b.spz", "view a.ply --no-open", "turntable a.ply --frames 2 --size 16"]
)
def test_what_a_killed_command_left_goes_with_the_next(here, words):
    save(StubGenerator().generate(load_image(picture("a.png"))), "a.ply")
    done = subprocess.Popen(["true"])
    done.wait()
    Path("out").mkdir()
    left = [Path(f"out/.b.{number}-0123abcd.spz") for number in (done.pid, 10**30, os.getpid(), done.pid)]
    left[3] = left[3].with_suffix(".ply")
    for path in left:
        path.touch()
        if path != left[3]:
            os.utime(path, (time.time() - 3600,) * 2)
    assert main(words.split()) == 0
    # A living process writes one, and another may be of another machine.
    assert [path.is_file() for path in left] == [False, False, True, True]


def test_what_killed_processes_left_among_temporary_files_goes_with_the_next(here, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(here / "tmp"))
    left = here / "tmp" / f"{TEMPORARY}left"
    left.mkdir(parents=True)
    (left / "object.ply").touch()
    os.utime(left, (time.time() - 3600,) * 2)
    with scratch_folder() as folder:
        assert [*(here / "tmp").iterdir()] == [folder]
    assert not any((here / "tmp").iterdir())


def test_a_signal_that_is_lost_in_a_callback_still_ends_the_work():
    """As in one of numba's compiler, after which an error of its own comes."""
    with pytest.raises(Interrupted) as stop, signals_stop():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        explain(RuntimeError("no compiled object yet"), Path(), "less")
    assert stop.value.code == 143
    with pytest.raises(Interrupted), signals_stop():
        with signals_wait(), signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done = True
        pytest.fail("the signal was lost")
    assert done
    with signals_stop():
        assert (
            explain(MemoryError(), Path(), "less") == "not enough memory: close other programs, or give less"
        )
