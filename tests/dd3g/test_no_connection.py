"""Nothing leaves the machine unasked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dd3g
from dd3g.models import model_path

ROOT = Path(__file__).parents[2]


def test_libraries_are_told_before_they_are_imported():
    """A user's own choice stands."""
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    code = f"import os, dd3g; print(*(os.environ[name] for name in {names}))"

    def told(**more):
        environment = clean | {"PYTHONPATH": str(Path(dd3g.__file__).parents[1])} | more
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert told() == ["1", "1", "1"]
    assert told(ORT_DISABLE_TELEMETRY="0") == ["0", "1", "1"]


COMMANDS = {
    "infer": ("infer", ROOT / "assets/coffee.jpg", "-o", "out"),
    "convert": ("convert", ROOT / "tests/golden/gaussians.ply", "out/x.mesh.glb"),
    "view": ("view", ROOT / "tests/golden/gaussians.sog", "--no-open"),
    "turntable": ("turntable", ROOT / "tests/golden/gaussians.spz", "-o", "out/x.mp4", "--size", "32"),
    "info": ("info", ROOT / "tests/golden/gaussians.splat"),
    "models": ("models", "list"),
    "data": ("data", "objects", "--count", "1", "-o", "out"),
}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_opens_a_connection(tmp_path, name):
    """The picture of `infer` needs a matte, whose model's library would report its use."""
    if name == "infer" and not model_path("u2netp"):
        pytest.skip("needs the matting model")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace), sys.executable, "-m", "dd3g"]
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {k: v for k, v in os.environ.items() if k not in names} | {"PYTHONPATH": str(ROOT)}
    command += map(str, COMMANDS[name])
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert name in ("info", "models") or any((tmp_path / "out").iterdir())
    assert [line for line in trace.read_text().splitlines() if "AF_INET" in line] == []
