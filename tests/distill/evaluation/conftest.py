from __future__ import annotations

import pytest
from stand_ins.targets import write_renders


@pytest.fixture(scope="session")
def three_sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for size in (32, 128, 256):
        write_renders(folder / str(size), 2, size)
    return folder
