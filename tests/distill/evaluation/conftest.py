from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins.targets import write_renders
from stand_ins.tinted_rows import ASKED, tinted

from distill.evaluation.rows import KINDS


@pytest.fixture(scope="session")
def three_sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for size in (32, 128, 256):
        write_renders(folder / str(size), 2, size)
    return folder


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setitem(KINDS, "tinted", tinted)
    ASKED.clear()


@pytest.fixture(scope="session")
def boxes(tmp_path_factory) -> Path:
    import trimesh

    folder = tmp_path_factory.mktemp("boxes")
    for i in range(3):
        trimesh.creation.box((1, 1 + i, 1)).export(folder / f"box{i}.glb")
    return folder
