"""Other revisions of published models than the newest: by name or hub id, out of the hub's own cache."""

from __future__ import annotations

import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from stand_ins.published_teachers import with_tokenizer
from stand_ins.tiny_lgm import save_lgm, tiny_lgm

from dd3g import models
from dd3g.errors import UserError
from dd3g.fingerprint import folder_fingerprint
from dd3g.hub_models import HUB_MODELS, listed
from distill.lgm import load_lgm
from distill.model_card import made_by, write_card
from distill.teachers import load, published, zero123plus
from distill.teachers.published import Source, find_source
from distill.train import DistillConfig

COMMIT = "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which is not asked; a function puts a folder there, as revision v1."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def place(repo, folder):
        home = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / COMMIT)
        (home / "refs").mkdir()
        (home / "refs/v1").write_text(COMMIT)
        return home / "snapshots" / COMMIT

    return place


@pytest.mark.parametrize("revision", ["v1", COMMIT])
@pytest.mark.parametrize("name", ["imagedream", "mvdream", "ashawkey/imagedream-ipmv-diffusers", "some/one"])
def test_a_teacher_and_its_card(cache, folders, tmp_path, name, revision):
    model = listed(name)
    kind = "mvdream" if name == "mvdream" else "imagedream"
    there = cache(model.repo if model else name, with_tokenizer(folders[kind], tmp_path))
    repo, licence = (model.repo, "OpenRAIL") if model else (name, "openrail")
    wanted = {"teacher": kind, "source": repo, "revision": COMMIT, "licence": licence}
    wanted["weights"] = folder_fingerprint(there)
    assert load(f"{name}@{revision}").about == wanted
    assert made_by(f"{name}@{revision}") == f" (source {repo}, revision {COMMIT}, licence {licence})"
    if model:
        assert models.fetch(f"{name}@{revision}") == there == models.model_path(f"{name}@{revision}")
    for other in (name, f"{name}@v2"):
        with pytest.raises(UserError, match=f"{other}: no such folder, and .*HF_HUB_OFFLINE forbids"):
            load(other)


def test_the_card_of_what_starts_from_one(cache, folders, tmp_path):
    cache("ashawkey/imagedream-ipmv-diffusers", with_tokenizer(folders["imagedream"], tmp_path))
    config = DistillConfig()
    write_card(tmp_path, replace(config, start=replace(config.start, teacher="imagedream@v1")), 7)
    known = f"source ashawkey/imagedream-ipmv-diffusers, revision {COMMIT}, licence OpenRAIL"
    assert f"- phase 1: `imagedream@v1` ({known})\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["zero123plus", "zero123plus-v1.1"])
def test_zero123plus(cache, folders, name):
    cache(HUB_MODELS[name].repo, folders["zero123plus"])
    about = load(f"{name}@v1").about
    assert about["revision"] == COMMIT and about["licence"] == HUB_MODELS[name].licence
    assert ("notice" in about) == (name == "zero123plus")


def test_the_white_network_has_the_revision(monkeypatch, folders):
    asked = []
    source = Source(folders["zero123plus"], "a/b", None, "")
    monkeypatch.setattr(published, "find_source", lambda name: asked.append(name) or source)
    monkeypatch.setattr(zero123plus, "Zero123PlusTeacher", lambda *three: torch.nn.Linear(len(three), 1))
    assert load("zero123plus-white@v1").in_features == 3
    assert asked == ["zero123plus", "zero123plus-white@v1"]
    assert listed(asked[1]).revision == "v1" and listed(asked[1]).repo == "TencentARC/InstantMesh"


def test_lgm(cache, tmp_path):
    cache("ashawkey/LGM", save_lgm(tmp_path / "lgm", tiny_lgm()).parent)
    assert load_lgm("lgm@v1").state_dict().keys() == tiny_lgm().state_dict().keys()
    with pytest.raises(UserError, match="ashawkey/LGM, 830 MB, .*HF_HUB_OFFLINE forbids"):
        load_lgm("lgm@v2")


def test_names_that_are_none(cache):
    for name in ("imagedream@", "ashawkey/imagedream-ipmv-diffusers@"):
        for find in (find_source, models.fetch):
            with pytest.raises(UserError, match=f"{name} names no revision"):
                find(name)
    assert find_source("nonsense@v1") is None and listed("imagedream").sha256 and not listed("lgm@v1").sha256
    for name in ("u2netp@v1", "nonsense@v1"):
        with pytest.raises(UserError, match=f"no model is called '{name}'"):
            models.fetch(name)
