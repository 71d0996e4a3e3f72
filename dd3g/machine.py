"""The machine: its cores, and what a reader needs to repeat a measurement: command, commit, versions."""

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

import dd3g
from dd3g.processes import from_launcher, usable_cores

LIBRARIES = ("torch", "numpy", "numba", "torchmetrics")


def provenance(device: str) -> dict[str, Any]:
    """The process's own command, the version and commit, the machine, and what is installed."""
    import torch

    script = Path(sys.orig_argv[1] if len(sys.orig_argv) > 1 else "")
    words = ["dd3g", *sys.argv[1:]] if script.name == "dd3g" else ["python", *sys.orig_argv[1:]]
    return {
        "command": shlex.join(words),
        "version": dd3g.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "machine": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1),
            "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES if find_spec(name)},
    }


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parents[1]
    try:
        # Without one of its own, a repository above may hold the environment that dd3g was installed into.
        (root / ".git").stat()
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """The name of this machine's CPU, or its kind where the system gives no name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores_each() -> int:
    """CPU cores for each of the processes that a launcher started on this machine, at least 1."""
    return max(1, usable_cores() // from_launcher("LOCAL_WORLD_SIZE"))
