from __future__ import annotations

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from stand_ins.made_up_dataset import contents, made_set, verdicts

from data_gen.__main__ import main as commands
from data_gen.reports import verify as verifying
from data_gen.reports.verify import verify
from data_gen.shards.manifest import ShardManifest
from data_gen.shards.storage import Storage
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard

pytestmark = pytest.mark.usefixtures("filters")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "set"
    with pytest.MonkeyPatch.context() as patch:
        verdicts(patch)
        made_set(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "set")


def rewrite(folder, change):
    """Change the samples of the first shard and let its manifest believe the new checksum."""
    tar = folder / "pictures-00000.tar"
    samples = change([dict(s) for s in Shards(tar)])
    write_shard(tar, samples)
    manifest = ShardManifest.read(Storage(folder), 0)
    manifest.bytes, manifest.sha256 = tar.stat().st_size, hashlib.sha256(tar.read_bytes()).hexdigest()
    manifest.write(Storage(folder))
    return samples


def png(rgba):
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, format="PNG")
    return file.getvalue()


def problems(folder):
    return verify(Storage(folder), threads=2)["problems"]


def test_a_good_set(folder, capsys):
    report = verify(Storage(folder), threads=2)
    index = json.loads((folder / "index.json").read_text())
    assert report == {
        "output": str(folder),
        "shards": 3,
        "pictures": index["pictures"],
        "missing": 20 - index["pictures"],
        "problems": [],
        "ok": True,
    }
    assert verifying.main([str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"good: {index['pictures']} pictures in 3 shards, ")


def test_a_bucket(monkeypatch):
    storage = made_set("memory://bucket/verify")
    assert verify(storage)["ok"]
    tar = storage.read("pictures-00001.tar")
    storage.write("pictures-00001.tar", tar[:-700])
    assert any("pictures-00001.tar has another checksum" in p for p in verify(storage)["problems"])


def test_flipped_bytes(folder, capsys):
    tar = folder / "pictures-00001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 255
    tar.write_bytes(data)
    assert verifying.main([str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert "pictures-00001.tar has another checksum than its .json: delete both" in report["problems"][0]
    assert "cannot be decoded" in report["problems"][1]


def test_a_torn_shard(folder):
    tar = folder / "pictures-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    assert any("pictures-00000.tar is torn or damaged: delete it" in p for p in problems(folder))


@pytest.mark.parametrize("suffix", [".tar", ".json"])
def test_a_missing_file(folder, suffix):
    (folder / f"pictures-00001{suffix}").unlink()
    assert f"pictures-00001{suffix} is not there: run the command that makes the set again" in problems(
        folder
    )


def test_what_does_not_belong(folder):
    (folder / "pictures-00007.tar").write_bytes((folder / "pictures-00000.tar").read_bytes())
    assert "pictures-00007.tar does not belong to the set: move it away" in problems(folder)


def test_an_unfinished_shard(folder):
    Storage(folder).write("parts/pictures-00001/00-00000.tar", b"")
    assert "parts/pictures-00001 belongs to an unfinished shard" in problems(folder)[0]


def changed(**more):
    def change(samples):
        samples[0] |= more
        return samples

    return change


def record_changed(**more):
    def change(samples):
        samples[0]["json"] = json.dumps(json.loads(samples[0]["json"]) | more)
        return samples

    return change


OPAQUE = np.full((16, 16, 4), 255, np.uint8)
OTHER = np.pad(np.arange(14 * 14 * 4, dtype=np.uint8).reshape(14, 14, 4) | 128, ((1, 1), (1, 1), (0, 0)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (changed(png=b"no picture"), "cannot be decoded"),
        (changed(png=png(OPAQUE)), "has no valid matte: its alpha lies between 255 and 255"),
        (changed(png=png(OPAQUE * 0)), "has no valid matte: its alpha lies between 0 and 0"),
        (changed(png=png(OPAQUE[..., :3])), "is RGB of 16x16 pixels, not RGBA of 16x16"),
        (changed(png=png(OTHER[:8])), "is RGBA of 16x8 pixels, not RGBA of 16x16"),
        (changed(png=png(OTHER)), "has a hash that is not the picture's"),
        (changed(json="{"), "cannot be decoded"),
        (record_changed(seed=1), "has another seed than the shard's .json"),
        (record_changed(id="0"), "has another id than the shard's .json"),
        (lambda samples: samples[1:], "pictures-00000.tar holds other pictures than its .json lists"),
        (lambda samples: samples[::-1], "pictures-00000.tar holds other pictures than its .json lists"),
    ],
)
def test_a_picture_that_is_not_right(folder, change, problem):
    rewrite(folder, change)
    found = problems(folder)
    assert (
        problem in found[0] and len(found) == 2 and found[1].startswith("index.json does not describe this")
    )


def edit(folder, change, shard=0):
    path = folder / f"pictures-{shard:05d}.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_an_id_that_is_there_twice(folder):
    for suffix in (".tar", ".json"):
        data = (folder / f"pictures-00000{suffix}").read_bytes()
        (folder / f"pictures-00001{suffix}").write_bytes(data)
    edit(folder, lambda s: s.update(shard=1), 1)
    found = problems(folder)
    first = Shards(folder / "pictures-00000.tar").key(0)
    assert f"{first} appears 2 times" in found
    assert any("prompts have neither picture nor reason" in p for p in found)
    assert any(f"nearly repeats {first}" in p for p in found)


def test_counts_that_are_wrong(folder):
    edit(folder, lambda s: s.update(count=99))
    assert "pictures-00000.json is damaged (it describes shard 0 with 99 pictures)" in "\n".join(
        problems(folder)
    )


def test_a_stranger_and_a_contradiction(folder):
    one = Shards(folder / "pictures-00001.tar").key(0)
    edit(folder, lambda s: s["missing"].update({"f" * 16: "blur", one: "blur"}))
    found = problems(folder)
    assert (
        "ffffffffffffffff is not a prompt of the set" in found
        and f"{one} is both present and listed as missing" in found
    )


DAMAGED = [
    lambda s: s["records"][0].update(hash="xyz"),
    lambda s: s["records"][0].update(hash=None),
    lambda s: s["records"][0].pop("group"),
    lambda s: s["records"][0].update(scores={"sharpness": "very"}),
    lambda s: s["records"].__setitem__(0, "a"),
    lambda s: s["rejections"][0].pop("reason"),
    lambda s: s["rejections"][0].update(reason="duplicate"),
    lambda s: s.update(missing=[]),
    lambda s: s.update(missing={"a": 1}),
    lambda s: s.update(made={"licence": []}),
    lambda s: s.update(seconds={"draw": "long"}),
    lambda s: s.update(bytes="many"),
]


@pytest.mark.parametrize("change", DAMAGED)
def test_a_damaged_manifest_is_one_line_everywhere(folder, change, tmp_path, capsys):
    edit(folder, change)
    assert any(p.startswith(f"{folder}/pictures-00000.json is damaged (") for p in problems(folder))
    with pytest.raises(UserError, match="pictures-00000.json is damaged .*delete it and pictures-00000.tar"):
        made_set(folder)
    assert commands(["merge", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert commands(["stats", str(folder), "-o", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr().err.count("pictures-00000.json is damaged (") == 2


def test_a_manifest_of_other_prompts(folder):
    edit(folder, lambda s: s["records"][0].update(id="f" * 16))
    with pytest.raises(UserError, match="pictures-00000.json lists ffffffffffffffff, no prompt of its"):
        made_set(folder)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"text": "no id"}', b'{"id": 3, "text": ""}', b"\xff"])
def test_damaged_prompts_are_one_line_everywhere(folder, line, tmp_path, capsys):
    with open(folder / "prompts.jsonl", "ab") as stream:
        stream.write(line + b"\n")
    advice = f"delete {folder}/prompts.jsonl and run the command that made the set again"
    [problem] = [p for p in problems(folder) if "line 21: no prompt (" in p]
    assert problem.endswith(advice)
    assert commands(["merge", str(folder), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "line 21: no prompt (" in error and advice in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("shard_size", "x"), ("shard_size", 0), ("filters.duplicate_distance", 99), ("shards", None)],
)
def test_damaged_options_are_one_line_everywhere(folder, key, value, tmp_path, capsys):
    path = folder / "options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert verifying.main([str(folder)]) == 2
    assert commands(["merge", str(folder), "-o", str(tmp_path / "out")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert f"options.json is damaged ({key} is {json.dumps(value)}): delete it and run" in line


def test_renders_are_no_set_of_pictures(tmp_path, capsys):
    (tmp_path / "options.json").write_text('{"size": 64, "mesh files": "0"}')
    for words in (["verify"], ["stats"], ["merge", "-o", str(tmp_path / "out")]):
        assert commands([words[0], str(tmp_path), *words[1:]]) == 2
        assert "holds renders of `dd3g data render`" in capsys.readouterr().err


def test_other_options(folder):
    edit(folder, lambda s: s.update(options="0"))
    assert "pictures-00000.tar was made with other options than the set" in problems(folder)


def test_write_index(folder, capsys):
    before = contents(folder)
    (folder / "index.json").write_text("{}")
    (folder / "README.md").unlink()
    assert verifying.main([str(folder)]) == 1
    assert "write it with verify --write-index" in capsys.readouterr().err
    assert verifying.main([str(folder), "--write-index"]) == 0
    assert contents(folder) == before


def test_what_is_no_set(tmp_path, capsys):
    assert verifying.main([str(tmp_path)]) == 2
    assert "is not a set of pictures, it has no options.json" in capsys.readouterr().err
