from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dd3g.errors import UserError
from dd3g.nn import checkpoint
from dd3g.nn.checkpoint import SHIPPED, build, load_weights, read_config, save_folder
from dd3g.pepd.elevation import ElevationNet
from dd3g.pepd.generator import Generator
from dd3g.pose.body.bodies import Body
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.prior import Prior
from dd3g.pose.networks.rotation_denoiser import RotationDenoiser
from distill.teachers.analytic import AnalyticTeacher
from distill.teachers.compact import CompactTeacher

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


def test_the_folder_of_a_run_is_told_from_its_model(tmp_path):
    save_folder(tmp_path / "run/model", module(), CONFIG)
    (tmp_path / "run/checkpoint-8").mkdir()
    for given in ("run", "run/checkpoint-8"):
        with pytest.raises(UserError, match=f"{given}: no config.json there; give .*run/model$"):
            read_config(tmp_path / given, "generator")


@dataclass
class Options:
    width: int = 3

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width {self.width} must be positive")


def test_a_config_becomes_a_model(tmp_path):
    made = build(tmp_path, CONFIG, Options, lambda options: nn.Linear(options.width, 2))
    assert made.in_features == 3
    with pytest.raises(UserError, match=r"options that this version does not know \(depth, hidden\)"):
        build(tmp_path, CONFIG | {"hidden": 3, "depth": 1}, Options, lambda options: nn.Linear(3, 2))
    for value in (0, "wide", None):
        with pytest.raises(UserError, match="does not build a generator .*copy the checkpoint again"):
            build(tmp_path, {"kind": "generator", "width": value}, Options, lambda options: None)
    with pytest.raises(UserError, match="does not build a generator"):
        build(tmp_path, CONFIG, Options, lambda options: nn.Linear(-options.width, 2))


LOADERS = {
    "nano": Generator, "nano-teacher": CompactTeacher, "analytic": AnalyticTeacher, "pose-prior": Prior,
    "pose-lifter": GraphLifter, "pose-difficulty": Difficulty, "pose-recovery": RotationDenoiser,
    "pose-body": Body, "elevation": ElevationNet,
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_no_loader_passes_over_an_option(tmp_path, name):
    config = {"kind": "teacher", "teacher": "analytic"}
    if name != "analytic":
        config = json.loads((SHIPPED / name / "config.json").read_text())
    for stray in ("hidden_size", "condition_king"):
        (tmp_path / "config.json").write_text(json.dumps(config | {stray: 1}))
        with pytest.raises(UserError, match=rf"does not know \({stray}\)"):
            LOADERS[name].from_pretrained(tmp_path)


def test_options_within_options(tmp_path):
    config = json.loads((SHIPPED / "nano" / "config.json").read_text())
    for bounds, message in (
        ({"offset": 0.1, "nearest": 1}, r"does not know \(nearest\)"),
        ([0.6, 2.2], "where options must be"),
        (None, "where options must be"),
        ({"depth_near": "close"}, "does not build"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"bounds": bounds}))
        with pytest.raises(UserError, match=message):
            Generator.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(tmp_path, keep):
    path = save_folder(tmp_path, module(), CONFIG) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    before = module(1).state_dict()
    target = module(1)
    with pytest.raises(UserError, match="not a complete safetensors file.*copy the checkpoint again"):
        load_weights(tmp_path, target)
    assert all(torch.equal(target.state_dict()[n], t) for n, t in before.items())


def test_a_part_that_was_not_copied(tmp_path):
    """Is no reason to convert anything; nor is what Git LFS leaves in its place."""
    save_folder(tmp_path, module(), CONFIG, file_bytes=60)
    part = next(tmp_path.glob("model-*-of-*.safetensors"))
    part.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=f"{part.name} is a pointer of Git LFS: run"):
        load_weights(tmp_path, module())
    part.unlink()
    with pytest.raises(UserError, match=f"{part.name}: missing: the copy is not whole"):
        load_weights(tmp_path, module())


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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_colleagues_may_read_what_the_umask_lets_them(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = save_folder(tmp_path / "model", module(), CONFIG)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}
