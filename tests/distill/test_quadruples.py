"""Quadruples and renders in shards: written, read back, and every kind of damage."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.tiny_objects import write_quadruples, write_renders

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard
from distill.quadruples import Quadruple, Quadruples, decode, encode, noise_of
from distill.samples.renders import RenderedObjects


@pytest.mark.parametrize("channels", [4, 3])
def test_quadruple_round_trip(channels):
    cameras = Cameras.default_rig(16)
    byte = lambda *shape: (torch.rand(*shape) * 255).round() / 255  # noqa: E731
    q = Quadruple(
        noise_of((4, 64, 4, 4), 1), cameras, byte(4, 16, 16), byte(4, channels, 16, 16), {"seed": 1}
    )
    written = encode(q, "a_00")
    assert encode(q, "a_00") == written
    back = decode({k: v.encode() if isinstance(v, str) and k != "__key__" else v for k, v in written.items()})
    for name in ("noise", "input", "outputs"):
        assert torch.allclose(getattr(back, name), getattr(q, name), atol=1e-6), name
    assert torch.equal(back.noise, q.noise)
    assert torch.equal(back.cameras.viewmats, cameras.viewmats) and torch.equal(back.cameras.Ks, cameras.Ks)
    assert back.cameras.width == 16 and back.meta == {"seed": 1, "key": "a_00"}


def test_damaged_quadruple_names_its_shard(tmp_path):
    write_shard(tmp_path / "a.tar", [{"__key__": "x", "json": "{}", "noise.npy": b"junk"}])
    with pytest.raises(UserError, match=r"x in shard .*a\.tar is not a quadruple"):
        Quadruples(tmp_path)[0]
    with pytest.raises(UserError, match="dd3g simulate"):
        Quadruples([])


HUGE = io.BytesIO()
np.lib.format.write_array_header_1_0(HUGE, {"shape": (10**15,), "fortran_order": False, "descr": "<f2"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("noise.npy", b""),
        ("noise.npy", b"PK\3\4 a zip"),
        ("noise.npy", HUGE.getvalue()),
        ("json", b"[" * 100_000),
        ("outputs.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_damaged_quadruples_never_raise_anything_else(tmp_path, name, content):
    write_quadruples(tmp_path, count=1)
    (sample,) = Shards(tmp_path)
    write_shard(tmp_path / "quadruples-00000.tar", [sample | {name: content}])
    with pytest.raises(
        UserError, match=r"q0 in shard .* is not a quadruple, or is damaged \(.*delete the shard"
    ):
        Quadruples(tmp_path)[0]


@pytest.mark.parametrize("kind", ["empty", "GIF", "bomb"])
def test_damaged_renders_never_raise_anything_else(tmp_path, monkeypatch, kind):
    write_renders(tmp_path, count=1)
    (sample,) = Shards(tmp_path)
    stream = io.BytesIO()
    Image.open(io.BytesIO(sample["rgba.png"])).save(stream, format="GIF")  # Pillow reads it, shards have PNG
    content = {"empty": b"", "GIF": stream.getvalue(), "bomb": sample["rgba.png"]}[kind]
    write_shard(tmp_path / "renders-00000.tar", [sample | {"rgba.png": content}])
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="object0 in shard .* is damaged or not a render .*delete the"):
        RenderedObjects(tmp_path)[0]


def test_noise_that_is_not_finite_names_its_shard(tmp_path):
    views = torch.zeros(4, 4, 16, 16)
    wrong = Quadruple(noise_of((4, 64, 4, 4), 0), Cameras.default_rig(16), views[0], views, {"seed": 0})
    wrong.noise[1, 2, 0, 0] = torch.inf
    write_shard(tmp_path / "a.tar", [encode(wrong, "x")])
    with pytest.raises(UserError, match=r"x in shard .*a\.tar .*it holds numbers that are not finite"):
        Quadruples(tmp_path)[0]
