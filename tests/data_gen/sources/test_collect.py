from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from stand_ins.tiny_objects import write_renders

from data_gen import collect as module
from data_gen.__main__ import main
from data_gen.collect import CollectConfig, collect
from data_gen.filters import mattes
from data_gen.filters.rules import FilterConfig, judge, measure
from data_gen.picture_models.shapes import Shapes
from data_gen.reports.verify import verify
from data_gen.shards.options import options_fingerprint
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from data_gen.sources.items import named_id
from data_gen.sources.pictures import open_source
from dd3g.cameras import ELEVATION
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard

GREEN = (0, 255, 0)


def shapes(count: int) -> list[Image.Image]:
    """Different pictures with alpha that all filters let through, with room."""
    strict = FilterConfig(max_colourfulness=90, min_sharpness=0.4, min_contrast=5, min_coverage=0.1)
    found: list[Image.Image] = []
    seed = 0
    while len(found) < count:
        [image] = Shapes(faulty=0, repeated=0).draw([f"a thing of number {seed}"], [seed])
        cut = mattes.matte_and_frame(image, mattes.MatteConfig(size=64))
        if cut and not judge(measure(cut), strict):
            found.append(image)
        seed += 1
    return found


def on_green(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (*GREEN, 255)), image).convert("RGB")


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format)
    return stream.getvalue()


@pytest.fixture
def green_screen(monkeypatch):
    """A matting model for pictures on green."""

    def predict(image, model, threads):
        away = np.abs(np.asarray(image, np.int16) - GREEN).sum(-1) > 60
        return Image.fromarray(np.where(away, 255, 0).astype(np.uint8))

    monkeypatch.setattr(mattes, "predict_matte", predict)


@pytest.fixture
def folder(tmp_path):
    """Eight pictures that can be used, five that cannot be opened, three that the filters leave out."""
    root = tmp_path / "pictures"
    (root / "cups").mkdir(parents=True)
    (root / ".hidden").mkdir()
    good = shapes(8)
    for i in range(4):
        good[i].save(root / f"plain {i}.png")
    good[4].save(root / "cups" / "cup.webp", lossless=True)
    on_green(good[5]).save(root / "cups" / "photo.jpg", quality=95)
    on_green(good[6]).save(root / "photo.BMP")
    good[7].resize((300, 300)).save(root / "large.png")
    (root / "cut.png").write_bytes(encoded(good[0])[:500])
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("this is no picture")
    Image.new("RGBA", (64, 64)).save(root / "clear.png")
    Image.new("RGB", (3, 3)).save(root / "tiny.png")
    speck = Image.new("RGBA", (128, 128))
    speck.paste((200, 90, 40, 255), (60, 60, 66, 66))
    speck.save(root / "speck.png")
    Image.new("RGB", (64, 64), GREEN).save(root / "only green.png")
    good[0].save(root / "twin.png")
    good[1].save(root / ".hidden" / "x.png")
    (root / "notes.txt").write_text("not a picture")
    lines = [
        {
            "file_name": "plain 1.png",
            "text": "a  red\tthing",
            "license": "CC-BY-4.0",
            "noun": "thing",
            "x": 3,
        },
        {"file": "cups/cup.webp", "caption": "a cup", "category": "vessels", "model": "a camera"},
        {"file_name": "nowhere.png", "text": "lost"},
    ]
    rows = [*map(json.dumps, lines), "{", "[1]", '{"text": "no file"}']
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


def records(output) -> dict[str, dict]:
    shards = Shards(output)
    found = [json.loads(shards[i]["json"]) for i in range(len(shards))]
    assert [r["id"] for r in found] == [shards.key(i) for i in range(len(shards))]
    return {r["source"]: r for r in found}


def pixels(output) -> dict[str, np.ndarray]:
    shards = Shards(output)
    samples = (shards[i] for i in range(len(shards)))
    return {json.loads(s["json"])["source"]: np.array(Image.open(io.BytesIO(s["png"]))) for s in samples}


def tars(output) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(output.glob("*.tar"))}


def test_folder(tmp_path, folder, green_screen, capsys):
    out = tmp_path / "set"
    words = ["collect", str(folder), "--output", str(out), "--shard-size", "6", "size=64", "licence=CC0-1.0"]
    assert main(words) == 1  # some could not be opened
    said = capsys.readouterr()
    assert said.out.startswith("8 of 16 pictures in 3 shards in ")
    assert "1 duplicate, 1 no_object, 1 small, 5 unreadable" in said.out
    for name in ("cut.png", "empty.png", "text.jpg", "clear.png", "tiny.png"):
        assert f"could not be opened: {name}" in said.err
    assert said.err.endswith("to have these too, repair them and collect into another --output\n")
    assert f"skipped {folder / 'cut.png'} is damaged or cut short" in said.err
    for line, why in ((4, "is not a JSON object"), (5, "is not a JSON object"), (6, "has no file_name")):
        assert f"line {line}, {why}" in said.err
    assert "describes nowhere.png, which is not there" in said.err

    found = records(out)
    assert sorted(found) == sorted([
        "cups/cup.webp", "cups/photo.jpg", "large.png", "photo.BMP", "plain 0.png", "plain 1.png",
        "plain 2.png", "plain 3.png",
    ])  # fmt: skip
    one = found["plain 1.png"]
    assert one["id"] == named_id("plain 1.png")
    assert (one["prompt"], one["noun"], one["licence"]) == ("a red thing", "thing", "CC-BY-4.0")
    assert (one["model"], one["matte"], one["size"], one["attempt"]) == ("collected", "own alpha", 64, 0)
    assert one["group"] == "" and found["cups/photo.jpg"]["group"] == "cups"
    cup = found["cups/cup.webp"]
    assert (cup["prompt"], cup["group"], cup["model"], cup["licence"]) == ("a cup", "vessels", "a camera", "CC0-1.0")  # noqa: E501  # fmt: skip
    assert found["cups/photo.jpg"]["matte"] == found["photo.BMP"]["matte"] == "u2netp"
    for rgba in pixels(out).values():
        assert rgba.shape == (64, 64, 4)
        rows = np.flatnonzero((rgba[..., 3] >= 26).any(1))
        columns = np.flatnonzero((rgba[..., 3] >= 26).any(0))
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - 0.8 * 64) <= 2

    report = verify(Storage(out))
    assert report["ok"] and report["pictures"] == 8 and report["missing"] == 8, report["problems"]
    index = json.loads((out / "index.json").read_text())
    assert index["made"]["licence"] == {"CC-BY-4.0": 1, "CC0-1.0": 7}
    assert "- CC-BY-4.0\n- CC0-1.0" in (out / "README.md").read_text()

    before = tars(out)
    assert main([*words, "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["drawn"] == 0 and len(again["unreadable"]) == 5 and tars(out) == before
    assert main([*words, "matte.decontaminate=false"]) == 2
    assert "matte.decontaminate was true, now false" in capsys.readouterr().err
    (folder / "plain 0.png").unlink()
    assert main(words) == 2
    assert "started with other options: source was " in capsys.readouterr().err


def test_photos_keep_their_colours(tmp_path, green_screen):
    (shape,) = shapes(1)
    for name, image in (("alpha", shape), ("photo", on_green(shape))):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png")
        config = CollectConfig(str(tmp_path / name), str(tmp_path / f"{name}-set"))
        assert collect(config)["pictures"] == 1
    alpha, photo = (pixels(tmp_path / f"{n}-set")["x.png"].astype(int) for n in ("alpha", "photo"))
    both = (alpha[..., 3] == 255) & (photo[..., 3] == 255)
    assert both.mean() > 0.1
    assert np.abs(alpha - photo)[both].mean() < 4
    assert np.abs(alpha[..., 3] - photo[..., 3]).mean() < 4


def test_the_matting_model_is_asked_for_only_when_a_picture_needs_it(tmp_path, monkeypatch):
    events = []

    def predict(image, model, threads):
        events.append(image.size)
        return Image.new("L", image.size, 255)

    monkeypatch.setattr(mattes, "predict_matte", predict)
    monkeypatch.setattr(ProcessGroup, "device", lambda self, name: events.append(name))
    source = tmp_path / "pictures"
    source.mkdir()
    cut, *photos = shapes(3)
    cut.save(source / "a.png")
    collect(CollectConfig(str(source), str(tmp_path / "cut"), device="cuda:1"))
    assert events == []
    for name, image in zip("bc", photos, strict=True):
        on_green(image).save(source / f"{name}.png")
    collect(CollectConfig(str(source), str(tmp_path / "all"), device="cuda:1", batch_size=1))
    # Once, on the thread that knows the GPU, before the threads that cut out.
    assert events == ["cuda:1", (32, 32), photos[0].size, photos[1].size]


def test_killed_and_started_again(tmp_path, monkeypatch):
    source = tmp_path / "pictures"
    source.mkdir()
    for i, image in enumerate(shapes(14)):
        image.save(source / f"{i:02d}.png")

    def config(name: str, **more) -> CollectConfig:
        return CollectConfig(str(source), str(tmp_path / name), shard_size=8, batch_size=2, **more)

    assert collect(config("whole"))["pictures"] == 14
    opened: list[str] = []
    real = open_source

    def counting(*args):
        found = real(*args)
        inner = found.open

        def opening(item):
            opened.append(item.name)
            if len(opened) == 11:
                raise KeyboardInterrupt
            return inner(item)

        found.open = opening
        return found

    monkeypatch.setattr(module, "open_source", counting)
    with pytest.raises(KeyboardInterrupt):
        collect(config("killed"))
    assert "pictures-00000.tar" in tars(tmp_path / "killed")
    collect(config("killed"))
    assert tars(tmp_path / "killed") == tars(tmp_path / "whole")
    assert len(opened) <= 11 + 6 and set(opened[:8]).isdisjoint(opened[11:])
    # Two machines, one after the other, make the same set as one.
    words = ["collect", str(source), f"--output={tmp_path / 'two'}", "shard_size=8", "batch_size=2"]
    for rank, code in (("1", 3), ("0", 0), ("1", 0)):
        assert main([*words, "--rank", rank, "--world", "2"]) == code
    assert tars(tmp_path / "two") == tars(tmp_path / "whole")
    assert collect(config("limited", limit=5))["asked"] == 5


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = tmp_path / "tables"
    (source / "deep").mkdir(parents=True)
    good = shapes(7)
    rows = [{"bytes": encoded(im), "path": "x.png"} for im in good[:5]]
    rows[2] = {"bytes": b"broken", "path": None}
    rows.append(None)
    table = {"image": rows, "text": [f"thing {i}" for i in range(6)], "license": ["MIT"] * 6, "n": range(6)}
    parquet.write_table(pyarrow.table(table), source / "a.parquet", row_group_size=2)
    parquet.write_table(pyarrow.table({"png": [encoded(i) for i in good[5:]]}), source / "deep" / "b.parquet")
    report = collect(CollectConfig(str(source), str(tmp_path / "set")))
    assert (report["pictures"], report["missing"]) == (6, {"unreadable": 2})
    assert report["unreadable"] == ["a.parquet row 2", "a.parquet row 5"]
    found = records(tmp_path / "set")
    assert list(found) == [*(f"a.parquet row {i}" for i in (0, 1, 3, 4)), *(f"deep/b.parquet row {i}" for i in (0, 1))]  # fmt: skip  # noqa: E501
    assert [r["prompt"] for r in found.values()] == ["thing 0", "thing 1", "thing 3", "thing 4", "", ""]
    assert {r["licence"] for r in found.values()} == {"MIT", "unknown"}
    assert verify(Storage(tmp_path / "set"))["ok"]

    parquet.write_table(pyarrow.table({"words": ["a"]}), source / "c.parquet")
    with pytest.raises(UserError, match="has the columns words: one of image,"):
        open_source(source)
    (source / "c.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match=r"c\.parquet is not a parquet file, or is damaged"):
        open_source(source)


def test_shards_of_pictures(tmp_path):
    good = shapes(5)
    about = json.dumps({"prompt": "a red thing", "licence": "MIT", "model": "painter", "group": "things"})
    write_shard(tmp_path / "in" / "a.tar", [
        {"__key__": "abc-1", "png": encoded(good[0]), "json": about},
        {"__key__": "with_line", "webp": encoded(good[1], "WEBP"), "txt": "a blue thing"},
        {"__key__": "nothing", "json": "{}"},
        {"__key__": "damaged", "png": b"x", "json": "{"},
    ])  # fmt: skip
    write_shard(tmp_path / "in" / "b.tar", [{"__key__": "abc-1", "png": encoded(good[2])}])
    report = collect(CollectConfig(str(tmp_path / "in"), str(tmp_path / "set")))
    assert report["unreadable"] == ["nothing in a.tar", "damaged in a.tar"]
    found = records(tmp_path / "set")
    assert list(found) == ["abc-1 in a.tar", "with_line in a.tar", "abc-1 in b.tar"]
    first, second, third = found.values()
    assert (first["id"], first["prompt"], first["model"]) == ("abc-1", "a red thing", "painter")
    assert second["prompt"] == "a blue thing" and len({first["id"], second["id"], third["id"]}) == 3
    # A set is a source like any other; what is framed already hardly changes.
    assert collect(CollectConfig(str(tmp_path / "set"), str(tmp_path / "again")))["pictures"] == 3
    once, twice = pixels(tmp_path / "set"), pixels(tmp_path / "again")
    for a, b in zip(once.values(), twice.values(), strict=True):
        assert np.abs(a[..., 3].astype(int) - b[..., 3]).mean() < 1.5
    write_shard(tmp_path / "other" / "a.tar", [{"__key__": "a", "npz": b""}])
    with pytest.raises(UserError, match="its samples hold npz; expected pictures"):
        open_source(tmp_path / "other")


def test_rendered_objects(tmp_path):
    write_renders(tmp_path / "renders", count=3, size=48)
    loose = {"output": str(tmp_path / "set"), "views": 3}
    config = CollectConfig(str(tmp_path / "renders"), **loose)
    config.filters = FilterConfig(duplicate_distance=-1, min_contrast=0, min_sharpness=0)
    config.matte.size = 48
    report = collect(config)
    assert report["asked"] == 9 and report["pictures"] == 9, report
    found = records(tmp_path / "set")
    assert all(name == f"{r['object']} view {r['view']}" for name, r in found.items())
    assert {r["elevation"] for r in found.values()} == {ELEVATION}
    assert len({(r["object"], r["azimuth"]) for r in found.values()}) == 9
    assert {r["style"] for r in found.values()} == {"scan", "game"}
    assert {r["prompt"] for r in found.values()} == {"object"}  # words of the id
    # The view itself, framed anew.
    sheet = Image.open(io.BytesIO(Shards(tmp_path / "renders")[0]["rgba.png"]))
    view = next(r["view"] for r in found.values() if r["object"] == "object0")
    cell = np.array(sheet.crop((48 * view, 0, 48 * view + 48, 48)))
    stored = pixels(tmp_path / "set")[f"object0 view {view}"]
    means = [a[..., :3][a[..., 3] > 250].mean(0) for a in (cell, stored)]
    assert np.abs(means[0] - means[1]).max() < 6
    assert verify(Storage(tmp_path / "set"))["ok"]


def test_distill_reads_them_all(tmp_path, folder, green_screen):
    from distill.inputs import open_inputs

    collect(CollectConfig(str(folder), str(tmp_path / "set"), shard_size=6))
    stored = pixels(tmp_path / "set")
    inputs = open_inputs(tmp_path / "set")
    assert len(inputs) == 8
    for i, rgba in enumerate(stored.values()):
        picture, about = inputs.picture(i, seed=0, size=256)
        assert picture.shape == (4, 256, 256) and about["source"] == Shards(tmp_path / "set").key(i)
        difference = np.abs(picture.permute(1, 2, 0).numpy() * 255 - rgba)
        assert difference[..., 3].mean() < 4
    plain = tmp_path / "plain"
    plain.mkdir()
    for i, rgba in enumerate(stored.values()):
        Image.fromarray(rgba).save(plain / f"{i}.png")
    assert len(open_inputs(plain)) == 8
    for i in range(8):
        same = open_inputs(plain).picture(i, 0, 64)[0]
        assert (same == inputs.picture(i, 0, 64)[0]).all()
    write_renders(tmp_path / "renders", count=2, size=32)
    renders = open_inputs(tmp_path / "renders")
    assert len(renders) == 2 and renders.picture(1, 5, 32)[0].shape == (4, 32, 32)


def test_useless_sources(tmp_path, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shapes(1)[0].save(mixed / "a.png")
    write_shard(mixed / "a.tar", [{"__key__": "a", "png": b""}])
    (tmp_path / "bare").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.tar").write_bytes((mixed / "a.tar").read_bytes()[:700])
    (tmp_path / "file.txt").write_text("")
    out = str(tmp_path / "set")
    for words, why in (
        ([str(mixed), "-o", out], "holds 1 shards (*.tar), 1 pictures: give a folder of one kind"),
        ([str(tmp_path / "bare"), "-o", out], "holds no pictures: give a folder of pictures (.png, "),
        ([str(tmp_path / "cut"), "-o", out], "is damaged"),
        ([str(tmp_path / "file.txt"), "-o", out], "holds no pictures: give a folder of pictures (.png, "),
        ([str(tmp_path / "nowhere"), "-o", out], "does not exist"),
        ([str(mixed)], "output is not set"),
        (["--output", out], "source is not set"),
        ([str(mixed), "-o", out, "views=0"], "views must be at least 1"),
        ([str(mixed), "-o", out, "shard_size=200000"], "shard_size must be between 1 and 100000, got 200000"),
        ([str(mixed), "-o", out, "no.such=1"], "configuration"),
        ([str(mixed / "a.png"), "-o", str(tmp_path / "file.txt" / "set")], "file.txt"),
        ([str(mixed / "a.png"), "-o"], "'-o': expected --key value"),
        ([str(mixed / "a.png"), "-o", out, "--rank", "0"], "belong together"),
    ):
        assert main(["collect", *words]) == 2, words
        said = capsys.readouterr().err
        assert why in said and said.startswith("error: ") and said.count("\n") == 1, said
    assert not (tmp_path / "set").exists()
    # One picture, and a path that the configuration would read as something else.
    odd = tmp_path / "[1] {a}=b"
    odd.mkdir()
    shapes(1)[0].save(odd / "null.png")
    assert main(["collect", str(odd / "null.png"), "-o", str(odd / "out=1")]) == 0
    assert list(records(odd / "out=1")) == ["null.png"]
    assert options_fingerprint({"a": 1}) != options_fingerprint({"a": 2})
