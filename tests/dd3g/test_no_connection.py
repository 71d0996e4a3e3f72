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


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.skipif(not model_path("u2netp"), reason="needs the matting model")
def test_a_picture_that_needs_a_matte_opens_no_connection(tmp_path):
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace), sys.executable, "-m", "dd3g"]
    command += ["infer", str(ROOT / "assets/coffee.jpg"), "-o", str(tmp_path / "out")]
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/coffee.ply").is_file()
    assert [line for line in trace.read_text().splitlines() if "AF_INET" in line] == []
