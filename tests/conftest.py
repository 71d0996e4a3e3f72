from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import sys
from functools import partial

import pytest
import torch
import torch.multiprocessing

# As in a terminal: under nohup and in shells without job control some are ignored, by us and what we start.
for _signal, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _handler)


gc.disable()  # until all is imported, in which there is little garbage


# With them each of two processes compiles kernels that the other one then finds, of float64 and of float32.
KERNELS = ("test_rasterize.py", "test_benchmark.py")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: at the end no process waits for another one's long file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in KERNELS, item.path not in slow))


_known = 0  # modules when garbage was collected last


def pytest_collection_finish():
    """Leave what was imported alone when garbage is collected, as after each training: it stays anyway."""
    global _known
    gc.enable()
    gc.collect()
    gc.freeze()
    _known = len(sys.modules)


def pytest_runtest_logfinish():
    """Likewise what a test imported."""
    if len(sys.modules) > _known + 100:
        pytest_collection_finish()


@pytest.fixture
def one_thread():
    """One torch thread, as long as the test runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forked_workers(monkeypatch):
    """Processes that would be spawned, and import torch, are forked: see `stand_ins.forked`."""
    from stand_ins.forked import CONTEXT

    for module in (multiprocessing, torch.multiprocessing):
        monkeypatch.setattr(module, "get_context", lambda method: CONTEXT)


@pytest.fixture
def stub(monkeypatch):
    """The command makes its Gaussians with a stand-in for the generator."""
    from stand_ins.infer_command import StubGenerator

    import dd3g.pepd

    monkeypatch.setattr(dd3g.pepd, "Generator", StubGenerator)
    monkeypatch.setattr(StubGenerator, "loaded", [])
    return StubGenerator


@pytest.fixture
def short_turntables(monkeypatch):
    """Turntables that the command makes have two small pictures."""
    from dd3g.io import turntable

    small = partial(turntable.render_turntable, frames=2, size=32)
    monkeypatch.setattr(turntable, "render_turntable", small)


@pytest.fixture
def coarse_meshes(monkeypatch):
    """Meshes that commands make are carved in large voxels."""
    from dd3g.pepd import mesh

    monkeypatch.setattr(mesh, "mesh_of", partial(mesh.mesh_of, resolution=32))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The present folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lamp(here):
    """`lamp.ply` in the present folder, of 600 Gaussians."""
    from stand_ins.cluster_files import cluster

    from dd3g.io import splats

    return splats.save(cluster(), "lamp.ply")


@pytest.fixture
def teacher(tmp_path):
    """A folder with a small and quick teacher."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    config = {"kind": "teacher", "teacher": "analytic", "size": 16, "modes": 2, "steps": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
