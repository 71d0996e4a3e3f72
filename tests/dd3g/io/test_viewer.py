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
BARE = (
    "document.querySelectorAll('header, #hint, nav').forEach((part) => { part.style.visibility = 'hidden'; })"
)


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


def drawn(azimuth: float, elevation: float, antialiased: bool = True) -> np.ndarray:
    """(SIZE, SIZE, 3) what our rasteriser shows of the Gaussians in the page, 0..255."""
    inside = splats.decode(splats.encode(toy(), "spz"), "spz").gaussians
    rgb = rasterize(inside, Cameras.orbit([azimuth], elevation, SIZE), antialiased=antialiased).rgb[0]
    return rgb.clamp(0, 1).mul(255).movedim(0, -1).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_page_is_whole_and_the_same_each_time(tmp_path):
    path = save_viewer(toy(), tmp_path / "ball.html")
    page = path.read_text("utf-8")
    assert "<title>ball</title>" in page and 'data-name="ball.ply"' in page and "{{" not in page
    assert "default-src 'none'" in page and not re.search(r"https?://|//\w+\.\w+/", page)
    inside = re.search(r'<script type="text/plain" id="file">([^<]*)</script>', page)[1]
    assert base64.b64decode(inside) == splats.encode(toy(), "spz")
    assert len(page) < 30 * len(toy()) + 40_000  # 75 bytes a Gaussian when it held a .ply
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
    assert psnr(page.screenshot(), want) > 50
    # The bound would notice ten degrees, and antialiasing that is left out.
    assert psnr(drawn(azimuth + 10, elevation), want) < 30
    assert psnr(drawn(azimuth, elevation, antialiased=False), want) < 48


def layered() -> Gaussians:
    """A grey haze: some 200 layers in each pixel that it covers."""
    n, gen = 60_000, torch.Generator().manual_seed(0)
    return Gaussians(
        means=0.15 * torch.randn(n, 3, generator=gen).clamp(-2, 2),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        scales=torch.full((n, 3), 0.006),
        opacities=torch.full((n,), 0.03),
        colors=0.3 + 0.4 * torch.rand(n, 3, generator=gen),
    )


@pytest.mark.slow
@pytest.mark.parametrize("half_floats", [True, False])
def test_hundreds_of_layers_add_up_without_roundings(page, tmp_path, half_floats):
    """In the 8 bits of a canvas they are 45 dB away; a browser without half floats still shows them."""
    haze = save_viewer(layered(), tmp_path / "haze.html")
    inside = splats.decode(splats.encode(layered(), "spz"), "spz").gaussians
    window = {"deviceScaleFactor": 1, "mobile": False}
    script = "" if half_floats else "WebGL2RenderingContext.prototype.getExtension = () => null"
    added = page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        page.open(haze, "#spin=0&draw=webgl")
        page.eval(BARE)
        for size in (SIZE, 200, SIZE):  # what is drawn into follows the window
            page.call("Emulation.setDeviceMetricsOverride", width=size, height=size, **window)
            page.wait(f"!stale && canvas.width === {size}")
            rgb = rasterize(inside, Cameras.orbit([0], 10, size), antialiased=True).rgb[0]
            got = psnr(page.screenshot(), rgb.clamp(0, 1).mul(255).movedim(0, -1).numpy())
            assert got > 55 if half_floats else 40 < got < 50
        assert page.errors == []
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])


@pytest.mark.parametrize("draw", ["webgl", "2d"])
def test_what_was_trained_without_antialiasing_is_drawn_without(page, tmp_path, draw):
    page.open(save_viewer(toy(), tmp_path / "x.html", antialiased=False), f"#spin=0&draw={draw}")
    page.eval(BARE)
    assert psnr(page.screenshot(), drawn(0, 10, antialiased=False)) > 50


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
    page.key("ArrowRight")  # turns the way that a drag to the right did
    page.key("+")
    assert page.eval("view.azimuth") == -30
    page.key("ArrowDown")
    page.key("ArrowLeft")
    assert page.eval("[view.azimuth, view.elevation]") == [-20, 24]
    assert page.eval("view.distance") == pytest.approx(1.5 * np.exp(0.1) * 0.9)
    page.key("r")
    assert page.eval("[view.azimuth, view.elevation, view.distance]") == [0, 10, 1.5]
    page.key(" ")
    assert page.eval("spinning") is True


def pointers(page, *steps):
    """Made-up pointer events: (kind, finger, x, y, buttons)."""
    page.eval("stage.setPointerCapture = () => {}")  # these can't be captured
    for kind, finger, x, y, buttons in steps:
        at = f"pointerId: {finger}, clientX: {x}, clientY: {y}, buttons: {buttons}"
        page.eval(f"stage.dispatchEvent(new PointerEvent('pointer{kind}', {{{at}}}))")


def test_two_fingers_zoom_and_move(page, file):
    page.open(file, "#spin=0")
    pointers(page, ("down", 1, 100, 100, 1), ("down", 2, 150, 100, 1), ("move", 2, 200, 100, 1))
    pointers(page, ("up", 2, 200, 100, 0), ("up", 1, 100, 100, 0))
    assert page.eval("view.distance") == pytest.approx(0.75)
    # Their middle went 25 pixels to the right, and so did the object.
    focal = SIZE / 2 / np.tan(np.radians(49.1) / 2)
    assert page.eval("[view.x, view.y, view.z]") == pytest.approx([-25 * 0.75 / focal, 0, 0], abs=1e-9)


@pytest.mark.parametrize("draw", ["webgl", "2d"])
def test_the_right_button_moves_the_object_under_the_hand(page, file, draw):
    page.open(file, f"#spin=0&draw={draw}&elevation=0")
    page.eval(BARE)
    before = page.screenshot()
    page.mouse("mousePressed", 128, 128, button="right", buttons=2, clickCount=1)
    page.mouse("mouseMoved", 148, 118, button="right", buttons=2)
    page.wait("view.x !== 0")  # or the release overtakes the move
    page.mouse("mouseReleased", 148, 118, button="right", clickCount=1)
    page.wait("!stale")
    after = page.screenshot()
    assert page.eval("[view.azimuth, view.elevation]") == [0, 0]

    def middle(shot):
        y, x = np.nonzero((shot < 250).any(-1))
        return np.array([x.mean(), y.mean()])

    np.testing.assert_allclose(
        middle(after) - middle(before), [20, -10], atol=3
    )  # what is nearer moves farther
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", modifiers=8)  # with Shift
    page.wait("!stale")
    np.testing.assert_allclose(
        middle(page.screenshot()) - middle(before), [0, -10], atol=3
    )  # what is nearer moves farther
    page.key("r")
    page.eval("document.activeElement.blur()")  # keys show where the focus is
    page.wait("!stale")
    assert psnr(page.screenshot(), drawn(0, 10)) > 50


def test_the_keys_are_explained(page, file):
    page.open(file, "#spin=0")
    page.key("?")
    assert page.eval("byId('help').open") is True
    text = page.eval("byId('help').textContent")
    for key in ("arrows", "Right drag", "two fingers", "Space", "R, double click", "B", "F", "D", "Esc"):
        assert key in text
    page.key("b")  # goes to the list alone
    assert page.eval("page.classList.contains('dark')") is False
    page.eval("byId('help').close()")
    labels = page.eval("[...document.querySelectorAll('nav button')].map((b) => b.ariaLabel || b.title)")
    assert len(labels) == 6 and all(labels)


def test_the_hint_is_one_whole_line_in_windows_of_any_width(page, file):
    page.open(file, "#spin=0")
    for width in (200, 270, 320, 375, 560, 700, 821, 900, 1024, 1101, 1280, 1920):
        size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        tall, cut, behind = page.eval(
            "(() => { const hint = byId('hint'), box = hint.getBoundingClientRect(); return [box.height, "
            "hint.scrollWidth - hint.clientWidth, [...document.querySelectorAll('nav button')].some((b) => {"
            "const a = b.getBoundingClientRect(); return a.left < box.right && a.right > box.left && "
            "a.top < box.bottom && a.bottom > box.top; })]; })()"
        )
        assert tall < 25 and not behind and (cut <= 0 or width < 250), width
    text = page.eval("byId('hint').textContent")
    assert text.startswith("Drag to turn, scroll or pinch to zoom") and text.endswith(". ? shows the keys")
    page.call("Emulation.setDeviceMetricsOverride", **(size | {"width": SIZE, "height": SIZE}))


def test_full_screen(page, file):
    page.open(file, "#spin=0")
    page.eval("page.requestFullscreen = () => { page.dataset.full = 'yes'; }")
    page.key("f")
    assert page.eval("page.dataset.full") == "yes"


def luminance(rgb):
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("background", ["light", "dark"])
def test_words_and_signs_stand_out_from_the_page(page, file, background):
    page.open(file, f"#spin=0&background={background}")
    page.eval("document.body.style.transition = 'none'")
    colours = page.eval(
        "['h1', '#count', '#hint', 'button', 'dd', 'body'].map((name) => {"
        "const style = getComputedStyle(document.querySelector(name));"
        "return (name === 'body' ? style.backgroundColor : style.color).match(/[0-9]+/g).map(Number)})"
    )
    *front, back = (luminance(c) for c in colours)
    for light in front:
        assert (max(light, back) + 0.05) / (min(light, back) + 0.05) >= 4.5


def test_landmarks_and_focus(page, file):
    page.open(file, "#spin=0")
    assert page.eval("document.querySelectorAll('main').length") == 1
    assert page.eval("stage.closest('main') !== null && document.querySelectorAll('h1').length === 1")
    outlines = []
    for _ in range(7):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        page.call("Input.dispatchKeyEvent", type="keyUp", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        outlines.append(
            page.eval(
                "document.activeElement.id + ' ' + getComputedStyle(document.activeElement).outlineStyle"
            )
        )
    order = ["stage", "spin", "reset", "shade", "full", "save", "ask"]
    assert outlines == [f"{name} solid" for name in order]


def test_the_page_follows_the_system_into_the_dark(page, file):
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", features=dark)
    try:
        page.open(file, "#spin=0")
        assert page.eval("page.classList.contains('dark')") is True
        page.open(file, "#spin=0&background=light")
        assert page.eval("page.classList.contains('dark')") is False
    finally:
        page.call("Emulation.setEmulatedMedia", features=[])


def test_the_first_frame_chooses_the_painter(page, file):
    """Here there is no graphics card: a WebGL that pretends to be slow gives way, a quick one stays."""
    for late, painter in ((400, "2d"), (0, "webgl")):
        script = (
            f"let clock = 0; performance.now = () => (clock += {late} * "
            "(document.documentElement.dataset.draw === 'webgl') + 1);"
        )
        added = page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        try:
            page.open(file, "#spin=0")
            assert page.eval("document.documentElement.dataset.draw") == painter
        finally:
            page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
        assert page.errors == []


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
    saved, length = tmp_path / "ball.ply", 14 * 4 * len(toy())
    until = time.monotonic() + 30
    while not (saved.exists() and saved.stat().st_size > length):
        assert time.monotonic() < until, list(tmp_path.iterdir())
        time.sleep(0.1)
    got = splats.read(saved)
    assert got.axes == "opencv" and got.antialiased is True
    want = splats.decode(splats.encode(toy(), "spz"), "spz").gaussians
    for name in ("means", "scales", "opacities", "colors"):
        torch.testing.assert_close(getattr(got.gaussians, name), getattr(want, name), atol=1e-5, rtol=1e-4)
    alike = (got.gaussians.quats * want.quats).sum(-1).abs()
    torch.testing.assert_close(alike, torch.ones_like(alike), atol=1e-5, rtol=0)


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
        assert psnr(page.screenshot(), drawn(0, 10)) > 50
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
