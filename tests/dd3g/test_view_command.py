"""A splat file in the browser."""

import pytest
from stand_ins.cluster_files import cluster, told

from dd3g.__main__ import main
from dd3g.io import splats

pytestmark = pytest.mark.usefixtures("here")


def test_view_makes_a_page_and_opens_it(lamp, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    splats.save(cluster(), "lamp.compressed.ply", antialiased=False)
    assert told(capsys, "view", "lamp.compressed.ply") == {
        "input": "lamp.compressed.ply",
        "page": "out/lamp.html",
        "opened": True,
        "warnings": [],
    }
    assert opened == [(lamp.parent / "out/lamp.html").resolve().as_uri()]
    page = (lamp.parent / "out/lamp.html").read_text()
    assert "<title>lamp</title>" in page and 'data-antialiased="false"' in page
    assert told(capsys, "view", lamp, "-o", "x.html", "--no-open")["opened"] is False and len(opened) == 1
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["view", str(lamp)]) == 0
    assert capsys.readouterr().out == "wrote out/lamp.html; open it in a browser\n"
