"""The viewer page: what is in it, and what headless Chromium shows of it."""

import base64
import re
import time

import numpy as np
import pytest
import torch
from stand_ins.headless_chromium import CHROMIUM, Page

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import splats
from dd3g.io.viewer import save_viewer
from dd3g.rasterizer import rasterize

SIZE = 256
BARE = "document.querySelectorAll('header, #hint, nav').forEach((part) => part.remove())"


def toy() -> Gaussians:
    """A ball, red on the object's +x side, blue on -x, with a green cap, and a thin yellow bar in front."""
    n = 4000
    i = torch.arange(n, dtype=torch.float64) + 0.5
    y, turn = 1 - 2 * i / n, i * 2.399963229728653
    ring = (1 - y * y).sqrt()
    means = 0.42 * torch.stack([ring * turn.cos(), y, ring * turn.sin()], -1).float()
    colors = torch.stack([(means[:, 0] > 0).float(), torch.zeros(n), (means[:, 0] <= 0).float()], -1)
    colors[means[:, 1] > 0.3] = torch.tensor([0.0, 0.8, 0.2])
    tilt = torch.nn.functional.normalize(torch.tensor([1.0, 0.0, 0.0, 0.4]), dim=0)
    return Gaussians(
        means=torch.cat([means, torch.tensor([[0.0, 0.0, 0.5]])]),
        quats=torch.cat([torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1), tilt[None]]),
        scales=torch.cat([torch.full((n, 3), 0.012), torch.tensor([[0.12, 0.015, 0.015]])]),
        opacities=torch.cat([torch.linspace(0.3, 0.95, n), torch.tensor([0.98])]),
        colors=torch.cat([colors, torch.tensor([[1.0, 0.9, 0.0]])]),
    )


def drawn(azimuth: float, elevation: float) -> np.ndarray:
    """(SIZE, SIZE, 3) what our rasteriser shows, 0..255."""
    rgb = rasterize(toy(), Cameras.orbit([azimuth], elevation, SIZE)).rgb[0]
    return rgb.clamp(0, 1).mul(255).movedim(0, -1).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_page_is_whole_and_the_same_each_time(tmp_path):
    path = save_viewer(toy(), tmp_path / "ball.html")
    page = path.read_text("utf-8")
    assert "<title>ball</title>" in page and 'data-name="ball.ply"' in page and "{{" not in page
    assert "default-src 'none'" in page and not re.search(r"https?://|//\w+\.\w+/", page)
    inside = re.search(r'<script type="text/plain" id="file">([^<]*)</script>', page)[1]
    assert base64.b64decode(inside) == splats.encode(toy(), "ply")
    assert save_viewer(toy(), tmp_path / "ball.html").read_text("utf-8") == page
    assert [file.name for file in tmp_path.iterdir()] == ["ball.html"]


def test_title_can_not_inject(tmp_path):
    page = save_viewer(toy(), tmp_path / "a\"b'c<d>.html", "</title><script>x</script>{{splats}}").read_text()
    assert "<title>&lt;/title&gt;&lt;script&gt;x&lt;/script&gt;{{splats}}</title>" in page
    assert 'data-name="a&quot;b&#x27;c&lt;d&gt;.ply"' in page
    assert b"? ok" in save_viewer(toy(), tmp_path / "x.html", "\udcff ok").read_bytes()


def test_nothing_to_show_is_an_error(tmp_path):
    empty = toy().select(torch.zeros(0, dtype=torch.long))
    with pytest.raises(UserError, match="none of the 0 Gaussians"):
        save_viewer(empty, tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("draw", ["webgl", "2d"])
def test_colours_lie_where_they_should(page, file, draw):
    page.open(file, f"#spin=0&draw={draw}")
    assert page.eval("document.documentElement.dataset.draw") == draw
    page.eval(BARE)
    shot = page.screenshot().astype(int)
    assert shot.shape == (SIZE, SIZE, 3)
    red, green, blue = (shot[y, x] for x, y in ((175, 140), (128, 58), (80, 140)))
    assert red[0] > 200 and red[1:].max() < 60, red  # +x is on the right, as seen from the front
    assert blue[2] > 200 and blue[:2].max() < 60, blue
    assert green[1] > 150 and green[0] < 60, green  # up is up
    bar = shot[110:150, 90:166]
    yellow = (bar[..., 0] > 180) & (bar[..., 1] > 150) & (bar[..., 2] < 90)
    y, x = np.nonzero(yellow)
    assert (
        len(y) > 100 and np.polyfit(x, y, 1)[0] < -0.5
    )  # turned counterclockwise, so its right end is higher
    assert (shot[4, 4] == 255).all()


@pytest.mark.parametrize("draw", ["webgl", "2d"])
@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 10), (130, 35)])
def test_page_and_rasteriser_agree(page, file, draw, azimuth, elevation):
    page.open(file, f"#spin=0&draw={draw}&azimuth={azimuth}&elevation={elevation}")
    page.eval(BARE)
    want = drawn(azimuth, elevation)
    assert psnr(page.screenshot(), want) > 38
    assert psnr(drawn(azimuth + 10, elevation), want) < 30  # the bound would notice ten degrees


def test_spins_until_touched_then_turns_and_zooms(page, file):
    page.open(file)
    first = page.eval("view.azimuth")
    page.wait(f"view.azimuth > {first} + 1")
    assert page.eval("byId('spin').getAttribute('aria-pressed')") == "true"
    page.mouse("mousePressed", 128, 128, button="left", clickCount=1)
    page.eval("glide = [0, 0], view.azimuth = 0, view.elevation = 10")
    page.mouse("mouseMoved", 178, 138, button="left", buttons=1)
    page.eval("new Promise((done) => setTimeout(done, 100))")
    page.mouse("mouseReleased", 178, 138, button="left", clickCount=1)
    assert page.eval("[spinning, view.azimuth, view.elevation]") == [False, -20, 14]
    page.mouse("mouseWheel", 128, 128, deltaX=0, deltaY=100)
    page.wait("Math.abs(view.distance - 1.5 * Math.exp(0.1)) < 1e-6")
    page.key("ArrowRight")
    page.key("+")
    assert page.eval("view.azimuth") == -10
    assert page.eval("view.distance") == pytest.approx(1.5 * np.exp(0.1) * 0.9)
    page.key("r")
    assert page.eval("[view.azimuth, view.elevation, view.distance]") == [0, 10, 1.5]
    page.key(" ")
    assert page.eval("spinning") is True


def test_pinch_zooms(page, file):
    page.open(file, "#spin=0")
    page.eval("stage.setPointerCapture = () => {}")  # made-up pointers can't be captured
    for kind, finger, x in (
        ("down", 1, 100),
        ("down", 2, 150),
        ("move", 2, 200),
        ("up", 2, 200),
        ("up", 1, 100),
    ):
        event = f"new PointerEvent('pointer{kind}', {{pointerId: {finger}, clientX: {x}, clientY: 100}})"
        page.eval(f"stage.dispatchEvent({event})")
    assert page.eval("view.distance") == pytest.approx(0.75)


def test_background_turns_dark_and_back(page, file):
    page.open(file, "#spin=0&background=dark")
    page.wait("getComputedStyle(document.body).backgroundColor === 'rgb(18, 18, 20)'")
    assert (page.screenshot()[128, 4] == [0x12, 0x12, 0x14]).all()
    page.key("b")
    page.wait("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'")
    assert (page.screenshot()[128, 4] == 255).all()


def test_page_asks_for_nothing_and_shows_its_title_as_text(page, file):
    page.open(file, "#spin=0")
    page.eval("new Promise((done) => setTimeout(done, 300))")
    assert page.requests == [file.as_uri()] and page.errors == []
    assert page.eval("document.title") == "<i>Ball</i> & co"
    assert page.eval("[document.querySelector('h1').textContent, document.querySelectorAll('i').length]") == [
        "<i>Ball</i> & co",
        0,
    ]
    assert page.eval("byId('count').textContent") == f"{len(toy()):,} Gaussians"


def test_download_is_the_ply(page, file, tmp_path):
    page.open(file, "#spin=0")
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.eval("byId('save').click()")
    want = splats.encode(toy(), "ply")
    until = time.monotonic() + 30
    saved = tmp_path / "ball.ply"
    while not (saved.exists() and saved.stat().st_size == len(want)):
        assert time.monotonic() < until, list(tmp_path.iterdir())
        time.sleep(0.1)
    assert saved.read_bytes() == want


def test_without_webgl_the_page_falls_back(page, file):
    script = (
        "HTMLCanvasElement.prototype.getContext = new Proxy(HTMLCanvasElement.prototype.getContext, {apply: "
    )
    script += "(f, self, args) => args[0] === 'webgl2' ? null : Reflect.apply(f, self, args)})"
    added = page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        page.open(file, "#spin=0")
        assert page.eval("document.documentElement.dataset.draw") == "2d"
        page.eval(BARE)
        assert psnr(page.screenshot(), drawn(0, 10)) > 38
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
