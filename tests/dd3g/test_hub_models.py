from __future__ import annotations

import fnmatch
import hashlib

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save

from dd3g import models
from dd3g.errors import UserError
from dd3g.hub_models import HUB_MODELS, PIPELINE, TEXT, TOKENIZER, HubModel, commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"w": np.arange(6.0)})
FILES = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "unet/config.json": b"{}",
    "pipeline.py": b"raise SystemExit('never fetched')",
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"a b",
}
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository; `asked` counts the calls that would use the network.

    As the hub's own client does, it links files of a cache, and takes those that are there for whole.
    """
    folder = tmp_path / "models--a--b" / "snapshots" / COMMIT
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    asked: list[list[str]] = []

    def snapshot_download(repo, revision, allow_patterns, local_files_only):
        if not local_files_only:
            asked.append(allow_patterns)
            for name, content in FILES.items():
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                    blob = blobs / hashlib.sha256(name.encode()).hexdigest()
                    if not blob.exists():
                        blob.write_bytes(content)
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    if not (folder / name).is_symlink():
                        (folder / name).symlink_to(blob)
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


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("lost", ["00001-of-00002", "00002-of-00002", "index"])
def test_a_download_that_ended_between_pieces_of_weights(hub, monkeypatch, lost, variant):
    folder, asked = hub
    stem = "unet/diffusion_pytorch_model"
    monkeypatch.delitem(FILES, f"{stem}.safetensors")
    names = [f"{stem}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names.append(f"{stem}.safetensors.index{variant}.json")
    for name in names:
        monkeypatch.setitem(FILES, name, b"{}" if name.endswith(".json") else WEIGHTS)
    assert model().fetch() == folder == model().path()
    (gone,) = (folder / name for name in names if lost in name)
    gone.unlink()
    assert model().path() is None
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="safetensors[^ ]* is missing, and HF_HUB_OFFLINE forbids"):
        model().fetch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert model().fetch() == folder and gone.exists() and len(asked) == 2


FAULTS = {
    "gone": (lambda path: path.unlink(), "is missing"),
    "link to nothing": (lambda path: path.resolve().unlink(), "is missing"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged or cut short, at "),
    "empty": (lambda path: path.write_bytes(b""), "is damaged or cut short, at 0 bytes"),
    "pointer": (lambda path: path.write_text("version https://git-lfs"), "is damaged or cut short"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [n for n in FILES if not n.endswith((".py", ".bin"))])
def test_a_file_that_is_missing_or_damaged_is_named_and_fetched_again(hub, monkeypatch, capsys, name, fault):
    """Also one that is no weights: without its noise levels a teacher is of no use."""
    folder, asked = hub
    teacher = model(needs=PIPELINE + TOKENIZER)
    teacher.fetch()
    break_it, said = FAULTS[fault]
    if name.endswith(".txt") and fault in ("cut short", "pointer"):
        return  # words, of which nothing says how many there were
    break_it(folder / name)
    assert teacher.path() is None
    capsys.readouterr()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as refused:
        teacher.fetch()
    named = folder / name
    if fault == "gone" and name.endswith(".safetensors"):  # whose whole names are not known beforehand
        named = named.with_name("*.safetensors")
    assert f"a/b, 7 MB, licence OpenRAIL: {named} {said}" in str(refused.value)
    assert "HF_HUB_OFFLINE forbids" in str(refused.value) and len(asked) == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert teacher.fetch() == folder == teacher.path() and len(asked) == 2
    assert (folder / name).read_bytes() == FILES[name]
    error = capsys.readouterr().err
    assert f"warning: {named} {said}" in error and "fetching again: a/b" in error


def test_a_repository_that_lacks_a_file(hub):
    with pytest.raises(UserError, match=r"scheduler/other.json is missing, even after fetching it"):
        model(needs=("scheduler/other.json",)).fetch()


def test_what_each_teacher_needs_is_among_what_is_fetched():
    for name, one in HUB_MODELS.items():
        for file in one.needs:
            assert any(fnmatch.fnmatch(file, pattern) for pattern in (*TEXT, *one.files)), (name, file)
        assert bool(one.needs) == any("unet/" in pattern for pattern in one.files), name


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
    with pytest.raises(UserError, match="of unknown size, licence unknown"):
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
