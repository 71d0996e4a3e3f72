"""Scripts and modules as processes that are forked from one, which has imported torch for them.

Each worker of the tests starts that one with its first such process. What a command does before torch is
there, and how it leaves its interpreter, is for real processes to show.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
# Nothing that starts threads, which no fork survives: none of our kernels.
CONTEXT.set_forkserver_preload([
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.launcher.api",
    "accelerate", "omegaconf", "typer", "diffusers.models.autoencoders", "diffusers.schedulers",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.image_processing_clip",
])  # fmt: skip


class Forked:
    """A process of a script, or of `-m MODULE`, with a session of its own; used as `subprocess.Popen` is.

    Args:
        words: its command line, after `python`.
        processes: more than one are started, and called ranks, as torchrun does it.
        environment: in which it differs from this process.
    """

    def __init__(self, *words: str | Path, processes: int = 1, **environment: str):
        self.words = [str(word) for word in words]
        self._files = tempfile.TemporaryDirectory()
        self._out, self._error = (Path(self._files.name, name) for name in ("out", "error"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} | environment
        target = self.words, processes, dict(environment), str(self._out), str(self._error)
        self._process = CONTEXT.Process(target=_run, args=target)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.words, timeout or 0)
        return self._out.read_text(), self._error.read_text()


def _run(words: list[str], processes: int, environment: dict[str, str], out: str, error: str) -> None:
    import torch

    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the server may have been started where they wait
    os.chdir(ROOT)
    for stream, path in ((1, out), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if processes == 1:
        execute(*words)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, processes, run_id=str(uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="fork", max_restarts=0,
    )  # fmt: skip
    elastic_launch(config, execute)(*words)


def execute(*words: str) -> None:
    """As `python WORDS`."""
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
