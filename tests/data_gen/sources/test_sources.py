"""Parquet, shards and renders as sources of pictures."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from stand_ins.collected import encoded, pixels, records, shapes
from stand_ins.tiny_objects import write_renders

from data_gen.collect import CollectConfig, collect
from data_gen.filters.rules import FilterConfig
from data_gen.reports.verify import verify
from data_gen.shards.storage import Storage
from data_gen.sources.pictures import open_source
from dd3g.cameras import ELEVATION
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard


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
    # An id that is no text.
    whole = Shards(tmp_path / "renders")[0]
    about = json.dumps(json.loads(whole["json"]) | {"id": 5})
    write_shard(tmp_path / "bad" / "renders-00000.tar", [whole | {"__key__": "object0", "json": about}])
    with pytest.raises(UserError, match="object0 in .* is not a rendered object"):
        collect(CollectConfig(str(tmp_path / "bad"), **loose | {"output": str(tmp_path / "none")}))


def test_distill_reads_them_all(tmp_path, folder, green_screen):
    from distill.simulation.inputs import open_inputs

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
