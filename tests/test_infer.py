import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dd3g import infer
from dd3g.gaussians import Gaussians
from dd3g.io import splats

ROOT = Path(__file__).parent.parent


class StubGenerator:
    """Stands for the generator: 20 Gaussians that depend on the picture and the seed."""

    loaded: list[tuple[str, str]] = []

    @classmethod
    def from_pretrained(cls, name, device="cpu"):
        cls.loaded.append((name, device))
        return cls()

    def generate(self, picture, seed=0):
        draw = torch.Generator().manual_seed(seed + int(1e6 * picture.rgba.mean()))
        quats = torch.nn.functional.normalize(torch.randn(20, 4, generator=draw), dim=-1)
        return Gaussians(
            torch.rand(20, 3, generator=draw) - 0.5,
            quats,
            torch.full((20, 3), 0.02),
            torch.full((20,), 0.9),
            torch.rand(20, 3, generator=draw),
        )


@pytest.fixture
def stub(monkeypatch):
    import dd3g.pepd

    monkeypatch.setattr(dd3g.pepd, "Generator", StubGenerator)
    monkeypatch.setattr(StubGenerator, "loaded", [])
    return StubGenerator


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, code=0):
    result = CliRunner().invoke(infer.app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def fails(*args, match, code=2):
    """The command ends in one clear line and writes nothing."""
    before = sorted(Path().rglob("*"))
    result = run(*args, code=code)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and match in line
    assert sorted(Path().rglob("*")) in (before, sorted([*before, Path("out")]))


def picture(path, colour=(200, 80, 40), side=40):
    rgba = np.zeros((side, side, 4), np.uint8)
    rgba[side // 4 : -side // 4, side // 4 : -side // 4] = (*colour, 255)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rgba)
    image.save(path)
    return Path(path)


def written(folder="out"):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*"))


def test_one_picture(here, stub):
    result = run(picture("chair.png"))
    assert written() == ["chair.matte.png", "chair.ply"]
    assert len(Gaussians.load("out/chair.ply")) == 20
    assert result.stdout.startswith("wrote out/chair.ply, out/chair.matte.png in ")
    assert result.stderr == ""
    assert stub.loaded == [("nano", "cuda" if torch.cuda.is_available() else "cpu")]


def test_every_format(here, stub):
    run(picture("chair.png"), "--format", "ply,SPZ,.splat,glb,ply", "-o", "deep/er")
    assert written("deep/er") == ["chair.glb", "chair.matte.png", "chair.ply", "chair.splat", "chair.spz"]
    assert infer.FORMATS == ("ply", "spz", "splat", "glb") and set(infer.FORMATS) == set(splats.FORMATS)


@pytest.mark.parametrize("axes", infer.AXES)
def test_axes(here, stub, axes):
    run(picture("chair.png"), "--axes", axes)
    assert f"comment dd3g axes: {axes}".encode() in Path("out/chair.ply").read_bytes()
    assert infer.AXES == splats.AXES


def test_turntable_and_viewer(here, stub):
    run(picture("chair.png"), "--turntable", "--viewer", "--format", "ply")
    assert written()[:3] == ["chair.html", "chair.matte.png", "chair.ply"]
    assert "<title>chair" in Path("out/chair.html").read_text()
    (movie,) = set(written()) - {"chair.html", "chair.matte.png", "chair.ply"}
    assert movie.startswith("chair.turntable.") and Path("out", movie).stat().st_size > 1000


def test_seed_gives_the_same_bytes_and_samples_count_on(here, stub):
    run(picture("chair.png"), "--seed", 3, "--samples", 2)
    assert written() == ["chair-0.ply", "chair-1.ply", "chair.matte.png"]
    for seed in (3, 4):
        run("chair.png", "--seed", seed, "-o", f"seed{seed}")
        assert Path(f"seed{seed}/chair.ply").read_bytes() == Path(f"out/chair-{seed - 3}.ply").read_bytes()
    assert Path("seed3/chair.ply").read_bytes() != Path("seed4/chair.ply").read_bytes()


def test_weights_and_device_reach_the_loader(here, stub):
    run(picture("chair.png"), "--weights", "owner/name", "--device", "cpu")
    assert stub.loaded == [("owner/name", "cpu")]


def test_saved_matte_shows_the_object(here, stub):
    run(picture("chair.png"))
    matte = np.asarray(Image.open("out/chair.matte.png"))
    assert matte.shape == (256, 256, 4)
    assert matte[128, 128].tolist() == [200, 80, 40, 255] and matte[5, 5, 3] == 0


def test_no_matte(here, stub):
    Image.new("RGB", (40, 40), "red").save("square.png")
    run("square.png", "--no-matte")
    assert np.asarray(Image.open("out/square.matte.png"))[128, 128].tolist() == [255, 0, 0, 255]


def test_warning_is_shown(here, stub):
    image = Image.new("RGBA", (100, 100))
    image.paste((255, 0, 0, 255), (0, 40, 20, 60))
    image.save("small.png")
    result = run("small.png")
    assert len(result.stderr.splitlines()) == 2
    assert all(line.startswith("warning: the object ") for line in result.stderr.splitlines())


# --- folders -----------------------------------------------------------------------------------------------


def test_folder_goes_on_past_failures(here, stub):
    for name in ("a.png", "c.PNG", "sub/not-taken.png", ".hidden.png", "old.matte.png", "old.turntable.gif"):
        picture(f"in/{name}")
    Path("in/b.png").write_text("no picture")
    Path("in/readme.txt").write_text("not looked at")
    result = run("in", code=1)
    assert written() == ["a.matte.png", "a.ply", "c.matte.png", "c.ply"]
    assert result.stderr.splitlines() == [
        "error: in/b.png is not a PNG, JPEG, WebP, GIF or BMP picture: save it as PNG and try again"
    ]
    assert result.stdout.splitlines()[-1].startswith("wrote out/a.ply, out/c.ply, out/a.matte.png")
    assert result.stdout.splitlines()[-1].endswith("1 failed")
    assert len(stub.loaded) == 1


def test_failure_in_the_middle_of_writing_loses_only_that_picture(here, stub, monkeypatch):
    for name in ("a", "b", "c"):
        picture(f"in/{name}.png")
    save = splats.save

    def refuse(gaussians, path, axes=None):
        if path.name == "b.glb":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(gaussians, path, axes=axes)

    monkeypatch.setattr(splats, "save", refuse)
    result = run("in", "--format", "ply,glb", code=1)
    assert written() == ["a.glb", "a.matte.png", "a.ply", "c.glb", "c.matte.png", "c.ply"]
    assert result.stderr.startswith("error: in/b.png: could not write to out (No space left on device)")


def test_out_of_memory_is_said(here, stub, monkeypatch):
    def hungry(self, picture, seed=0):
        raise RuntimeError("CUDA out of memory. Tried to allocate 80 GiB")

    monkeypatch.setattr(stub, "generate", hungry)
    fails(picture("a.png"), match="a.png: not enough memory")


def test_a_bug_is_not_hidden(here, stub, monkeypatch):
    def broken(self, picture, seed=0):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stub, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(picture("a.png"))
    assert written() == []


def test_same_stems_do_not_overwrite_each_other(here, stub):
    for name in ("in/a.png", "in/A.bmp", "in/b.png", "other/A.png"):
        picture(name)
    run("in", "other", "in/a.png")
    assert written() == sorted(
        f"{stem}{suffix}" for stem in ("A_bmp", "a_png", "A_png-2", "b") for suffix in (".ply", ".matte.png")
    )


def test_many_files_are_counted(here, stub):
    for i in range(6):
        picture(f"in/{i}.png")
    assert run("in").stdout.startswith("wrote 12 files for 6 pictures to out/ in ")


# --- json --------------------------------------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(here, stub, monkeypatch):
    generate = stub.generate

    def noisy(self, picture, seed=0):
        print("a library talks")
        return generate(self, picture, seed)

    monkeypatch.setattr(stub, "generate", noisy)
    picture("in/a.png")
    Path("in/b.png").write_text("no picture")
    report = json.loads(run("in", "--json", "--samples", 2, "--seed", 5, code=1).stdout)
    (entry,) = report["pictures"]
    assert entry["picture"] == "in/a.png" and entry["matte"] == "out/a.matte.png" and entry["warnings"] == []
    assert entry["samples"] == [
        {"seed": 5 + k, "gaussians": 20, "files": [f"out/a-{k}.ply"]} for k in range(2)
    ]
    assert [f["picture"] for f in report["failed"]] == ["in/b.png"]
    assert report["seconds"] >= entry["seconds"] >= 0


def test_json_for_what_stops_everything(here, stub):
    result = run(picture("a.png"), "--format", "obj", "--json", code=2)
    report = json.loads(result.stdout)
    assert report["error"].startswith("unknown format 'obj'") and report["pictures"] == []
    assert len(result.stderr.splitlines()) == 1


# --- bad input ---------------------------------------------------------------------------------------------


def test_missing_picture(here, stub):
    fails("nothere.png", match="nothere.png does not exist")


def test_folder_without_pictures(here, stub):
    Path("in").mkdir()
    Path("in/readme.txt").write_text("")
    fails("in", match="the folder in holds no pictures")


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


def test_pictures_that_show_nothing(here, stub):
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("RGBA", (32, 32)).save("clear.png")
    fails("dot.png", match="is 1x1 pixels, too small")
    fails("clear.png", match="is fully transparent")


def test_picture_that_needs_a_matte_that_is_not_there(here, stub, monkeypatch):
    import dd3g.picture

    monkeypatch.setenv("DD3G_CACHE", str(here / "nothing"))
    dd3g.picture._u2netp_session.cache_clear()
    Image.new("RGB", (40, 40), "red").save("photo.png")
    fails("photo.png", match="python -m dd3g.models fetch u2netp")


@pytest.mark.parametrize(
    "option, match",
    [
        (("--format", "obj"), "unknown format 'obj': give one or more of ply,spz,splat,glb"),
        (("--format", ""), "unknown format"),
        (("--axes", "left"), "unknown axes 'left': choose from opencv, opengl, zup"),
        (("--samples", "0"), "--samples 0 makes nothing"),
        (("--device", "tpu9"), "unknown device 'tpu9'"),
    ],
)
def test_bad_options(here, stub, option, match):
    fails(picture("a.png"), *option, match=match)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device(here, stub):
    fails(picture("a.png"), "--device", "cuda", match="torch finds no cuda device")


def test_output_folder_is_a_file(here, stub):
    Path("taken").write_text("")
    fails(picture("a.png"), "-o", "taken", match="cannot write to the output folder taken")
    fails("a.png", "-o", "taken/below", match="cannot write to the output folder taken/below")


def test_output_folder_is_read_only(stub):
    # Root may write everywhere, so this process gives its rights up for the length of the call.
    home = Path(tempfile.mkdtemp())
    try:
        source = picture(home / "a.png")
        (home / "out").mkdir()
        home.chmod(0o755)
        (home / "out").chmod(0o555)
        run(source, "-o", home / "warm")  # what is imported on the way must not need the rights
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            result = run(source, "-o", home / "out", code=2)
        finally:
            os.seteuid(user)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: cannot write to the output folder {home / 'out'} (Permission denied)")
        assert list((home / "out").iterdir()) == []
    finally:
        shutil.rmtree(home)


# --- the real command --------------------------------------------------------------------------------------


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "dd3g.infer", *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )


def test_help_and_bad_input_load_nothing_heavy(here):
    picture("a.png")
    for args in (["--help"], ["nothere.png"], ["a.png", "--format", "obj"]):
        code = (
            "import sys; from dd3g.infer import app\n"
            f"try: app({args!r})\n"
            "finally: assert not {'torch', 'numba', 'rembg', 'transformers'} & set(sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert "Assertion" not in result.stderr, args


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


def test_real_command_twice_gives_the_same_bytes(here, untrained):
    source = picture("chair.png")
    for out in ("one", "two"):
        result = command(source, "-o", out, "--weights", untrained, "--format", "ply,glb,splat,spz", "--json")
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["pictures"][0]["samples"][0]["gaussians"] > 0
    for name in written("one"):
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes(), name
    assert written("one") == ["chair.glb", "chair.matte.png", "chair.ply", "chair.splat", "chair.spz"]


def test_full_disk_through_the_real_command(here, untrained):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    result = command(picture("chair.png"), "--weights", untrained, preexec_fn=full)
    assert result.returncode == 2 and result.stdout == ""
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
    assert not Path("executed").exists()


def test_unknown_weights(here):
    fails(picture("a.png"), "--weights", "no-such-name", match="no-such-name")
