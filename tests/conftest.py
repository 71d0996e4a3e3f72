from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """One torch thread, as long as the test runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stub(monkeypatch):
    """The command makes its Gaussians with a stand-in for the generator."""
    from infer_command import StubGenerator

    import dd3g.pepd

    monkeypatch.setattr(dd3g.pepd, "Generator", StubGenerator)
    monkeypatch.setattr(StubGenerator, "loaded", [])
    return StubGenerator


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The present folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
