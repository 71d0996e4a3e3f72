"""What is in a splat file."""

from pathlib import Path

import numpy as np
import pytest
from stand_ins.cluster_files import cluster, refused, told

from dd3g.__main__ import main
from dd3g.io import splats
from dd3g.io.formats import SPLATS

pytestmark = pytest.mark.usefixtures("here")


def test_files_with_nothing_in_them(capsys):
    for format in SPLATS:
        Path(f"empty.{format}").touch()
        assert "it is empty (0 bytes); copy or download it again" in refused(
            capsys, "info", f"empty.{format}"
        )
    head = splats.encode(cluster(), "ply").replace(b"vertex 600", b"vertex -60")
    Path("minus.ply").write_bytes(head)
    assert "its header promises -60 Gaussians" in refused(capsys, "info", "minus.ply")


def test_info(lamp, capsys):
    report = told(capsys, "info", lamp)
    assert (report["format"], report["gaussians"], report["axes"]) == ("ply", 600, "opencv")
    assert report["antialiased"] is True and report["view_dependent"] is False
    assert report["bytes"] == lamp.stat().st_size
    assert report["scale"] == [0.02, 0.02, 0.02] and report["opacity"] == [0.9, 0.9, 0.9]
    np.testing.assert_allclose(report["high"], cluster().means.amax(0), atol=1e-4)
    assert main(["info", str(lamp)]) == 0
    shown = capsys.readouterr().out
    assert "Gaussians    600\n" in shown and "axes         opencv\n" in shown
