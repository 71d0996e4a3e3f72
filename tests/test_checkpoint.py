from __future__ import annotations

import errno
import json
import os
import pickle

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dd3g.errors import UserError
from dd3g.nn import checkpoint
from dd3g.nn.checkpoint import load_weights, read_config, save_folder

CONFIG = {"kind": "generator", "width": 3}


def module(seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    made[1].num_batches_tracked += 7
    return made


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_round_trip(tmp_path, dtype):
    written, read = module(0), module(1)
    folder = save_folder(tmp_path / "a" / "b", written, CONFIG, dtype)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    stored = load_file(folder / "model.safetensors")
    assert stored["0.weight"].dtype == (dtype or torch.float32)
    assert stored["1.num_batches_tracked"].dtype == torch.int64
    load_weights(folder, read)
    for name, tensor in written.state_dict().items():
        found = read.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(
            found, tensor.to(dtype).to(tensor.dtype) if dtype and tensor.is_floating_point() else tensor
        )
    assert read_config(folder, "generator") == CONFIG


def test_views_of_one_storage_can_be_saved(tmp_path):
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    load_weights(
        save_folder(tmp_path, tied, CONFIG), nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"kind": "teacher"}', "{}", "\udcff", 100_000 * "["],
    ids=["empty", "cut", "list", "null", "teacher", "nothing", "bytes", "deep"],
)
def test_a_config_of_something_else(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path, "generator")


def test_a_missing_config(tmp_path):
    with pytest.raises(UserError, match="a generator folder holds config.json and model.safetensors"):
        read_config(tmp_path, "generator")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(tmp_path, keep):
    path = save_folder(tmp_path, module(), CONFIG) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    before = module(1).state_dict()
    target = module(1)
    with pytest.raises(UserError, match="not a complete safetensors file.*copy the checkpoint again"):
        load_weights(tmp_path, target)
    assert all(torch.equal(target.state_dict()[n], t) for n, t in before.items())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_are_never_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="safetensors") as error:
        load_weights(tmp_path, module())
    assert name in str(error.value) and not (tmp_path / "exploded").exists()


def test_foreign_tensors(tmp_path):
    state = module().state_dict()
    cases = {
        "missing": {n: t for n, t in state.items() if n != "0.bias"},
        "extra": state | {"2.weight": torch.zeros(1)},
        "shape": state | {"0.weight": torch.zeros(4, 5)},
    }
    for tensors in cases.values():
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match="does not fit its config: 1 tensors differ"):
            load_weights(tmp_path, module())


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_safetensors(state, path, metadata=None):
    path.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("broken", [full_disk, full_safetensors])
def test_nothing_half_written_when_the_disk_is_full(tmp_path, monkeypatch, broken):
    save_folder(tmp_path, module(0), CONFIG)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(UserError, match="space"):
        save_folder(tmp_path, module(1), CONFIG | {"width": 9})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match="space"):
        save_folder(tmp_path / "new", module(1), CONFIG)
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_folder(tmp_path / "file" / "model", module(), CONFIG)


def test_config_is_plain_json(tmp_path):
    save_folder(tmp_path, module(), CONFIG | {"shape": (1, 2)})
    assert json.loads((tmp_path / "config.json").read_text())["shape"] == [1, 2]
