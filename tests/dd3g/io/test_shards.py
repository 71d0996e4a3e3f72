from __future__ import annotations

import io
import os
import pickle
import signal
import tarfile
import time

import pytest

from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard


def samples(n: int, start: int = 0) -> list[dict]:
    return [
        {"__key__": f"item{i:03d}", "json": '{"i": %d}' % i, "rgba.png": bytes([i]) * (700 + i), "empty": b""}
        for i in range(start, start + n)
    ]


def test_round_trip_in_sorted_order(tmp_path):
    write_shard(tmp_path / "b-00001.tar", samples(3, start=5))
    write_shard(tmp_path / "b-00000.tar", samples(5))
    shards = Shards(tmp_path)
    assert [p.name for p in shards.paths] == ["b-00000.tar", "b-00001.tar"]
    assert len(shards) == 8
    assert [shards.key(i) for i in range(8)] == [f"item{i:03d}" for i in range(8)]
    for i in (7, 0, 4, -1):
        expected = samples(8)[i]
        assert shards[i] == {**expected, "json": expected["json"].encode()}
    assert shards.where(5).name == "b-00001.tar"
    with pytest.raises(IndexError):
        shards[8]
    assert list(Shards([tmp_path / "b-00001.tar"]))[0]["__key__"] == "item005"
    write_shard(tmp_path / "more" / "a-00000.tar", samples(2, start=8))
    several = Shards([tmp_path, tmp_path / "more", tmp_path / "b-00000.tar"])
    assert [several.key(i)[-1] for i in range(len(several))] == list("012345678901234")
    assert several.where(-1).name == "b-00000.tar"
    assert pickle.loads(pickle.dumps(shards))[2] == shards[2]


def test_shards_that_were_packed_again_or_copied_by_a_mac(tmp_path):
    """`tar -C folder .` begins each name with ./, and ._NAME lies beside each file, in tars too."""
    samples = [{"__key__": f"v1.0/object{i}", "json": b"{}", "rgba.png": bytes([i])} for i in range(3)]
    with tarfile.open(tmp_path / "a-00000.tar", "w") as tar:
        for sample in samples:
            for extension in ("json", "rgba.png"):
                for name in (f"./{sample['__key__']}.{extension}", f"./v1.0/._{extension}"):
                    member = tarfile.TarInfo(name)
                    member.size = len(sample[extension])
                    tar.addfile(member, io.BytesIO(sample[extension]))
    (tmp_path / "._a-00000.tar").write_bytes(b"\0\5\x16\7")
    assert list(Shards(tmp_path)) == samples


def test_same_samples_give_the_same_bytes(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.tar", samples(4))
    monkeypatch.setattr(time, "time", lambda: 2e9)  # a tar stores seconds
    write_shard(tmp_path / "c.tar", samples(4))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}


def test_webdataset_reads_it(tmp_path):
    import webdataset

    write_shard(tmp_path / "a.tar", samples(3))
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [r["__key__"] for r in read] == ["item000", "item001", "item002"]
    assert read[2]["rgba.png"] == bytes([2]) * 702


@pytest.mark.parametrize("bad", [{"json": "{}"}, {"__key__": "a.b", "x": b""}, {"__key__": "a"}])
def test_bad_samples_leave_nothing_behind(tmp_path, bad):
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "a.tar", [*samples(1), bad])
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "a.tar", samples(1) * 2)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="holds no shards"):
        Shards(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Shards(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no shards were given"):
        Shards([])


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Permission denied"):
        Shards(tmp_path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, samples(2))
    whole = path.read_bytes()
    content = whole.rstrip(b"\0")
    for length in [0, 1, 511, 512, 513, 1024, 1500, 2048, 4096, len(content) // 2, len(content) // 512 * 512]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tar is damaged .*delete it and run the same command again"):
            Shards(tmp_path)


def test_damaged_header_in_the_middle_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, samples(3))
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 16] = b"\xff" * 16
    path.write_bytes(data)
    with pytest.raises(UserError, match="delete it"):
        Shards(tmp_path)
    path.write_text("this is no tar")
    with pytest.raises(UserError, match="delete it"):
        Shards(tmp_path)


@pytest.mark.parametrize("hole", ["member", "page"])
def test_a_damaged_member_costs_its_sample_where_that_is_allowed(tmp_path, hole):
    path = tmp_path / "a.tar"
    write_shard(path, samples(4))
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    start = members[3].offset  # of item001's first member
    data = bytearray(path.read_bytes())
    size = 512 if hole == "member" else members[5].offset_data - start
    data[start : start + size] = bytes(size)  # what tarfile takes for the end
    path.write_bytes(data)
    with pytest.raises(UserError, match="does not end as a tar does"):
        Shards(tmp_path)
    for shards in (found := Shards(tmp_path, tolerant=True), pickle.loads(pickle.dumps(found))):
        there = {s["__key__"]: s for s in shards}
        assert [there[f"item{i:03d}"]["rgba.png"] for i in (0, 2, 3)] == [
            bytes([i]) * (700 + i) for i in (0, 2, 3)
        ]
        left = {"__key__", "json", "rgba.png"} if hole == "member" else set()
        assert set(there.get("item001", ())) == left
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="delete it"):
        Shards(tmp_path, tolerant=True)


def test_shard_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, samples(3))
    shards = Shards(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="shorter"):
        shards[2]
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        shards[0]


def test_kill_leaves_no_torn_shard(tmp_path):
    path = tmp_path / "a.tar"

    def killed():
        for i in range(1000):
            yield {"__key__": f"k{i}", "bin": bytes(20000)}
            if i == 50:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            write_shard(path, killed())
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not path.exists()
    with pytest.raises(UserError, match="holds no shards"):
        Shards(tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_shard(tmp_path / "file" / "a.tar", samples(1))
