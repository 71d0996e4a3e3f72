"""One command at a time in a folder, and nothing left of those that were killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dd3g.errors import UserError
from dd3g.io.atomic import only_user, replacing
from dd3g.io.shards import write_shard

ROOT = Path(__file__).parents[3]


def killed_while(work, folder):
    """A process that does some work in a folder and is killed before it is done."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = f"import os\nfrom pathlib import Path\nfolder = Path({str(folder)!r})\n{work}"
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9


def test_a_second_command_is_told_who_holds_the_folder(tmp_path):
    with only_user(tmp_path / "new"):
        with pytest.raises(
            UserError, match=f"new is in use by process {os.getpid()} on .*, since 20"
        ) as told:
            with only_user(tmp_path / "new"):
                pass
        assert "wait for it or stop it, or choose another folder" in str(told.value)
    with only_user(tmp_path / "new"):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_has_room_for_no_name_and_the_folder_is_held_all_the_same(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with only_user(tmp_path), pytest.raises(UserError, match="is in use by another process"):
        with only_user(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path):
    killed_while(
        "from dd3g.io.atomic import only_user\nwith only_user(folder): os.kill(os.getpid(), 9)", tmp_path
    )
    assert (tmp_path / ".lock").exists()
    with only_user(tmp_path):
        pass


def test_what_killed_processes_left_is_swept(tmp_path):
    model = (
        "from dd3g.io.atomic import replacing\n"
        "with replacing(folder / 'model/model.safetensors') as part:\n"
        "    part.write_bytes(bytes(9)); os.kill(os.getpid(), 9)"
    )
    shard = (
        "from dd3g.io.shards import write_shard\n"
        "def samples():\n"
        "    yield {'__key__': 'a', 'txt': b'b'}\n"
        "    os.kill(os.getpid(), 9)\n"
        "write_shard(folder / 'x-00000.tar', samples())"
    )
    killed_while(model, tmp_path)
    killed_while(shard, tmp_path)
    with replacing(tmp_path / ".hidden.json") as part:
        part.write_text("{}")
    write_shard(tmp_path / "y-00000.tar", [{"__key__": "a", "txt": b"b"}])
    left = [p for p in tmp_path.rglob(".*") if p.name != ".hidden.json"]
    assert len(left) == 2
    with only_user(tmp_path):
        assert not any(p.exists() for p in left)
    assert (tmp_path / ".hidden.json").exists() and (tmp_path / "y-00000.tar").exists()


@pytest.mark.parametrize("why", ["system", "disk"])
def test_where_folders_cannot_be_held_only_old_files_are_swept(tmp_path, monkeypatch, why):
    """On Windows, and on disks of a network without locks: another process may be writing the others."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    old, new = (tmp_path / f".x-0000{i}.12-0123456{i}.tar" for i in range(2))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    if why == "system":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", no_locks)
    with only_user(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {new.name}
    with only_user(tmp_path / "not yet"):  # made by those who write into it
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write to .*choose another folder"),
        only_user(tmp_path / "file/x"),
    ):
        pass
