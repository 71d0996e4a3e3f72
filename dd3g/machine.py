"""What a reader needs to repeat a measurement: command, commit, machine, versions."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import dd3g


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load and versions."""
    cuda = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return cuda | {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "os": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": version("numba"),
    }


def processor() -> str:
    """The name of this machine's CPU, or its kind where the system tells no name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(device: str) -> dict[str, Any]:
    """Of the process's own command; the commit is None for an installed package."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            # Another repository may hold the environment that the package was installed into.
            (root / ".git").stat()
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    script = Path(sys.orig_argv[1] if len(sys.orig_argv) > 1 else "")
    words = ["dd3g", *sys.argv[1:]] if script.name == "dd3g" else ["python", *sys.orig_argv[1:]]
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    libraries = [name for name in ("torch", "numpy", "numba", "torchmetrics") if find_spec(name)]
    return {
        "command": shlex.join(words),
        "version": dd3g.__version__,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }
