from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dd3g import numba_setup
from dd3g.errors import UserError

PROGRAM = """
import torch
torch.set_num_threads(1)
from dd3g import Cameras, Gaussians, rasterize
rotation = torch.tensor([[1.0, 0, 0, 0]])
one = Gaussians(torch.zeros(1, 3), rotation, torch.ones(1, 3), torch.ones(1), torch.ones(1, 3))
rasterize(one, Cameras.orbit([0.0], size=16))
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_rendering_leaves_the_number_of_torch_threads():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


WITHOUT_OPENMP = """
import importlib.util, sys, threading

class Broken:  # as where libgomp is not installed
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name.endswith(".omppool") else None

    def create_module(self, spec):
        pass

    def exec_module(self, module):
        raise ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")

sys.meta_path.insert(0, Broken())
import numba, torch
from dd3g import Cameras, Gaussians, rasterize
rotation = torch.tensor([[1.0, 0, 0, 0]])
one = Gaussians(torch.zeros(1, 3), rotation, torch.ones(1, 3), torch.ones(1), torch.ones(1, 3))
found = []
def draw():
    for _ in range(20):
        found.append(float(rasterize(one, Cameras.orbit([0.0], size=16)).alpha.mean()))
workers = [threading.Thread(target=draw) for _ in range(4)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(numba.threading_layer() != "omp", len(found), len(set(found)))
"""


@pytest.mark.slow
def test_rendering_does_without_openmp():
    """On numba's own pool, which ends the process when two threads enter it at once."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPENMP], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "80", "1"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_be_spawned():
    """Numba would end it by a signal, without a word to whoever waits for it."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            with numba_setup.turn:
                os.write(writing, b"no error")
        except UserError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        message = told.read()
    if isinstance(numba_setup.turn, numba_setup._OwnProcess):
        assert "use multiprocessing.get_context('spawn')" in message
    else:
        assert message == "no error"
