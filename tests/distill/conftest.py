from __future__ import annotations

import pytest
from PIL import Image
from stand_ins.simulated_sets import ellipsoid_views


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, rgba in enumerate(ellipsoid_views(6)[:, 0]):
        Image.fromarray(rgba).save(folder / f"object.{i}.{'webp' if i == 3 else 'png'}", lossless=True)
    (folder / "notes.txt").write_text("not a picture")
    return folder
