"""Where pictures come from, and where their results go."""

import contextlib
import gzip
import json
import os
import threading
import time
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stand_ins.infer_command import fails, picture, run, written
from typer.testing import CliRunner

from dd3g import infer
from dd3g.command.run import make_app
from dd3g.errors import UserError
from dd3g.picture import decoding
from dd3g.picture.inputs import find_pictures, output_stems


def test_every_file_of_a_folder_is_found_or_named(here):
    for name in (
        "a.png",
        "b.JPG",
        "c.tiff",
        "notes.txt",
        ".hidden.png",
        "a.matte.png",
        "sub/d.png",
        "sub/e/f.gif",
    ):
        path = here / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.mkfifo("in/pipe.png")
    Path("in/nowhere.png").symlink_to("nothing")
    Path("in/round").symlink_to(here / "in")
    flat = find_pictures(["in"])
    assert [(i.name, i.stem) for i in flat.found] == [
        ("in/a.png", "a"),
        ("in/b.JPG", "b"),
        ("in/c.tiff", "c"),
        ("in/nowhere.png", "nowhere"),
    ]
    deep = find_pictures(["in"], recursive=True)
    assert [(i.name, i.stem) for i in deep.found[4:]] == [
        ("in/sub/d.png", "sub/d"),
        ("in/sub/e/f.gif", "sub/e/f"),
    ]
    reasons = {s["picture"]: s["reason"] for s in deep.skipped}
    assert reasons == {
        "in/.hidden.png": "hidden",
        "in/a.matte.png": "a result of this command",
        "in/notes.txt": "not a picture by its name",
        "in/pipe.png": "not a file",
        "in/round": "a link to a folder",
    }
    assert {"picture": "in/sub", "reason": "a folder; --recursive searches it"} in flat.skipped


def test_stems_are_unique_in_their_folder(here):
    for name in ("in/x.png", "in/x.jpg", "in/sub/x.png", "other/sub/X.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    found = find_pictures(["in", "other", "https://host/a%20b/x.png?size=2", "-"], recursive=True).found
    assert [i.stem for i in found] == ["sub/x_png", "x_jpg", "x_png", "sub/X_png-2", "x_png-2", "stdin"]


def test_stems_of_names_that_some_file_systems_take_for_one():
    composed, apart = "\u00e9", "e\u0301"
    stems = output_stems([Path(f"{composed}.png"), Path(f"{apart}.png"), Path(f"{composed.upper()}.jpg")])
    assert stems == [f"{composed}_png", f"{apart}_png-2", f"{composed.upper()}_jpg"]


def test_a_picture_named_twice_is_made_once_and_that_is_said(here, stub):
    picture("in/a.png"), picture("b.png")
    words = ("in/a.png", "./in/a.png", "in", "in", here / "in/a.png", "b.png", "b.png")
    report = json.loads(run(*words, "--json").stdout)
    assert [p["picture"] for p in report["pictures"]] == ["in/a.png", "b.png"] and report["failed"] == []
    before = "named before as in/a.png"
    assert report["skipped"] == [
        *3 * [{"picture": "in/a.png", "reason": "named before"}],
        {"picture": f"{here}/in/a.png", "reason": before},
        {"picture": "b.png", "reason": "named before"},
    ]
    assert written() == ["a.matte.png", "a.ply", "b.matte.png", "b.ply"]
    assert run("b.png", "b.png", "-o", "x.ply").stderr == "skipped 1: b.png (named before)\n"
    twice = find_pictures(["-", "-", "http://host/a.png", "http://host/a.png"])
    assert [i.name for i in twice.found] == ["-", "http://host/a.png"]
    assert [s["picture"] for s in twice.skipped] == ["-", "http://host/a.png"]


def test_a_picture_called_like_standard_input(here, stub):
    picture("a.png").rename("-")
    run("./-")
    assert written() == ["-.matte.png", "-.ply"]


@pytest.mark.slow
def test_results_of_pictures_with_like_names_keep_apart(here, stub):
    """Also where the name of one goes on like the formats of another."""
    names = ["x/lamp.png", "y/lamp.png", "lamp.jpg", "lamp.compressed.png", "Lamp.mesh.png", "lamp.v2.png"]
    for name in names:
        picture(Path(name).with_suffix(".png"), colour=(200, 80, len(name))).rename(name)
    formats = "ply,compressed.ply,glb,mesh.glb"
    report = json.loads(run(*names, "--format", formats, "--json").stdout)
    files = [f for p in report["pictures"] for s in p["samples"] for f in (*s["files"], p["matte"])]
    assert len(files) == len({f.casefold() for f in files}) == 5 * len(names)
    assert sorted(files) == [f"out/{name}" for name in written()]
    stems = [Path(p["matte"]).name.removesuffix(".matte.png") for p in report["pictures"]]
    assert stems == ["lamp_png", "lamp_png-2", "lamp_jpg", "lamp_compressed_png", "Lamp_mesh_png", "lamp.v2"]


def test_results_are_no_pictures(here, stub):
    picture("in/a.png")
    for _ in range(2):
        report = json.loads(run("in", "-o", "in", "--format", "mesh.obj,ply", "--json").stdout)
        assert [p["picture"] for p in report["pictures"]] == ["in/a.png"]


def test_a_tree_of_pictures(here, stub):
    for name in ("in/a.png", "in/b/a.png", "in/b/c/d.png"):
        picture(name)
    report = json.loads(run("in", "--recursive", "--samples", 2, "--viewer", "--json").stdout)
    ends = (".matte.png", "-0.ply", "-1.ply", "-0.html", "-1.html")
    files = [f"{stem}{end}" for stem in ("a", "b/a", "b/c/d") for end in ends]
    assert written() == sorted([*files, "b", "b/c"])
    assert [p["picture"] for p in report["pictures"]] == ["in/a.png", "in/b/a.png", "in/b/c/d.png"]
    for entry in report["pictures"]:
        assert (
            all(Path(f).is_file() for s in entry["samples"] for f in s["files"])
            and Path(entry["matte"]).is_file()
        )


def test_skip_existing_makes_only_what_is_missing(here, stub, short_turntables):
    for name in ("in/a.png", "in/b.png"):
        picture(name)
    run("in", "--format", "ply,spz", "--turntable")
    before = {p: p.stat().st_mtime_ns for p in Path("out").iterdir()}
    Path("out/b.spz").unlink()
    again = ("in", "--format", "ply,spz", "--turntable", "--skip-existing", "--json")
    report = json.loads(run(*again).stdout)
    assert [p["picture"] for p in report["pictures"]] == ["in/b.png"]
    assert report["skipped"] == [{"picture": "in/a.png", "reason": "its results exist"}]
    assert all(p.stat().st_mtime_ns == before[p] for p in Path("out").glob("a.*"))
    stub.loaded.clear()
    assert json.loads(run(*again).stdout)["pictures"] == [] and stub.loaded == []
    assert len(json.loads(run(*again, "--viewer").stdout)["pictures"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("file:///tmp/a.png",),
            "file:///tmp/a.png: addresses of the kind file are not read: give one of http",
        ),
        (("ftp://host/a.png",), "addresses of the kind ftp are not read"),
        (("data:image/png;base64,iVBOR",), "addresses of the kind data are not read"),
        (("",), "an empty argument names no picture"),
        (("a.png", "-o", "-"), "-o -: results are not written to standard output"),
        (("a.png", "-o", "lamp.ksplat"), "-o lamp.ksplat: dd3g does not write this format"),
        (("a.png", "-o", "lamp.usdz"), "-o lamp.usdz: dd3g does not write this format"),
        (("a.png", "-o", "lamp.XYZ"), "-o lamp.XYZ: dd3g does not write this format; use one of .ply"),
        (("a.png", "-o", "lamp.pcd"), "-o lamp.pcd: dd3g does not write this format"),
        (("a.png", "-o", "lamp.mov"), "-o lamp.mov: dd3g does not write this format"),
        (("a.png", "-o", "made/.ply"), "-o made/.ply is a suffix without a name"),
    ],
)
def test_words_that_are_neither_picture_nor_place(here, stub, words, message):
    picture("a.png")
    fails(*words, match=message)


def test_an_address_of_another_kind_loses_no_other_picture(here, stub):
    picture("a.png")
    report = json.loads(run("a.png", "s3://bucket/b.png", "", "--json", code=1).stdout)
    assert [f["picture"] for f in report["failed"]] == ["s3://bucket/b.png", ""]
    assert [p["picture"] for p in report["pictures"]] == ["a.png"]


@pytest.mark.parametrize("stream", [None, "terminal"])
def test_nothing_piped_in(here, stub, monkeypatch, stream):
    class Terminal:
        closed = False

        def isatty(self):
            return True

    monkeypatch.setattr("dd3g.picture.inputs.sys", type("sys", (), {"stdin": stream and Terminal()}))
    with pytest.raises(UserError, match="nothing is piped in"):
        find_pictures(["-"]).found[0].source  # noqa: B018


def test_o_names_the_one_file(here, stub):
    assert run(picture("chair.png"), "-o", "made/lamp.ply").stdout.startswith(
        "wrote made/lamp.ply, made/lamp.matte"
    )
    assert written("made") == ["lamp.matte.png", "lamp.ply"]
    run("chair.png", "-o", "lamp.spz", "--format", "spz,ply", "--viewer")
    assert {"lamp.spz", "lamp.ply", "lamp.html", "lamp.matte.png"} <= set(os.listdir())
    Path("folder.ply").mkdir()
    run("chair.png", "-o", "folder.ply")
    assert written("folder.ply") == ["chair.matte.png", "chair.ply"]
    for folder in ("out.v2", "runs/2026.11.29", "lr1e-3.old", "St.Peter"):  # no kind of file
        run("chair.png", "-o", folder)
        assert written(folder) == ["chair.matte.png", "chair.ply"]


@pytest.mark.parametrize(
    "words, match",
    [
        (("a.png", "b.png", "-o", "x.ply"), "-o names one file, but there are 2 pictures: give a folder"),
        (("a.png", "-o", "x.ply", "--samples", 2), "-o names one file, but there are 2 --samples"),
        (("a.png", "-o", "x.obj"), "-o x.obj: dd3g does not write this format; use one of .ply, "),
        (("a.png", "-o", "x.png"), "-o x.png: dd3g does not write this format"),
        (("a.png", "--no-matte", "--matte", "u2netp"), "--matte, --no-matte and --mask each say what"),
        (("a.png", "--no-matte", "--mask", "b.png"), "--matte, --no-matte and --mask each say what"),
        (("a.png", "-o", "x.ply", "--format", "spz"), "-o x.ply and --format spz differ"),
        (("a.png", "-o", "x.PLY"), "write its suffix in small letters"),
        (("a.png", "b.png", "--mask", "a.png"), "--mask FILE is for one picture"),
        (("a.png", "b.png", "--recursive"), "--recursive searches folders, but none was given"),
        (("a.png", "--foreground-ratio", 2), "--foreground-ratio 2 is out of range"),
    ],
)
def test_words_that_do_not_go_together(here, stub, words, match):
    picture("a.png"), picture("b.png")
    fails(*words, match=match)


def test_masks_by_file_and_by_folder(here, stub):
    for name in ("in/a.png", "in/b.png"):
        picture(name)
        mask = np.zeros((96, 96), np.uint8)
        mask[30:40, 30:80] = 255
        Path("masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(Path("masks", Path(name).with_suffix(".bmp").name))
    Path("masks/b.bmp").unlink()
    Path("masks/a.aaa").write_text("no picture, and before the mask by its name")
    result = run("in", "--mask", "masks", code=1)
    assert "no mask for in/b.png in masks: looked for b.*" in result.stderr
    alpha = np.asarray(Image.open("out/a.matte.png"))[..., 3]
    assert alpha[128, 30] == 255 and alpha[128 - 30, 128] == 0  # five times as wide as high
    for own in ("in", "./in", Path("in").absolute()):
        fails("in/a.png", "--mask", own, match="no mask for in/a.png in")
    run("in/b.png", "--mask", "masks/a.bmp", "-o", "one")
    assert (np.asarray(Image.open("one/b.matte.png")) == np.asarray(Image.open("out/a.matte.png"))).all()


def test_masks_in_a_tree_like_that_of_the_pictures(here, stub):
    for name, rows in (("a.png", slice(30, 40)), ("sub/a.png", slice(20, 70))):
        picture(f"in/{name}")
        mask = np.zeros((96, 96), np.uint8)
        mask[rows, 30:80] = 255
        Path("masks", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(Path("masks", name))
    run("in", "--recursive", "--mask", "masks")
    for name, high in (("a", False), ("sub/a", True)):
        assert (np.asarray(Image.open(f"out/{name}.matte.png"))[128 - 60, 128, 3] == 255) == high, name


def test_foreground_ratio_reaches_the_frame(here, stub):
    run(picture("a.png"), "--foreground-ratio", 0.5)
    columns = (np.asarray(Image.open("out/a.matte.png"))[..., 3] > 127).any(0).sum()
    assert columns == pytest.approx(128, abs=4)


# --- not from a file ---------------------------------------------------------------------------------------


def test_standard_input(here, stub):
    app = make_app(infer.infer)
    result = CliRunner().invoke(app, ["-", "-o", "x.ply"], input=picture("a.png").read_bytes())
    assert result.exit_code == 0, result.output
    run("a.png")
    assert Path("x.ply").read_bytes() == Path("out/a.ply").read_bytes()
    empty = CliRunner().invoke(app, ["-"], input=b"")
    assert empty.exit_code == 2 and "error: -: the picture is empty (0 bytes)" in empty.stderr


def test_a_named_pipe(here, stub):
    data = picture("a.png").read_bytes()
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(data))
    writer.start()
    run("pipe")
    writer.join()
    assert written() == ["pipe.matte.png", "pipe.ply"]


@pytest.fixture
def site(here):
    """Address of a server on this machine that shows the folder `www`."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    (here / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=here / "www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_address(here, stub, site):
    picture("www/my chair.png")
    Path("www/page").write_text("<!DOCTYPE html><html></html>")
    run(f"{site}/my%20chair.png?x=1")
    assert written() == ["my_chair.matte.png", "my_chair.ply"]
    for path, match in (
        ("/gone.png", "could not be fetched (HTTP Error 404"),
        ("/page", "is a web page: give the address of the picture itself"),
    ):
        fails(f"{site}{path}", match=match)
    fails("http://127.0.0.1:9/a.png", match="could not be fetched (")
    fails("http://[::1/a.png", match="the address is not one (Invalid IPv6 URL)")
    fails("http:///a.png", match="the address names no host")


def test_why_an_address_gives_no_picture(here, stub, monkeypatch):
    """The next step is one that may help."""
    codes = {401: "save the picture with a browser", 403: "save the picture with a browser"}
    codes |= {404: "check the address", 429: "try again later", 503: "try again later"}

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/round":
                self.send_response(302)
                self.send_header("Location", "/round")
            elif self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
            else:
                self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        for code, step in codes.items():
            assert step in run(f"http://{host}/{code}", code=2).stderr
        fails(f"http://{host}/round", match="would lead to an infinite loop")
        fails(f"http://{host}/away", match="Redirection to url 'file:///etc/passwd' is not allowed")
        fails(f"http://me:secret@{host}/404", match="127.0.0.1: addresses with a name and a password are not")
        server.shutdown()
    fails(f"http://{host}/a.png", match="Connection refused): check the address, and whether this")


def test_an_address_as_browsers_show_it(here, stub, site):
    picture("www/a chair é.png")
    run(f"{site}/a chair é.png", "-o", "x")
    run(f"{site}/a%20chair%20%C3%A9.png", "-o", "y")
    assert written("x") == written("y") == ["a_chair_é.matte.png", "a_chair_é.ply"]
    fails("http://椅子.invalid/a.png", match="whether this machine is connected")


def test_an_answer_that_is_packed_or_never_ends(here, stub, monkeypatch):
    data = picture("a.png").read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            packing = self.path[1:-4]
            if packing != "slow":
                self.send_header("Content-Encoding", packing)
            self.end_headers()
            if packing != "slow":
                pack = zlib.compress if packing == "deflate" else gzip.compress
                self.wfile.write(data if packing == "identity" else pack(data))
            with contextlib.suppress(OSError):  # until nobody listens
                while self.path == "/slow.png":
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(decoding, "PATIENCE", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_address[1]}"
        fails(f"{site}/slow.png", match="could not be fetched (it took more than 1 seconds)")
        monkeypatch.setattr(decoding, "PATIENCE", 60)
        for packing in ("gzip", "GZIP", "x-gzip", "deflate", "identity"):
            run(f"{site}/{packing}.png")
        fails(f"{site}/br.png", match="could not be fetched (the answer is packed as br)")
        monkeypatch.setattr(decoding, "MAX_BYTES", len(data) - 1)
        fails(f"{site}/gzip.png", match="has more than")
        server.shutdown()
