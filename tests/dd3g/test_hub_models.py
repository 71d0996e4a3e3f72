from __future__ import annotations

import fnmatch
import hashlib

import huggingface_hub
import pytest

from dd3g import models
from dd3g.errors import UserError
from dd3g.hub_models import HUB_MODELS, HubModel, commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": b"{}",
    "pipeline.py": b"raise SystemExit('never fetched')",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "tokenizer/merges.txt": b"a b",
}
DIGEST = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository; `asked` counts the calls that would use the network."""
    folder = tmp_path / "models--a--b" / "snapshots" / COMMIT
    asked: list[list[str]] = []

    def snapshot_download(repo, revision, allow_patterns, local_files_only):
        if not local_files_only:
            asked.append(allow_patterns)
            for name, content in FILES.items():
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
        if not folder.exists():
            raise FileNotFoundError("not in the cache")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return folder, asked


def model(**keys):
    return HubModel("a/b", ("unet/*.safetensors",), 7_000_000, "OpenRAIL", "testing", **keys)


def test_fetched_once_and_never_any_code(hub):
    folder, asked = hub
    assert model().path() is None and not asked
    assert model(sha256={"unet/diffusion_pytorch_model.safetensors": DIGEST}).fetch() == folder
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == set(FILES) - {"pipeline.py", "unet/diffusion_pytorch_model.bin"}
    assert model().path() == folder == model().fetch()
    assert len(asked) == 1
    assert commit_of(folder) == COMMIT and commit_of(folder.parent) is None


def test_a_half_fetched_model_is_not_there(hub):
    folder, asked = hub
    model().fetch()
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert model().path() is None
    model().fetch()
    assert len(asked) == 2 and model().path() == folder


def test_another_file_than_expected_is_refused(hub):
    with pytest.raises(UserError, match="expected 0000000000000000…: delete it"):
        model(sha256={"unet/diffusion_pytorch_model.safetensors": "0" * 64}).fetch()


def test_a_licence_that_binds_is_told(hub, capsys):
    model(notice="forbids commercial use").fetch()
    told = "warning: a/b: forbids commercial use\n", "fetching once: a/b, 7 MB, licence OpenRAIL\n"
    assert capsys.readouterr().err == "".join(told)
    model(notice="forbids commercial use").fetch()
    assert capsys.readouterr().err == told[0]
    assert "NC" in HUB_MODELS["zero123plus"].licence and "commercial" in HUB_MODELS["zero123plus"].notice
    assert "commercial" in HUB_MODELS["zero123plus-white"].notice


def test_no_network(monkeypatch):
    def fail(*_, local_files_only, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"the hub did not give a/b \(no route\).* give its path"):
        model().fetch()
    with pytest.raises(UserError, match=r"`dd3g models fetch imagedream` \(3,990 MB, OpenRAIL\)"):
        models.require_model("imagedream")


def test_where_asking_is_forbidden(hub, monkeypatch, capsys):
    """Nobody is asked, whoever wants the model; size and licence are told all the same."""
    _, asked = hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="a/b, 7 MB, licence OpenRAIL: .* HF_HUB_OFFLINE forbids"):
        model().fetch()
    unlisted = HubModel("a/b", ("unet/*.safetensors",), 0, "", "testing")
    with pytest.raises(UserError, match="of a size that is not known, licence not known"):
        unlisted.fetch()
    assert not asked and not capsys.readouterr().err


def test_the_command(hub, monkeypatch, capsys):
    folder, _ = hub
    monkeypatch.setattr(models, "MODELS", {"large": model()})
    assert models.main(["list"]) == 0 and "missing" in capsys.readouterr().out
    assert models.main(["fetch", "large"]) == 0
    assert capsys.readouterr().out == f"large: {folder}\n"
    assert models.main(["list"]) == 0 and "here" in capsys.readouterr().out


def test_digests_are_whole():
    for name, one in HUB_MODELS.items():
        assert all(len(digest) == 64 and int(digest, 16) for digest in one.sha256.values()), name
        assert one.size > 1e8 and one.repo.count("/") == 1 and one.files, name
