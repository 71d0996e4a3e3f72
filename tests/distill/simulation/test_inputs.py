from __future__ import annotations

import hashlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from stand_ins.tiny_objects import write_renders

import dd3g.picture.loading
from dd3g.errors import UserError
from dd3g.io.shards import write_shard
from distill.quadruples import Quadruples
from distill.simulate import main
from distill.simulation.inputs import MatteError, open_inputs

GREEN = (0, 255, 0)
RED, BLUE, GREY = (200, 30, 40), (30, 40, 200), (120, 120, 120)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def drawn(colour, box=(20, 10, 39, 49), size=64) -> Image.Image:
    image = Image.new("RGBA", (size, size))
    ImageDraw.Draw(image).rectangle(box, fill=(*colour, 255))
    return image


def on_green(image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (*GREEN, 255)), image).convert("RGB")


def encoded(image, suffix=".png") -> bytes:
    stream = io.BytesIO()
    more = {"quality": 95} if suffix in (".jpg", ".jpeg") else {"lossless": True} if suffix == ".webp" else {}
    image.save(stream, Image.registered_extensions()[suffix], **more)
    return stream.getvalue()


def picture(colour, suffix) -> bytes:
    """With alpha where the format has it, otherwise on green."""
    image = drawn(colour)
    return encoded(image if suffix in (".png", ".webp", ".gif") else on_green(image), suffix)


def check(rgba, colour):
    """The object fills 80 % of the height, is half as wide, and has its colour."""
    assert rgba.shape == (4, 40, 40) and torch.equal((rgba * 255).round() / 255, rgba)
    rows, columns = (np.flatnonzero((rgba[3] > 0.5).any(d).numpy()) for d in (1, 0))
    assert abs(len(rows) - 32) <= 2 and abs(len(columns) - 16) <= 2
    assert abs(rows.mean() - 19.5) <= 1 and abs(columns.mean() - 19.5) <= 1
    assert (rgba[:3, 20, 20] * 255 - torch.tensor(colour)).abs().max() <= 6
    assert rgba[:, 0, 0].abs().max() == 0


@pytest.fixture
def green_screen(monkeypatch):
    """A matting model for pictures on green; the names it was called by."""
    asked = []

    def predict(image, model, threads=0):
        asked.append(model)
        away = np.abs(np.asarray(image, np.int16) - GREEN).sum(-1) > 150
        return Image.fromarray(np.where(away, 255, 0).astype(np.uint8))

    monkeypatch.setattr(dd3g.picture.loading, "predict_matte", predict)
    return asked


def command(inputs, teacher, output, *more):
    words = [str(inputs), "--teacher", str(teacher), "--output", str(output), "--device", "cpu"]
    return [*words, "--seeds", "1", *more]


def test_pictures_at_any_depth_in_every_format(tmp_path, green_screen):
    colours = [RED, BLUE, GREY]
    for i, suffix in enumerate(SUFFIXES):
        path = tmp_path / "in" / "/".join("ab"[: i % 3]) / f"{i}{suffix.upper() if i == 1 else suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(colours[i % 3], suffix))
    for name in (".hidden/a.png", ".b.png", "notes.txt", "metadata.jsonl"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("no picture")
    inputs = open_inputs(tmp_path / "in")
    names = ["0.png", "3.webp", "a/1.JPG", "a/4.gif", "a/b/2.jpeg", "a/b/5.bmp"]
    assert len(inputs) == len(names)
    for i, name in enumerate(names):
        rgba, about = inputs.picture(i, 0, 40)
        number = int(name.rpartition("/")[2][0])
        check(rgba, colours[number % 3])
        assert about == {"source": name} | ({"matte": "u2netp"} if number in (1, 2, 5) else {})
    assert set(green_screen) == {"u2netp"} and len(green_screen) == 3


def test_one_picture_is_the_same_wherever_it_lies(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = picture(BLUE, ".png")
    (tmp_path / "a.png").write_bytes(data)
    write_shard(tmp_path / "deep" / "er" / "a.tar", [{"__key__": "k", "png": data}])
    parquet.write_table(pyarrow.table({"image": [{"bytes": data, "path": None}]}), tmp_path / "a.parquet")
    found = [open_inputs(tmp_path / p).picture(0, 0, 40) for p in ("a.png", "deep", "a.parquet")]
    assert [about["source"] for _, about in found] == ["a.png", "k", "a.parquet row 0"]
    for rgba, _ in found:
        check(rgba, BLUE)
        assert torch.equal(rgba, found[0][0])


def test_shards_of_several_picture_formats(tmp_path, green_screen):
    samples = [
        {"__key__": f"k{i}", s.removeprefix("."): picture(RED, s), "txt": "a thing"}
        for i, s in enumerate(SUFFIXES)
    ]
    write_shard(tmp_path / "a.tar", [*samples, {"__key__": "none", "txt": "a thing"}])
    inputs = open_inputs(tmp_path, "isnet-general-use")
    for i, suffix in enumerate(SUFFIXES):
        rgba, about = inputs.picture(i, 0, 40)
        check(rgba, RED)
        opaque = suffix in (".jpg", ".jpeg", ".bmp")
        matte = {"matte": "isnet-general-use"} if opaque else {}
        assert about == {"source": f"k{i}", "caption": "a thing"} | matte
    assert set(green_screen) == {"isnet-general-use"}
    with pytest.raises(UserError, match=r"none in .*a\.tar holds no picture"):
        inputs.picture(len(SUFFIXES), 0, 40)


def test_parquet_rows_in_any_order(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    colours = [(30 * i, 200 - 20 * i, 90) for i in range(8)]
    rows: list = [picture(c, ".png") for c in colours]
    rows[2], rows[5] = b"broken", None
    (tmp_path / "deep").mkdir()
    table = pyarrow.table({"text": list("abcdef"), "img": rows[:6]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    parquet.write_table(pyarrow.table({"png": pyarrow.array([], pyarrow.binary())}), tmp_path / "b.parquet")
    structs = [{"bytes": r, "path": ""} for r in rows[6:]]
    parquet.write_table(pyarrow.table({"image": structs}), tmp_path / "deep" / "c.parquet")
    inputs = open_inputs(tmp_path)
    assert len(inputs) == 8
    names = [*(f"a.parquet row {i}" for i in range(6)), "deep/c.parquet row 0", "deep/c.parquet row 1"]
    for i in (7, 0, 4, 6, 3, 1):
        rgba, about = inputs.picture(i, 0, 40)
        check(rgba, colours[i])
        assert about == {"source": names[i]}
    with pytest.raises(UserError, match=r"/a\.parquet row 2 is not a PNG"):
        inputs.picture(2, 0, 40)
    with pytest.raises(UserError, match=r"/a\.parquet row 5 holds no picture"):
        inputs.picture(5, 0, 40)


def test_parquet_that_cannot_be_read(tmp_path, teacher, monkeypatch, capsys):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file, or is damaged"):
        open_inputs(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(command(tmp_path / "a.parquet", teacher, tmp_path / "set")) == 2
    assert capsys.readouterr().err == "error: parquet files need the extra 'data': pip install 'dd3g[data]'\n"


def test_pictures_without_alpha(tmp_path, teacher, green_screen, monkeypatch, capsys):
    folder, out = tmp_path / "in", tmp_path / "set"
    folder.mkdir()
    on_green(drawn(RED)).save(folder / "photo.png")
    drawn(BLUE).save(folder / "cut.png")
    with pytest.raises(UserError, match=r"photo\.png has no transparent pixel: cut .* or give --matte auto"):
        open_inputs(folder, "none").picture(1, 0, 40)
    check(open_inputs(folder, "none").picture(0, 0, 40)[0], BLUE)

    assert main(command(folder, teacher, out, "--per-shard", "1")) == 0
    mattes = {q.meta["source"]: q.meta.get("matte") for q in Quadruples(out)}
    assert mattes == {"cut.png": None, "photo.png": "u2netp"}
    assert json.loads((out / "simulate.json").read_text())["matte"] == "u2netp"
    assert main(command(folder, teacher, out, "--per-shard", "1", "--matte", "u2netp")) == 0
    capsys.readouterr()
    for other in ("isnet-general-use", "none"):
        assert main(command(folder, teacher, out, "--per-shard", "1", "--matte", other)) == 2
        assert f"other settings: matte u2netp (now {other})" in capsys.readouterr().err
    # Sets that were begun before there was a choice take up the first one.
    before = json.loads((out / "simulate.json").read_text())
    (out / "simulate.json").write_text(json.dumps({k: v for k, v in before.items() if k != "matte"}))
    assert main(command(folder, teacher, out, "--per-shard", "1")) == 0
    assert json.loads((out / "simulate.json").read_text()) == before

    Image.new("RGB", (64, 64), GREEN).save(folder / "nothing.png")
    with pytest.raises(UserError, match=r"u2netp found no object in .*nothing\.png"):
        open_inputs(folder).picture(1, 0, 40)


def test_a_missing_matting_model_stops_the_run(tmp_path, teacher, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    on_green(drawn(RED)).save(tmp_path / "in" / "photo.png")
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    from dd3g.picture.matting import _u2netp_session

    _u2netp_session.cache_clear()
    with pytest.raises(MatteError):
        open_inputs(tmp_path / "in").picture(0, 0, 40)
    assert main(command(tmp_path / "in", teacher, tmp_path / "set")) == 2
    error = capsys.readouterr().err
    assert "photo.png has no transparent pixel" in error and "dd3g models fetch u2netp" in error
    assert not list((tmp_path / "set").glob("*.tar"))


def test_names_and_sizes_that_sets_in_progress_were_begun_with(tmp_path):
    """Flat folders must go on to be known by the same hash."""
    write_renders(tmp_path / "renders", count=1, size=16)
    (tmp_path / "flat").mkdir()
    for name in ("b.png", "a.webp"):
        (tmp_path / "flat" / name).write_bytes(b"12345")
    for folder in ("renders", "flat"):
        files = sorted((tmp_path / folder).iterdir())
        listing = "\n".join(f"{f.name} {f.stat().st_size}" for f in files)
        expected = hashlib.sha256(listing.encode()).hexdigest()[:16]
        assert open_inputs(tmp_path / folder).fingerprint == expected
    assert open_inputs(tmp_path / "renders").matte == "none"
    before = open_inputs(tmp_path / "flat").fingerprint
    (tmp_path / "flat" / "deep").mkdir()
    (tmp_path / "flat" / "b.png").rename(tmp_path / "flat" / "deep" / "b.png")
    assert open_inputs(tmp_path / "flat").fingerprint != before
    (tmp_path / "flat" / "to-nowhere.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="to-nowhere.png does not exist"):
        open_inputs(tmp_path / "flat").picture(1, 0, 40)


def test_unfinished_shards_of_the_factory_are_left_out(tmp_path):
    data = picture(RED, ".png")
    write_shard(tmp_path / "pictures-00000.tar", [{"__key__": "a", "png": data}])
    write_shard(tmp_path / "parts" / "pictures-00001" / "0.tar", [{"__key__": "b", "png": data}])
    assert len(open_inputs(tmp_path)) == 2
    (tmp_path / "options.json").write_text("{}")
    assert len(open_inputs(tmp_path)) == 1


def test_places_that_are_no_folders(tmp_path, teacher, capsys):
    (tmp_path / "a.png").write_bytes(picture(RED, ".png"))
    for url in ("s3://bucket/set", "gs://bucket/set", "memory://set"):
        assert main(command(url, teacher, tmp_path / "set")) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {url} is a URL") and error.count("\n") == 1
        assert f"dd3g data merge {url} -o FOLDER" in error
        assert main(command(tmp_path / "a.png", teacher, url)) == 2
        assert capsys.readouterr().err.startswith(f"error: {url} is a URL: give a folder")
    write_shard(tmp_path / "b.tar", [{"__key__": "a", "txt": "hello"}])
    assert main(command(tmp_path, teacher, tmp_path / "set")) == 2
    assert "holds 1 shards (*.tar), 1 pictures: give a folder of one kind" in capsys.readouterr().err
    assert main(command(tmp_path / "teacher", teacher, tmp_path / "set")) == 2
    assert "holds no pictures: give a folder of pictures (.png, " in capsys.readouterr().err
