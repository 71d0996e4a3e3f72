import pytest
from stand_ins.headless_chromium import CHROMIUM, Page
from stand_ins.shown import SIZE, toy

from dd3g.io.viewer import save_viewer


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    page = Page(tmp_path_factory.mktemp("profile"), SIZE)
    yield page
    page.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_viewer(toy(), tmp_path_factory.mktemp("page") / "ball.html", "<i>Ball</i> & co")
