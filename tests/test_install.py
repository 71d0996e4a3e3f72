"""A wheel, installed into an environment of its own, at work in a folder that knows nothing of the clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from stand_ins.infer_command import ROOT
from stand_ins.tiny_objects import write_cube

pytestmark = pytest.mark.slow
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "configs", "data_gen", "dd3g", "distill")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # Not imported: setuptools refuses that once something else has imported distutils.
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    build = ["wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", dist, clone]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs `dd3g` of the new environment in an empty folder."""
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    # A path of the user's may hold dd3g, which pip then takes for installed.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    install = ["--python", python, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel]
    subprocess.run([sys.executable, "-m", "pip", *install], env=variables, check=True)
    # Only now, so that pip leaves the dd3g of the running environment alone: the dependencies.
    paths = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(paths))
    # A minute of compiling is saved where kernels are shared with the clone: numba looks at the size and the
    # time of their files.
    for path in (path for room in PARTS[-3:] for path in (ROOT / room).rglob("*.py")):
        if "@njit" in path.read_text("utf-8"):
            copy = site / path.relative_to(ROOT)
            shutil.copystat(path, copy)
            (path.parent / "__pycache__").mkdir(exist_ok=True)
            if not (copy.parent / "__pycache__").is_symlink():
                (copy.parent / "__pycache__").symlink_to(path.parent / "__pycache__")
    # Folders of the user's own, called like those of the clone.
    for name in ("tools", "tests", "configs"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")

    def command(*words):
        line = [environment / "bin" / "dd3g", *map(str, words)]
        done = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command.folder = folder
    return command


def test_the_wheel_holds_what_the_commands_need_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "dd3g",
        "data_gen",
        "distill",
    }
    configs = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").glob("*/*.yaml"))
    assert sorted(n.removeprefix("dd3g/") for n in names if n.startswith("dd3g/configs/")) == configs
    folders = {name.rpartition("/")[0] for name in names if name.endswith(".py")}
    assert all(f"{folder}/__init__.py" in names for folder in folders)
    data = (".html", ".json", ".md", ".txt", ".usda", ".yaml")
    tracked = [p for p in PARTS[-3:] for p in (ROOT / p).rglob("*") if p.suffix in data]
    assert {p.relative_to(ROOT).as_posix() for p in tracked} <= set(names)


def test_a_picture(run):
    shutil.copy(ROOT / "assets" / "lamp.png", run.folder)
    report = json.loads(run("infer", "lamp.png", "-o", "out", "--json"))
    assert report["pictures"][0]["samples"][0]["files"] == ["out/lamp.ply"]
    assert (run.folder / "out" / "lamp.ply").stat().st_size > 50_000


def test_help(run):
    for words in ((), ("evaluate",), ("benchmark",), ("benchmark", "rasterize"), ("data", "synthesize")):
        assert "Usage: dd3g " in run(*words, "--help")


def test_meshes_are_rendered_trained_on_by_a_packaged_configuration_and_evaluated(run):
    for i in range(2):
        write_cube(run.folder / "meshes" / f"cube{i}.glb", 1 + i)
    views = ["--quads", 1, "--free-quads", 1, "--novel", 2, "--variants", 1, "--supersample", 1]
    run("data", "render", "meshes", "-o", "renders", *views, "--processes", 1)
    options = ["max_train_steps=2", "train_batch_size=1", "mixed_precision=no", "report_to=none"]
    model = run("train", "--config", "nano", "renders=[renders]", "quadruples=[]", *options, "-o", "run")
    assert model == "wrote run/model\n" and Path(run.folder, "run/model/model.safetensors").exists()
    words = ["evaluate", "meshes", "--generator", "mine=run/model", "--sheet-objects", 0, "--limit", 1]
    report = json.loads(run(*words, "--size", 16, "--json"))
    assert report["commit"] is None and report["data"]["objects"] == 1
    assert report["command"].startswith("dd3g evaluate meshes --generator mine=run/model")
    assert report["rows"]["mine"]["novel"]["psnr"]["mean"] > 5
