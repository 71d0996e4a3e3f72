import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.infer_command import fails, picture, run, written

from dd3g import infer
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import splats
from dd3g.picture.decoding import SUFFIXES
from dd3g.results import NO_ENCODER, Request


def test_one_picture(here, stub):
    result = run(picture("chair.png"))
    assert written() == ["chair.matte.png", "chair.ply"]
    assert len(Gaussians.load("out/chair.ply")) == 20
    assert result.stdout.startswith("wrote out/chair.ply, out/chair.matte.png in ")
    assert result.stderr == ""
    assert stub.loaded == [("nano", "cuda" if torch.cuda.is_available() else "cpu")]


def test_every_format(here, stub):
    run(picture("chair.png"), "--format", "ply,SPZ,.splat,glb,ply,sog,compressed.ply", "-o", "deep/er")
    suffixes = ["compressed.ply", "glb", "matte.png", "ply", "sog", "splat", "spz"]
    assert written("deep/er") == [f"chair.{suffix}" for suffix in suffixes]
    assert infer.FORMATS == (*splats.FORMATS, "mesh.glb", "mesh.usdz", "mesh.obj")


@pytest.mark.parametrize("axes", splats.AXES)
def test_axes(here, stub, axes):
    run(picture("chair.png"), "--axes", axes)
    assert f"comment dd3g axes: {axes}".encode() in Path("out/chair.ply").read_bytes()
    run("chair.png", "--axes", axes, "--format", "spz")
    told, untold = (Gaussians.load("out/chair.spz", how).means for how in (axes, "opengl"))
    assert torch.allclose(told, Gaussians.load("out/chair.ply").means, atol=1e-3)
    assert torch.equal(told, untold) == (axes == "opengl")
    assert run("chair.png", "--axes", axes, "--format", "ply,glb", code=2 * (axes != "opengl"))


def test_turntable_and_viewer(here, stub):
    run(picture("chair.png"), "--turntable", "--viewer", "--format", "ply")
    assert written()[:3] == ["chair.html", "chair.matte.png", "chair.ply"]
    assert "<title>chair" in Path("out/chair.html").read_text()
    (movie,) = set(written()) - {"chair.html", "chair.matte.png", "chair.ply"}
    assert movie.startswith("chair.turntable.") and Path("out", movie).stat().st_size > 1000


def test_a_turntable_without_an_encoder_says_why_it_is_another_file(
    here, stub, short_turntables, monkeypatch
):
    from dd3g.io import turntable

    monkeypatch.setattr(turntable, "_ffmpeg_is_here", lambda: False)
    said = run(picture("a.png"), picture("b.png"), "--turntable", "--samples", 2).stderr
    assert "a-1.turntable.webp" in written() and "b-1.turntable.webp" in written()
    assert said == "warning: " + NO_ENCODER + "\n" and "pip install 'dd3g[video]'" in said


def test_seed_gives_the_same_bytes_and_samples_count_on(here, stub):
    run(picture("chair.png"), "--seed", 3, "--samples", 2)
    assert written() == ["chair-0.ply", "chair-1.ply", "chair.matte.png"]
    for seed in (3, 4):
        run("chair.png", "--seed", seed, "-o", f"seed{seed}")
        assert Path(f"seed{seed}/chair.ply").read_bytes() == Path(f"out/chair-{seed - 3}.ply").read_bytes()
    assert Path("seed3/chair.ply").read_bytes() != Path("seed4/chair.ply").read_bytes()


def test_seeds_count_on_to_the_last_that_torch_knows(here, stub):
    run(picture("chair.png"), "--seed", 2**64 - 2, "--samples", 2)
    assert written() == ["chair-0.ply", "chair-1.ply", "chair.matte.png"]
    for seed, samples in ((2**64 - 1, 2), (10**20, 1)):
        fails("chair.png", "--seed", seed, "--samples", samples, match=f"--seed {seed} is out of range")


@pytest.mark.slow
def test_what_is_written_lies_on_the_cpu(here, stub, short_turntables, monkeypatch):
    class Elsewhere:
        """Gaussians on a device where nothing can be done with them but to move them."""

        def __init__(self, gaussians):
            self.gaussians = gaussians

        def to(self, device):
            assert device == "cpu"
            return self.gaussians

    def generate(*args, **more):
        large = torch.full((20, 3), 0.2)  # enough for a surface
        return Elsewhere(replace(draw(*args, **more), scales=large))

    draw = stub.generate
    monkeypatch.setattr(stub, "generate", generate)
    run(picture("chair.png"), "--turntable", "--viewer", "--format", ",".join(infer.FORMATS))
    assert len(written()) == 3 + len(infer.FORMATS) + 2  # .mesh.obj brings .mtl and .png


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


def test_any_kind_of_picture(here, stub):
    """A red square in every way to store it, through the command."""
    cut, solid = Image.open(picture("in/alpha.png")), Image.new("RGB", (40, 24), (200, 80, 40))
    picture("in/least.png", side=8)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[str, Image.Image, dict]] = [
        ("cut.webp", cut, {"lossless": True}),
        ("cut-palette.gif", cut, {}),
        ("opaque.png", solid, {}),
        ("photo.jpg", solid, {}),
        ("progressive.jpeg", solid, {"progressive": True}),
        ("print.jpg", solid.convert("CMYK"), {}),
        ("frames.gif", solid, {"save_all": True, "append_images": [Image.new("RGB", (40, 24), "blue")]}),
        ("palette.png", solid.quantize(4), {}),
        ("grey.png", solid.convert("L"), {}),
        ("deep.png", Image.fromarray(np.full((24, 40), 111 << 8, np.uint16)), {}),
        ("turned.jpg", solid, {"exif": turned}),
    ]
    for name, image, options in kinds:
        image.save(Path("in", name), **options)
    result = run("in", "--no-matte")
    assert result.stderr == "" and f"wrote {2 * 13} files for 13 pictures" in result.stdout
    mattes = {
        p.stem: np.asarray(Image.open(f"out/{p.stem}.matte.png")).astype(int) for p in Path("in").iterdir()
    }
    for name, matte in mattes.items():
        wanted = (111, 111, 111) if name in ("grey", "deep") else (200, 80, 40)
        assert np.abs(matte[128, 128] - (*wanted, 255)).max() <= 4, name
    for name, wide in (("photo", 255), ("turned", 0)):
        assert mattes[name][128, 40, 3] == wide and mattes[name][40, 128, 3] == 255 - wide


def test_a_photo_of_8000_pixels(here, stub):
    image = Image.new("RGB", (8000, 8000), "white")
    image.paste((200, 80, 40), (2000, 2000, 6000, 6000))
    image.save("photo.jpg", quality=90)
    start = time.process_time()
    run("photo.jpg", "--no-matte", "--json")
    assert time.process_time() - start < 15  # 1 to 2
    matte = np.asarray(Image.open("out/photo.matte.png")).astype(int)
    assert np.abs(matte[128, 128] - (200, 80, 40, 255)).max() <= 4 and matte[40, 128].min() > 250


def test_warning_is_shown(here, stub):
    image = Image.new("RGBA", (100, 100))
    image.paste((255, 0, 0, 255), (0, 40, 20, 60))
    image.save("small.png")
    result = run("small.png")
    assert len(result.stderr.splitlines()) == 2
    assert all(line.startswith("warning: the object ") for line in result.stderr.splitlines())


# --- folders -----------------------------------------------------------------------------------------------


def test_folder_goes_on_past_failures(here, stub):
    passed_over = ("sub/not-taken.png", ".hidden.png", "old.matte.png", "old.turntable.gif")
    for name in ("a.png", "c.PNG", *passed_over):
        picture(f"in/{name}")
    Path("in/b.png").write_text("no picture")
    Path("in/readme.txt").write_text("not looked at")
    result = run("in", code=1)
    assert written() == ["a.matte.png", "a.ply", "c.matte.png", "c.ply"]
    assert result.stderr.splitlines() == [
        "error: in/b.png is not a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC or ICO picture: save it as PNG "
        "and try again",
        "skipped 5: in/.hidden.png (hidden), in/old.matte.png (a result of this command), "
        "in/old.turntable.gif (a result of this command), in/readme.txt (not a picture by its name), "
        "in/sub (a folder; --recursive searches it)",
    ]
    assert result.stdout.splitlines()[-1].startswith("wrote out/a.ply, out/c.ply, out/a.matte.png")
    assert result.stdout.splitlines()[-1].endswith("1 failed")
    assert len(stub.loaded) == 1


def test_a_folder_of_failures_alone(here, stub):
    Path("in").mkdir()
    for name in ("a.png", "b.jpg"):
        Path("in", name).write_text("no picture")
    result = run("in", code=1)
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["in/a.png", "in/b.jpg"]
    assert result.stdout.startswith("wrote nothing in ") and result.stdout.endswith("2 failed\n")
    assert not Path("out").exists() and stub.loaded == []


def test_a_folder_without_pictures_does_not_stop_the_others(here, stub):
    Path("empty").mkdir()
    result = run(picture("a.png"), "empty", "nothere.png", code=1)
    assert written() == ["a.matte.png", "a.ply"]
    assert [line.split(":")[0:2] for line in result.stderr.splitlines()] == [
        ["error", f" the folder empty holds no pictures ({' '.join(SUFFIXES)})"],
        ["error", " nothere.png does not exist"],
    ]
    assert result.stdout.endswith("2 failed\n")


def test_failure_in_the_middle_of_writing_loses_only_that_picture(here, stub, monkeypatch):
    for name in ("a", "b", "c"):
        picture(f"in/{name}.png")
    save = splats.save

    def refuse(gaussians, path, *how, **more):
        if path.name == "b.glb":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(gaussians, path, *how, **more)

    monkeypatch.setattr(splats, "save", refuse)
    result = run("in", "--format", "ply,glb", code=1)
    assert written() == ["a.glb", "a.matte.png", "a.ply", "c.glb", "c.matte.png", "c.ply"]
    assert result.stderr.startswith(
        "error: in/b.png: could not write to out or among temporary files (No space left on device): free"
    )


def test_how_the_object_is_made_reaches_the_generator(here, stub, monkeypatch):
    generate, asked = stub.generate, []

    def watched(self, picture, seed=0, **how):
        asked.append(how)
        return generate(self, picture, seed)

    monkeypatch.setattr(stub, "generate", watched)
    run(picture("a.png"))
    run(picture("a.png"), "--elevation", 30, "--fov", 20, "--refine", 1.5)
    run(picture("a.png"), "--raw")
    assert asked == [
        {"elevation": 10.0, "fov": 49.1, "raw": False, "refine": 0.0},
        {"elevation": 30.0, "fov": 20.0, "raw": False, "refine": 1.5},
        {"elevation": 10.0, "fov": 49.1, "raw": True, "refine": 0.0},
    ]


def test_the_elevation_is_estimated_once_for_all_samples_and_told(here, stub, monkeypatch):
    generate, asked, seen = stub.generate, [], []

    def watched(self, picture, seed=0, **how):
        asked.append(how["elevation"])
        return generate(self, picture, seed)

    def estimated(rgba):
        seen.append(tuple(rgba.shape))
        return 34

    monkeypatch.setattr(stub, "generate", watched)
    monkeypatch.setattr("dd3g.pepd.elevation.estimated_elevation", estimated)
    result = run(picture("a.png"), "--elevation", "auto", "--samples", 2, "--json")
    samples = json.loads(result.stdout)["pictures"][0]["samples"]
    assert asked == [s["elevation"] for s in samples] == [34, 34] and len(seen) == 1 and seen[0][0] == 4
    for degrees, words in ((34, "34 degrees above"), (-5, "5 degrees below")):
        monkeypatch.setattr("dd3g.pepd.elevation.estimated_elevation", lambda rgba, found=degrees: found)
        said = run(picture("a.png"), "--elevation", "auto").stderr
        assert f"a.png: taken from about {words}\n" in said


@pytest.mark.parametrize("elevation", [10, 10.0, "10", "1e1", np.float32(10)])
def test_an_elevation_of_any_kind_of_number(elevation):
    assert Request(elevation=elevation).how["elevation"] == 10.0


@pytest.mark.parametrize("elevation", [None, [10], np.array(["auto"])])
def test_an_elevation_that_is_none(elevation):
    with pytest.raises(UserError, match="is not a number: give one, or auto"):
        Request(elevation=elevation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--elevation", ""), "--elevation '' is not a number: give one, or auto"),
        (("--elevation", "AUTO"), "--elevation 'AUTO' is not a number: give one, or auto"),
        (("--elevation", "above"), "--elevation 'above' is not a number: give one, or auto"),
        (("--elevation", 95), "--elevation 95 is out of range"),
        (("--elevation", "nan"), "--elevation nan is out of range"),
        (("--fov", 0), "--fov 0 is out of range: give 1 to 100 degrees"),
        (("--refine", -1), "--refine -1 must be a number of seconds"),
        (("--refine", "inf"), "--refine inf must be a number of seconds"),
        (("--raw", "--refine", 1), "which --raw leaves out"),
        (("--ply-layout", "inria", "--format", "spz"), "is one of .ply, and .spz has none"),
        (("--ply-layout", "inria", "-o", "a.mesh.glb"), "is one of .ply, and .mesh.glb has none"),
    ],
)
def test_wrong_ways_to_make_it_are_said(here, stub, options, message):
    fails(picture("a.png"), *options, match=message)


def test_out_of_memory_is_said(here, stub, monkeypatch):
    def hungry(self, picture, seed=0, **how):
        raise RuntimeError("CUDA out of memory. Tried to allocate 80 GiB")

    monkeypatch.setattr(stub, "generate", hungry)
    fails(picture("a.png"), match="a.png: not enough memory")


def test_a_bug_is_not_hidden(here, stub, monkeypatch):
    def broken(self, picture, seed=0, **how):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stub, "generate", broken)
    fails(picture("a.png"), match="a.png: unexpected RuntimeError: shapes do not match (test_infer.py, line ")
    monkeypatch.setenv("DD3G_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run("a.png")
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

    def noisy(self, picture, seed=0, **how):
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


def test_json_counts_what_the_files_hold(here, stub, monkeypatch):
    generate = stub.generate

    def faint(self, picture, seed=0, **how):
        gaussians = generate(self, picture, seed)
        gaussians.opacities[:5] = 0.001
        gaussians.means[7] = torch.nan
        return gaussians

    monkeypatch.setattr(stub, "generate", faint)
    report = json.loads(run(picture("a.png"), "--json").stdout)
    assert report["pictures"][0]["samples"][0]["gaussians"] == len(Gaussians.load("out/a.ply")) == 14


def test_json_for_what_stops_everything(here, stub):
    result = run(picture("a.png"), "--format", "obj", "--json", code=2)
    report = json.loads(result.stdout)
    assert report["error"].startswith("unknown format 'obj'") and report["pictures"] == []
    assert len(result.stderr.splitlines()) == 1
