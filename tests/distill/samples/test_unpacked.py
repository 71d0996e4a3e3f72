"""Renders as plain arrays: the same samples without decoding, for every process of a node."""

from __future__ import annotations

import os
import pickle
from dataclasses import fields

import pytest
import torch
from stand_ins.tiny_objects import write_renders
from stand_ins.training_runs import files

from dd3g.errors import UserError
from distill.samples import renders, unpacked
from distill.samples.render_samples import RenderDataset
from distill.samples.renders import RenderedObjects
from distill.samples.unpacked import UnpackedRenders


def same(a, b):
    values = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else torch.equal(x.viewmats, y.viewmats)
               and torch.equal(x.Ks, y.Ks) for x, y in values)  # fmt: skip


def test_samples_are_those_of_cached_renders_without_a_picture_decoded(tmp_path, monkeypatch):
    folder = write_renders(tmp_path / "renders", volumes=True)
    cached, plain = RenderedObjects(folder, cached=True), UnpackedRenders(folder, tmp_path / "disk")
    folders = RenderedObjects(folder)  # as with workers
    for index in range(6):
        a, b = (RenderDataset(objects, 3, (4, 4, 4, 4))[index] for objects in (cached, folders))
        assert same(a, b)
    monkeypatch.setattr(renders, "split_sheet", lambda *_: pytest.fail("decoded"))
    a, b = (RenderDataset(objects, 3, (4, 4, 4, 4)) for objects in (cached, plain))
    for index in range(12):
        assert same(a[index], b[index])
    for one, other in zip(cached, plain, strict=True):
        assert one.meta == other.meta and torch.equal(one.volume, other.volume)
    assert [plain.meta(i)["id"] for i in range(3)] == [cached.meta(i)["id"] for i in range(3)]
    # A later run, and a worker process, find the arrays.
    assert same(b[5], RenderDataset(UnpackedRenders(folder, tmp_path / "disk"), 3, (4, 4, 4, 4))[5])
    stored = pickle.dumps(plain)
    assert len(stored) < 1000 and len(pickle.loads(stored)) == 3
    assert not (tmp_path / "disk/.lock").exists()


def test_a_changed_shard_is_decoded_again_and_a_cut_run_goes_on(tmp_path, monkeypatch):
    folder, disk = write_renders(tmp_path / "renders"), tmp_path / "disk"
    before = UnpackedRenders(folder, disk)[0].rgba.clone()
    made = files(disk)
    write_renders(folder, size=16)
    os.utime(folder / "renders-00000.tar", ns=(1, 1))
    assert UnpackedRenders(folder, disk)[0].rgba.shape[-1] == 16 != before.shape[-1]
    assert made.items() <= files(disk).items() and len(files(disk)) == 4
    calls = []
    for name in ("replacing", "write_text"):
        write = getattr(unpacked, name)
        monkeypatch.setattr(unpacked, name, lambda *words, f=write: calls.append(words) or f(*words))
    for path in disk.glob("*.jsonl"):
        path.unlink()  # as if killed before the last write
    UnpackedRenders(folder, disk)
    assert len(calls) == 2


def test_arrays_that_the_system_cleaned_up(tmp_path):
    """Those of temporary folders vanish in time: a sample names them, the next start decodes them again."""
    folder, disk = write_renders(tmp_path / "renders"), tmp_path / "disk"
    before = UnpackedRenders(folder, disk)
    for path in disk.glob("*.bin"):
        path.unlink()
    with pytest.raises(UserError, match=r"renders-00000-\w+.bin cannot be read \(No such file"):
        before[0]
    assert torch.equal(UnpackedRenders(folder, disk)[0].rgba, RenderedObjects(folder)[0].rgba)


def test_a_damaged_object_is_named_when_it_is_asked_for(tmp_path):
    """Also by a later run, and by a worker process."""
    folder = write_renders(tmp_path / "renders")
    path = folder / "renders-00000.tar"
    content = bytearray(path.read_bytes())
    place = content.rindex(b"\x89PNG") + 60
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    first = UnpackedRenders(folder, tmp_path / "disk")
    for objects in (first, UnpackedRenders(folder, tmp_path / "disk"), pickle.loads(pickle.dumps(first))):
        assert len(objects) == 3 and torch.equal(objects[1].rgba, RenderedObjects(folder)[1].rgba)
        assert objects.meta(2)["id"] == "object2"
        with pytest.raises(UserError, match="object2 in shard"):
            objects[2]
