"""Users without a home, or without a place where compiled kernels may stay."""

import os
import subprocess
import sys

import pytest
from stand_ins.infer_command import ROOT, StubGenerator, picture

from dd3g import load_image
from dd3g.io.splats import save


def test_a_user_without_a_home(monkeypatch, tmp_path):
    import pwd

    from dd3g.models import models_folder

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "DD3G_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = models_folder()
    assert folder == tmp_path / f"cache-{os.getuid()}/dd3g/models"
    assert folder.parents[1].stat().st_mode & 0o777 == 0o700 and models_folder() == folder
    folder.parents[1].chmod(0o777)  # where anybody may have put code
    assert models_folder().parents[1] not in (folder.parents[1], tmp_path)


def test_libraries_of_a_user_without_a_home_keep_no_caches_where_the_user_is(here):
    code = (
        "import pwd; pwd.getpwuid = {}.__getitem__; import os, dd3g; print(os.environ.get('XDG_CACHE_HOME'))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(here)}

    def told(**more):
        words = [sys.executable, "-c", code]
        return subprocess.run(words, env=environment | more, capture_output=True, text=True).stdout.strip()

    assert told() == str(here / f"cache-{os.getuid()}") and told(XDG_CACHE_HOME="/x") == "/x"
    assert told(HOME="/y") == "None"


# Numba where it may write neither beside a kernel's file nor in a home.
NO_CACHE = """
from numba.core import caching
kept = [c for c in caching.CacheImpl._locator_classes if "UserProvided" in c.__name__]
caching.CacheImpl._locator_classes = kept
"""


# Each word by itself, whichever is the first in a process: this one has only what all of them need.
FIRST = """
import importlib, os, sys, torch
from dd3g.__main__ import main
for word in sys.argv[1:]:
    if not os.fork():
        if " " in word:
            sys.exit(main(word.split()))
        importlib.import_module(word)
        os._exit(0)
    assert os.wait()[1] == 0, word
"""


def each(*words, **environment):
    """Import modules, or run commands, of a user who can keep no kernels; what was said on stderr."""
    made = subprocess.run(
        [sys.executable, "-c", NO_CACHE + FIRST, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made.stderr


@pytest.mark.slow
def test_every_kernel_can_be_defined_without_a_cache():
    files = [p for room in ("dd3g", "data_gen", "distill", "tools") for p in (ROOT / room).rglob("*.py")]
    kernels = [p.relative_to(ROOT) for p in files if "@njit" in p.read_text("utf-8")]
    names = [".".join(path.with_suffix("").parts) for path in kernels]
    assert {"dd3g.meshes.mesh", "dd3g.pepd.surface_kernels", "data_gen.meshes.volumes"} <= set(names)
    each(*names)


@pytest.mark.slow
def test_a_user_who_can_keep_no_kernels(here):
    gaussians = StubGenerator().generate(load_image(picture("a.png")))
    save(gaussians, "a.ply")
    save(gaussians, "c.spz")
    words = ["convert a.ply b.spz", "convert a.ply b.compressed.ply", "convert c.spz b.ply"]
    assert each(*words, "view a.ply --no-open", NUMBA_CACHE_DIR="") == ""
