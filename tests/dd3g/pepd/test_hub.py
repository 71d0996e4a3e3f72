from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from dd3g.errors import UserError
from dd3g.pepd import Generator, GeneratorConfig


def tiny():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(size=32, latent_shape=(4, 4, 4, 4), width=32, depth=0, fine=8, mid=16))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub client's own cache, without network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_weights_come_from_the_hub(cache):
    model = tiny()
    repo = cache / "models--ann--chair"
    model.save_pretrained(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    found = Generator.from_pretrained("ann/chair")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))


def test_a_repository_that_the_hub_does_not_give(cache):
    with pytest.raises(UserError, match="ann/none: no such folder, and the hub did not give it"):
        Generator.from_pretrained("ann/none")


class Hub:
    """Takes what is uploaded into a folder."""

    uploads = Path()
    calls: list[tuple] = []

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo, private=None, exist_ok=False):
        self.calls.append(("create", repo, private, exist_ok))

    def upload_folder(self, repo_id, folder_path):
        shutil.copytree(folder_path, self.uploads)
        return f"hub:{repo_id}"


def test_what_is_pushed_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "uploads", tmp_path / "up")
    monkeypatch.setattr(Hub, "calls", [])
    model = tiny()
    assert model.push_to_hub("ann/chair", token="t", private=True) == "hub:ann/chair"
    assert Hub.calls == [("token", "t"), ("create", "ann/chair", True, True)]
    names = sorted(p.name for p in (tmp_path / "up").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "up" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dd3g\n") and 'from_pretrained("ann/chair")' in card
    found = Generator.from_pretrained(tmp_path / "up")
    for a, b in zip(model.parameters(), found.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)


def test_a_hub_that_refuses(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("403 Forbidden\nrequest 7")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"ann/chair: the hub did not take the weights \(403 Forbidden\)"):
        tiny().push_to_hub("ann/chair")
