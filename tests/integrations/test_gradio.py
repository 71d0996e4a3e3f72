"""The gradio page: what its function gives, and what a browser sees of it."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
from stand_ins.headless_chromium import CHROMIUM, Page
from stand_ins.infer_command import ROOT, StubGenerator, picture

from dd3g.io.splats import load


@pytest.fixture
def app(monkeypatch):
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    spec = importlib.util.spec_from_file_location("gradio_app", ROOT / "integrations/gradio_app.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gradio_app", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "Generator", StubGenerator)
    return module


@pytest.mark.slow
def test_a_picture_gives_a_frame_and_every_file(app, tmp_path):
    made = app.make(str(picture(tmp_path / "a.png")), 10, None)
    frame, files, notes = next(made)
    assert 'sandbox="allow-scripts allow-downloads"' in frame and "&lt;title&gt;object" in frame
    assert [Path(f).name for f in files] == [f"object.{kind}" for kind in (*app.FORMATS, "html")]
    assert all(len(load(f)) == 20 for f in files[:4]) and notes == ""
    assert next(made, None) is None and not Path(files[0]).exists()


@pytest.mark.slow
def test_what_is_wrong_is_told_without_a_path(app, tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(app.gr.Error, match="the picture is not a PNG") as error:
        next(app.make(str(tmp_path / "a.png"), 10, 0))
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(app.gr.Error, match="give a picture first"):
        next(app.make(None, 10, 0))


@pytest.mark.slow
def test_the_page_asks_for_nothing_from_elsewhere(app, tmp_path):
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    demo = app.make_demo()
    assert demo.analytics_enabled is False
    _, address, shared = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    page = Page(tmp_path / "profile", 900)
    try:
        assert shared is None
        page.call("Page.navigate", url=address)
        page.wait("!!document.body?.innerText.includes('Make it')", seconds=120)
        time.sleep(1)
        page.eval("1")
        foreign = [u for u in page.requests if not u.startswith((address, "data:", "blob:", "about:"))]
        assert foreign == [] and len(page.requests) > 3
    finally:
        page.close()
        demo.close()
