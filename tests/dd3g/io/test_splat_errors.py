"""Splat files that are bad, and places that cannot be written to."""

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins.splat_files import example
from test_splats import GOLDEN

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import packed, splats


@pytest.mark.parametrize("format", splats.FORMATS)
def test_truncated_files_end_in_one_clear_line(tmp_path, format):
    data = (GOLDEN / f"gaussians.{format}").read_bytes()
    path = tmp_path / f"broken.{format}"
    for length in (0, 1, 3, 17, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        if format == "splat" and length and length % 32 == 0:
            continue
        with pytest.raises(UserError, match="broken") as caught:
            splats.load(path)
        if format in ("ply", "glb") and length == len(data) - 1:
            assert "it ends too early: " in str(caught.value)
            assert str(caught.value).endswith("; copy or download it again")
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("format", splats.FORMATS)
def test_damaged_and_foreign_files_never_raise_anything_else(tmp_path, format):
    golden = (GOLDEN / f"gaussians.{format}").read_bytes()
    path = tmp_path / f"damaged.{format}"
    draw = np.random.default_rng(0)
    damaged = [b"\x89PNG\r\n\x1a\n" + bytes(56), b"hello world, this is text, and not Gaussians at all"]
    for _ in range(150):
        copy = bytearray(golden)
        for place in draw.integers(0, len(copy), 3):
            copy[place] = draw.integers(0, 256)
        damaged.append(bytes(copy))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            splats.load(path)
        except UserError:
            refused += 1
    assert refused >= (1 if format == "splat" else 2)


def test_glb_with_stretched_nodes_or_log_scales_is_refused(tmp_path):
    data = splats.encode(example(), "glb")
    size = struct.unpack_from("<I", data, 12)[0]
    path = tmp_path / "x.glb"
    text = data[20 : 20 + size].replace(b'"nodes":[{"mesh":0}]', b'"nodes":[{"mesh":0,"scale":[2,2,3]}]')
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, len(data) - size + len(text))
    path.write_bytes(head + struct.pack("<I4s", len(text), b"JSON") + text + data[20 + size :])
    with pytest.raises(UserError, match="its nodes mirror the splats, or stretch them"):
        splats.load(path)
    document = json.loads(data[20 : 20 + size])
    view = document["bufferViews"][
        document["meshes"][0]["primitives"][0]["attributes"]["KHR_gaussian_splatting:SCALE"]
    ]
    draft = bytearray(data)
    struct.pack_into("<f", draft, 28 + size + view["byteOffset"], -4.6)
    path.write_bytes(draft)
    with pytest.raises(UserError, match="drafts"):
        splats.load(path)


def glb(text: bytes) -> bytes:
    """The golden file's values below another description."""
    golden = (GOLDEN / "gaussians.glb").read_bytes()
    content = golden[20 + struct.unpack_from("<I", golden, 12)[0] :]
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(content), len(text), b"JSON")
    return head + text + content


def test_glb_made_to_exhaust_the_reader(tmp_path):
    path = tmp_path / "x.glb"
    path.write_bytes(glb(b'{"a":' + 100_000 * b"["))
    with pytest.raises(
        UserError, match=r"not a \.glb file that can be read: its header is broken \(maximum rec"
    ):
        splats.load(path)
    golden = (GOLDEN / "gaussians.glb").read_bytes()
    document = json.loads(golden[20 : 20 + struct.unpack_from("<I", golden, 12)[0]])
    path.write_bytes(glb(json.dumps(document).encode()))
    assert len(splats.load(path)) == 3
    for accessor, view in zip(document["accessors"], document["bufferViews"], strict=True):
        accessor["count"], view["byteStride"] = 10**15, 0
    path.write_bytes(glb(json.dumps(document).encode()))
    with pytest.raises(UserError, match="its byteStride 0 is less than one value"):
        splats.load(path)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(
        UserError, match="unknown format 'obj': use one of ply, compressed.ply, splat, spz, sog, glb"
    ):
        example().save(tmp_path / "x.obj")
    with pytest.raises(
        UserError, match="a name without suffix tells no format: let it end in .ply, .compressed.ply,"
    ):
        example().save(tmp_path / "x")
    with pytest.raises(UserError, match="unknown axes 'sideways': use one of opencv, opengl, zup"):
        example().save(tmp_path / "x.ply", axes="sideways")
    with pytest.raises(UserError, match="cannot read .*No such file"):
        splats.load(tmp_path / "none.ply")
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        splats.load(tmp_path / "folder.ply")
    assert splats.save(example(), tmp_path / "named.bin", format="ply").read_bytes().startswith(b"ply\n")


def test_what_a_file_does_not_hold(tmp_path):
    one = example()
    for batch, channels in ((True, 3), (False, 4)):
        colors = torch.zeros(len(one), channels)
        parts = [one.means, one.quats, one.scales, one.opacities, colors]
        other = Gaussians(*(part[None] if batch else part for part in parts))
        with pytest.raises(UserError, match="a file holds one object of three colour channels, got colours"):
            other.save(tmp_path / "x.ply")
    with pytest.raises(TypeError, match="means must be a tensor, got ndarray"):
        Gaussians(*(part.numpy() for part in parts))
    assert list(tmp_path.iterdir()) == []


def test_nothing_left_to_write(tmp_path):
    faint = example().select(torch.tensor([3, 4]))
    with pytest.raises(UserError, match="none of the 2 Gaussians"):
        faint.save(tmp_path / "x.ply")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    old = splats.save(example(), tmp_path / "x.ply").read_bytes()
    write = Path.write_bytes

    def fill(self, data):
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    for name in ("x.ply", "y.glb"):
        with pytest.raises(UserError, match="the disk is full; free some space"):
            splats.save(example(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ply"]
    assert (tmp_path / "x.ply").read_bytes() == old


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_read_only_folder(tmp_path, monkeypatch, number):
    def refuse(self, data):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="no permission in .*choose a folder you can write to"):
        splats.save(example(), tmp_path / "x.ply")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="the superuser writes to read-only folders"
)
def test_really_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission"):
        splats.save(example(), tmp_path / "x.ply")
    tmp_path.chmod(0o700)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        splats.save(example(), tmp_path / "file" / "x.ply")
    (tmp_path / "x.ply").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        splats.save(example(), tmp_path / "x.ply")


@pytest.mark.parametrize("version", ["read", "write"])
def test_an_spz_needs_room_for_temporary_files(tmp_path, monkeypatch, version):
    """gsply knows files alone; its core tells of a full disk in its own way."""
    gsply = packed.load_gsply()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def short(*_, **__):
        raise RuntimeError("Short write on SPZ file")

    def no_room(path, _):
        raise OSError(*full.args, str(path))

    if version == "write":
        monkeypatch.setattr(gsply, "write_spz", short)
        with pytest.raises(UserError, match="no room for temporary files in .*set TMPDIR to another folder"):
            splats.save(example(), tmp_path / "a.spz")
        assert list(tmp_path.iterdir()) == []
    else:
        monkeypatch.setattr(Path, "write_bytes", no_room)
        with pytest.raises(OSError, match="No space left"):
            splats.load(GOLDEN / "gaussians.spz")


def test_a_file_too_large_for_the_memory_is_not_said_to_be_damaged(monkeypatch):
    def greedy(*_):
        np.empty(1 << 60, np.uint8)

    for format, reader in (("ply", splats.ply), ("spz", packed.load_gsply())):
        monkeypatch.setattr(reader, {"ply": "decode", "spz": "read_spz"}[format], greedy)
        with pytest.raises(UserError, match="too large for this machine's memory, or its header is broken"):
            splats.load(GOLDEN / f"gaussians.{format}")
