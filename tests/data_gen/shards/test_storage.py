from __future__ import annotations

import errno
import ftplib
import hashlib
import os
import resource
import signal

import pytest

from data_gen.shards.storage import Storage
from dd3g.errors import UserError
from dd3g.io.shards import Shards


@pytest.fixture(params=["folder", "file", "dir", "memory"])
def storage(request, tmp_path):
    urls = {
        "folder": str(tmp_path / "set"),
        "file": f"file://{tmp_path}/set",
        "dir": f"dir::file://{tmp_path}/set",
        "memory": f"memory://{tmp_path.name}/set",  # one store serves the whole process
    }
    return Storage(urls[request.param])


def test_files_come_back(storage):
    assert storage.names() == [] and storage.names("parts") == [] and not storage.exists("a.json")
    storage.write("a.json", "{}")
    storage.write("parts/x/0001.tar", b"123")
    storage.write("a.json", "[1]")
    assert storage.names() == ["a.json", "parts"] and storage.names("parts/x") == ["0001.tar"]
    assert (storage.read("a.json"), storage.read("parts/x/0001.tar")) == (b"[1]", b"123")
    with storage.reading("a.json", "parts/x/0001.tar") as paths:
        assert [p.read_bytes() for p in paths] == [b"[1]", b"123"]
    storage.delete("a.json", "never.there")
    assert storage.names() == ["parts"] and storage.exists("parts/x/0001.tar")


def test_what_is_not_there_is_named(storage):
    with pytest.raises(UserError, match=r"cannot read .*set/none.json: it does not exist"):
        storage.read("none.json")


def test_shards_are_the_same_everywhere(storage):
    samples = [{"__key__": f"k{i}", "png": bytes([i]) * 700, "json": "{}"} for i in range(3)]
    size, checksum = storage.write_shard("pictures-00000.tar", iter(samples))
    data = storage.read("pictures-00000.tar")
    assert (size, checksum) == (len(data), hashlib.sha256(data).hexdigest())
    with storage.reading("pictures-00000.tar") as [path]:
        assert [s["png"][0] for s in Shards(path)] == [0, 1, 2]


def test_urls_of_local_files_need_no_copies(tmp_path):
    for url in (f"file://{tmp_path}/s", f"dir::file://{tmp_path}/s", str(tmp_path / "s")):
        assert Storage(url).folder == tmp_path / "s"
    assert Storage("memory://a").folder is None


@pytest.mark.parametrize(("url", "message"), [("s3://b/p", "s3fs"), ("nowhere://x", "nowhere")])
def test_unknown_places(url, message):
    with pytest.raises(UserError, match=message):
        Storage(url)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("a.json", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(UserError, match="the disk is full; free some space"):
        storage.write("a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and storage.read("a.json") == b"old"


def test_a_full_disk(tmp_path):
    storage = Storage(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*big.bin: the disk is full"):
            storage.write("big.bin", bytes(20_000))
        with pytest.raises(UserError, match=r"cannot write .*big.tar"):
            storage.write_shard("big.tar", [{"__key__": "a", "bin": bytes(20_000)}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a part of the path is a file"):
        Storage(tmp_path / "file" / "set").check_writable(".rank-0")
    with pytest.raises(UserError, match="cannot write /proc/set/.rank-0: its folder cannot be created"):
        Storage("/proc/set").check_writable(".rank-0")


def test_a_bucket_that_refuses(monkeypatch):
    storage = Storage("memory://bucket/locked")

    def refuse(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(storage._fs, "pipe_file", refuse)
    with pytest.raises(UserError, match="cannot write memory://bucket/locked/a: no credentials"):
        storage.write("a", b"")


def test_servers_that_append_get_a_temporary_name_first(monkeypatch):
    storage = Storage("memory://bucket/server")
    monkeypatch.setattr(type(storage._fs), "protocol", ("sftp", "ssh"))
    moved = []
    move = storage._fs.mv
    monkeypatch.setattr(storage._fs, "mv", lambda a, b: (moved.append((a, b)), move(a, b)))
    storage.write("x/a.json", b"1")
    assert moved == [(f"/bucket/server/x/.a.json.{os.getpid()}.tmp", "/bucket/server/x/a.json")]
    assert storage.names("x") == ["a.json"] and storage.read("x/a.json") == b"1"


def test_a_file_that_is_gone_from_a_server_is_not_removed(monkeypatch):
    """An FTP server says so by no OSError: the file is in its place, or the first error counts."""
    storage = Storage("memory://bucket/ftp")
    monkeypatch.setattr(type(storage._fs), "protocol", "ftp")

    remove = storage._fs.rm_file

    def remove_file(path):
        if not storage._fs.exists(path):
            raise ftplib.error_perm("550 File not found")
        remove(path)

    monkeypatch.setattr(storage._fs, "rm_file", remove_file)
    storage.write("a.json", b"1")
    assert storage.read("a.json") == b"1"

    def full(*_):
        raise RuntimeError("552 Disk full")

    monkeypatch.setattr(storage._fs, "mv", full)
    with pytest.raises(UserError, match="cannot write memory://bucket/ftp/b.json: 552 Disk full"):
        storage.write("b.json", b"1")


def test_a_folder_below_one_whose_name_looks_like_a_chain_of_urls(tmp_path, monkeypatch):
    (tmp_path / "x::y").mkdir()
    monkeypatch.chdir(tmp_path / "x::y")
    storage = Storage("set")
    storage.write("a.json", b"1")
    storage.write_shard("a.tar", [{"__key__": "a", "json": "{}"}])
    assert {p.name for p in (tmp_path / "x::y/set").iterdir()} == {"a.json", "a.tar"}
    assert storage.names() == ["a.json", "a.tar"]


def test_sweep_removes_what_a_killed_run_left(tmp_path):
    storage = Storage(tmp_path)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    alive = [f".pictures-00001.tar.{p}.tmp" for p in (os.getpid(), 1)]
    left = [f".pictures-0000{s}.tar.{child}.tmp" for s in (1, 2)]
    for name in (*left, *alive, "pictures-00001.tar"):
        (tmp_path / name).write_text("")
    storage.sweep("", "pictures-00001")
    assert {p.name for p in tmp_path.iterdir()} == {*alive, left[1], "pictures-00001.tar"}
    storage.write("parts/a/1.tar", b"")
    storage.sweep("parts/a")
    assert storage.exists("parts/a/1.tar")
    storage.delete("parts/a/1.tar")
    storage.sweep("parts/a")
    assert not storage.exists("parts/a")


def test_a_claim_ends_with_its_process(tmp_path):
    storage = Storage(tmp_path / "set")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with storage.claimed("rank-0"):
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    try:
        with pytest.raises(UserError, match="another process works on this set, .*set: wait for it or stop"):
            with storage.claimed("rank-0"):
                pass
        with storage.claimed("rank-1"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with storage.claimed("rank-0"):
        pass
    assert not (tmp_path / "set").exists()
