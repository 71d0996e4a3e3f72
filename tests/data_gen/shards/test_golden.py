"""The layout of a set, as a reader that knows nothing of this code finds it: plain tarfile, json and Pillow.

A change here is a change of the format: sets that exist would no longer be what the code expects.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_gen.synthesize import main

GOLDEN = Path(__file__).parents[2] / "golden" / "data_gen"
CONFIG = Path(__file__).parents[3] / "configs" / "data_gen" / "shapes.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three prompts at 24 pixels."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "prompts.txt").write_text("a red fox\na blue chair\na wooden boat\n")
    words = ["--config", str(CONFIG), f"prompts={folder / 'prompts.txt'}", f"output={folder / 'set'}"]
    words += ["seed=7", "size=24", "model.height=48", "model.call_options.faulty=0.5", "attempts=2"]
    assert main(words) == 0
    return folder / "set"


VARYING = {"seconds", "bytes", "sha256", "scores", "options"}  # with time, zlib, filters and options


def told(path):
    """A JSON file without the values that vary."""

    def kept(value):
        if isinstance(value, dict):
            return {k: "varies" if k in VARYING else kept(v) for k, v in value.items()}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return kept(json.loads(path.read_text()))


def members(path):
    with tarfile.open(path, "r:") as tar:
        return [(m, tar.extractfile(m).read()) for m in tar.getmembers()]


def test_files(made):
    assert sorted(p.name for p in made.iterdir()) == [
        "README.md", "index.json", "options.json", "pictures-00000.json", "pictures-00000.tar",
        "prompts.jsonl",
    ]  # fmt: skip
    assert (made / "prompts.jsonl").read_text() == (GOLDEN / "prompts.jsonl").read_text()


@pytest.mark.parametrize("name", ["pictures-00000.json", "index.json"])
def test_json_files(made, name):
    assert told(made / name) == told(GOLDEN / name)


def test_the_tar(made):
    """Names, order, headers, records but for scores, and pixels: how PNG is packed is up to zlib."""
    ours, kept = members(made / "pictures-00000.tar"), members(GOLDEN / "pictures-00000.tar")
    assert [m.name for m, _ in ours] == [m.name for m, _ in kept]
    for (member, data), (_, old) in zip(ours, kept, strict=True):
        assert (member.mtime, member.mode, member.uname, member.gname) == (0, 0o644, "", "")
        assert (member.uid, member.gid, member.isfile()) == (0, 0, True)
        if member.name.endswith(".json"):
            a, b = json.loads(data), json.loads(old)
            assert list(a) == list(b) and {**a, "scores": 0} == {**b, "scores": 0}
        else:
            a, b = (Image.open(io.BytesIO(d)) for d in (data, old))
            assert a.format == "PNG" and a.mode == b.mode == "RGBA" and a.size == b.size == (24, 24)
            assert a.tobytes() == b.tobytes()


def test_manifest_and_records_tell_of_the_tar(made):
    """The stored set and a new one, read by what their format means."""
    for folder in (GOLDEN, made):
        data = (folder / "pictures-00000.tar").read_bytes()
        manifest = json.loads((folder / "pictures-00000.json").read_text())
        index = json.loads((folder / "index.json").read_text())
        assert (len(data), hashlib.sha256(data).hexdigest()) == (manifest["bytes"], manifest["sha256"])
        assert index["shards"][0]["sha256"] == manifest["sha256"] and index["pictures"] == manifest["count"]
        names = [m.name for m, _ in members(folder / "pictures-00000.tar")]
        assert names == [f"{r['id']}.{e}" for r in manifest["records"] for e in ("json", "png")]
        ids = [json.loads(line)["id"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
        texts = (b"a red fox", b"a blue chair", b"a wooden boat")
        assert ids == [hashlib.sha256(t).hexdigest()[:16] for t in texts]
        assert set(ids) == {r["id"] for r in manifest["records"]} | set(manifest["missing"])
        for member, content in members(folder / "pictures-00000.tar"):
            if member.name.endswith(".json"):
                record = json.loads(content)
                seed = hashlib.sha256(f"7:{record['id']}:{record['attempt']}".encode()).digest()[:6]
                assert record["seed"] == int.from_bytes(seed, "big")
                [known] = [r for r in manifest["records"] if r["id"] == record["id"]]
                assert all(record[k] == known[k] for k in ("seed", "attempt", "hash", "scores"))
