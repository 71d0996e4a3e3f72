"""What is left, and what is said, when a run is ended from outside or a stream fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stand_ins.infer_command import ROOT, StubGenerator, picture, run, written

from dd3g import load_image
from dd3g.__main__ import main
from dd3g.command import explain
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import TEMPORARY, remove_leftovers, scratch_folder, temporary_folder
from dd3g.io.splats import save
from dd3g.signals import Interrupted, signals_stop, signals_wait

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


def test_a_result_is_final_when_the_next_one_fails(here, stub, monkeypatch):
    draw = stub.generate

    def generate(self, picture, seed=0, **how):
        if seed == 2:
            assert written() == ["a-0.ply", "a-1.ply", "a.matte.png"]
            raise MemoryError
        return draw(self, picture, seed)

    monkeypatch.setattr(stub, "generate", generate)
    result = run(picture("a.png"), "--samples", 4, "--json", code=2)
    report = json.loads(result.stdout)
    assert [s["seed"] for s in report["pictures"][0]["samples"]] == [0, 1]
    assert report["failed"][0]["error"].startswith("not enough memory")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    "words", ["convert a.ply out/b.spz", "view a.ply", "turntable a.ply -o out/t.gif --frames 2 --size 16"]
)
def test_a_signal_leaves_no_half_file_of_any_command(here, monkeypatch, capsys, words, name):
    save(StubGenerator().generate(load_image(picture("a.png"))), "a.ply")
    number = getattr(signal, name)

    def stopped(*_):
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


# --- streams and homes -------------------------------------------------------------------------------------


def through_shell(words: str, **environment: str):
    quick = SLOW.replace("if seed", "if False")
    Path("quick.py").write_text(quick)
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PY": sys.executable, **environment}
    return subprocess.run(
        ["sh", "-c", words], env=os.environ | environment, capture_output=True, encoding="latin-1"
    )


@pytest.mark.slow
def test_streams_that_take_no_more(here):
    picture("椅子.png")
    full = through_shell('"$PY" quick.py infer *.png > /dev/full')
    assert (
        full.returncode == 2 and full.stderr == "error: cannot print the report (No space left on device)\n"
    )
    assert written() == ["椅子.matte.png", "椅子.ply"]
    closed = through_shell('"$PY" quick.py infer *.png -o 2 | true')
    assert closed.stderr == ""
    helped = through_shell('"$PY" quick.py --help > /dev/full')
    assert helped.stderr.startswith("error: cannot print the help") and helped.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_names_that_a_stream_cannot_show(here, encoding):
    picture("椅子é.png")
    made = through_shell('"$PY" quick.py infer *.png nothere-椅.png', PYTHONIOENCODING=encoding)
    assert made.returncode == 1 and made.stdout.startswith("wrote out/\\u6905\\u5b50")
    assert made.stderr == "error: nothere-\\u6905.png does not exist: check the path\n"


@pytest.mark.slow
def test_python_without_docstrings(here):
    picture("a.png")
    made = through_shell('"$PY" -OO quick.py infer a.png && "$PY" -OO quick.py models list')
    assert made.returncode == 0 and made.stderr == "" and "u2netp" in made.stdout


def test_a_user_without_a_home(monkeypatch, tmp_path):
    import pwd

    from dd3g.models import models_folder

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "DD3G_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = models_folder()
    assert folder == tmp_path / f"cache-{os.getuid()}/dd3g/models"
    assert folder.parents[1].stat().st_mode & 0o777 == 0o700 and models_folder() == folder
    folder.parents[1].chmod(0o777)  # where anybody may have put code
    assert models_folder().parents[1] not in (folder.parents[1], tmp_path)


def test_libraries_of_a_user_without_a_home_keep_no_caches_where_the_user_is(here):
    code = (
        "import pwd; pwd.getpwuid = {}.__getitem__; import os, dd3g; print(os.environ.get('XDG_CACHE_HOME'))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(here)}

    def told(**more):
        words = [sys.executable, "-c", code]
        return subprocess.run(words, env=environment | more, capture_output=True, text=True).stdout.strip()

    assert told() == str(here / f"cache-{os.getuid()}") and told(XDG_CACHE_HOME="/x") == "/x"
    assert told(HOME="/y") == "None"


# Numba where it may write neither beside a kernel's file nor in a home.
NO_CACHE = """
import sys
from numba.core import caching
kept = [c for c in caching.CacheImpl._locator_classes if "UserProvided" in c.__name__]
caching.CacheImpl._locator_classes = kept
from dd3g.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_every_kernel_can_be_defined_without_a_cache():
    files = [p for room in ("dd3g", "data_gen", "distill", "tools") for p in (ROOT / room).rglob("*.py")]
    kernels = [p.relative_to(ROOT) for p in files if "@njit" in p.read_text("utf-8")]
    names = [".".join(path.with_suffix("").parts) for path in kernels]
    assert {"dd3g.meshes.normals", "dd3g.pepd.surface_kernels", "data_gen.meshes.volumes"} <= set(names)
    head = NO_CACHE.partition("from dd3g")[0]
    for name in names:  # whichever is the first
        code = f"{head}\nimport {name}"
        made = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert made.returncode == 0, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["convert a.ply b.spz", "convert a.ply b.compressed.ply", "convert c.spz b.ply", "view a.ply"]
)
def test_a_user_who_can_keep_no_kernels(here, words):
    gaussians = StubGenerator().generate(load_image(picture("a.png")))
    save(gaussians, "a.ply")
    save(gaussians, "c.spz")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": ""}
    command = [sys.executable, "-c", NO_CACHE, *words.split(), *["--no-open"] * words.startswith("view")]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert made.stderr == "" and made.returncode == 0


@pytest.mark.parametrize("place", ["matte", "save", "temporary"])
def test_an_error_of_any_kind_loses_one_picture(here, stub, monkeypatch, place):
    """Outside of decoding as well: in the matting model, in a writer, for temporary files."""
    import tempfile

    import dd3g.picture
    from dd3g.io import splats

    for name in ("a", "b", "c"):
        picture(f"in/{name}.png", side=200 if name == "b" else 96)

    class Odd(Exception):
        pass

    if place == "matte":

        def cut(image, *rest):
            if image.width == 200:
                raise Odd("a model\nfell over")
            return whole(image, *rest)

        whole = dd3g.picture.cut_out
        monkeypatch.setattr(dd3g.picture, "cut_out", cut)
        message = "in/b.png: unexpected Odd: a model (test_interrupted.py, line "
    elif place == "save":
        save = splats.save

        def refuse(gaussians, path, *how, **more):
            if path.name == "b.spz":
                raise Odd
            return save(gaussians, path, *how, **more)

        monkeypatch.setattr(splats, "save", refuse)
        message = "in/b.png: unexpected Odd: Odd (test_interrupted.py, line "
    else:

        def encode(*_):
            raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

        monkeypatch.setattr(tempfile, "gettempdir", encode)
        monkeypatch.setattr(splats.packed, "encode_spz", encode)
        message = "error: in/b.png: cannot write out/b.spz: No usable temporary directory found in"
    result = run("in", "--format", "spz", code=1)
    assert message in result.stderr and "Traceback" not in result.stderr
    whole_ones = [] if place == "temporary" else ["a.matte.png", "a.spz", "c.matte.png", "c.spz"]
    assert written() == whole_ones


# --- the same file -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_when_a_seed_gives_the_same_file(here):
    """Byte for byte with as many threads, nearly so with more."""
    picture("a.png")
    for out, threads in (("one", "1"), ("again", "1"), ("two", "2"), ("two-again", "2")):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
        words = [sys.executable, "-m", "dd3g", "infer", "a.png", "-o", out, "--raw", "--device", "cpu"]
        subprocess.run(words, env=environment, check=True, capture_output=True)
    read = {out: Path(out, "a.ply").read_bytes() for out in ("one", "again", "two", "two-again")}
    assert read["one"] == read["again"] and read["two"] == read["two-again"]
    one, two = (Gaussians.load(f"{out}/a.ply") for out in ("one", "two"))
    assert len(one) == len(two)
    for name in ("means", "scales", "opacities", "colors"):
        assert np.allclose(getattr(one, name), getattr(two, name), atol=1e-3), name


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
