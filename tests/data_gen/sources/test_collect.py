"""`dd3g data collect`: from a folder of all sorts to shards, killed, resumed, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from stand_ins.collected import on_green, pixels, records, shapes

from data_gen import collect as module
from data_gen.__main__ import main
from data_gen.collect import CollectConfig, collect
from data_gen.filters import mattes
from data_gen.reports.verify import verify
from data_gen.shards.dataset import options_fingerprint
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from data_gen.sources.pictures import open_source
from dd3g.fingerprint import fingerprint
from dd3g.io.shards import write_shard


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
        assert f"{name} could not be opened" in said.err
    assert said.err.endswith("to include them, repair them and collect into another --output\n")
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
    assert one["id"] == fingerprint("plain 1.png")
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
    shapes(1)[0].save(tmp_path / "bare/a.png")
    for _ in range(2):  # the output lies in the source, and is no source of the second run
        assert main(["collect", str(tmp_path / "bare"), "-o", str(tmp_path / "bare/set")]) == 0
    assert options_fingerprint({"a": 1}) != options_fingerprint({"a": 2})
