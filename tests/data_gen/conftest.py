from __future__ import annotations

import shutil

import pytest
from stand_ins.made_up_dataset import verdicts


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    from stand_ins import tiny_pipelines  # diffusers, which most tests here do without

    root = tmp_path_factory.mktemp("pipelines")
    kinds = ("stable_diffusion", "stable_diffusion_xl", "pixart_sigma", "stable_diffusion_3", "flux")
    return {kind: getattr(tiny_pipelines, kind)(root / kind) for kind in kinds}


@pytest.fixture
def filters(monkeypatch):
    verdicts(monkeypatch)


@pytest.fixture
def copy(folders, tmp_path):
    """A stable diffusion folder that the test may spoil."""
    return shutil.copytree(folders["stable_diffusion"], tmp_path / "copy")
