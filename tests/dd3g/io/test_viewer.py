"""The viewer page: what is in it, and whether Chromium draws what the rasteriser draws."""

import base64
import json
import re
import time

import numpy as np
import pytest
import torch
from stand_ins.shown import BARE, SIZE, drawn, psnr, toy

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians, framing
from dd3g.io import splats
from dd3g.io.viewer import save_viewer
from dd3g.rasterizer import rasterize


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


def test_what_is_far_from_everything_is_left_out(tmp_path):
    shown = toy()
    means = torch.cat([shown.means, torch.tensor([[1e9, 0.0, 0.0]])])
    others = (torch.cat([x, x[:1]]) for x in list(vars(shown).values())[1:])
    page = save_viewer(Gaussians(means, *others), tmp_path / "far" / "x.html").read_text()
    assert page == save_viewer(shown, tmp_path / "near" / "x.html").read_text()


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


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["webgl", "2d"])
def test_as_many_as_a_large_model_makes_agree_too(page, tmp_path, draw):
    """At a fine scale antialiasing matters most: without it the same page was 32 dB away."""
    n, gen = 262_144, torch.Generator().manual_seed(0)
    places = torch.nn.functional.normalize(torch.randn(n, 3, generator=gen), dim=-1)
    many = Gaussians(
        means=0.45 * places,
        quats=torch.nn.functional.normalize(torch.randn(n, 4, generator=gen), dim=-1),
        scales=0.002 * torch.exp(0.5 * torch.randn(n, 3, generator=gen)),
        opacities=0.2 + 0.7 * torch.rand(n, generator=gen),
        colors=0.5 + 0.4 * (9 * places).sin(),
    )
    path = save_viewer(many, tmp_path / "many.html")
    assert path.stat().st_size < 6e6
    page.open(path, f"#spin=0&draw={draw}")
    page.eval(BARE)
    inside = splats.decode(splats.encode(many, "spz"), "spz").gaussians
    views = [rasterize(inside, Cameras.orbit([0], 10, SIZE), antialiased=a).rgb[0] for a in (True, False)]
    want, without = (view.clamp(0, 1).mul(255).movedim(0, -1).numpy() for view in views)
    assert psnr(page.screenshot(), want) > 50 and psnr(without, want) < 40


@pytest.mark.parametrize("draw", ["webgl", "2d"])
@pytest.mark.parametrize("larger", [1.0, 2e5, 1e-5])
def test_an_object_is_shown_wherever_and_however_large_it_is(page, tmp_path, draw, larger):
    """And with few that are far away, whose depths must not take all the steps that are sorted by."""
    far = Gaussians(
        *(getattr(toy().select([0]), f) for f in ("means", "quats", "scales", "opacities", "colors"))
    )
    far.means[:] = torch.tensor([0.0, 0.0, -2000.0]) if larger == 1 else torch.tensor([0.0, 0.0, 1.0])
    moved = Gaussians.cat([toy(), far]).transformed(scale=larger)
    if larger != 1:
        moved = moved.transformed(translation=larger * torch.tensor([3.0, -5.0, 2.0]))
    path = save_viewer(moved, tmp_path / "x.html")
    page.open(path, f"#spin=0&draw={draw}&azimuth=130&elevation=35")
    page.eval(BARE)
    centre, size = framing(moved)
    assert size == 1 if larger == 1 else size == pytest.approx(larger, rel=0.25)
    shown = moved.transformed(translation=-centre).transformed(scale=1 / size)
    shown = splats.decode(splats.encode(shown, "spz"), "spz").gaussians
    want = rasterize(shown, Cameras.orbit([130], 35, SIZE), antialiased=True).rgb[0]
    assert psnr(page.screenshot(), want.clamp(0, 1).mul(255).movedim(0, -1).numpy()) > 50
    assert (page.screenshot() < 200).any(-1).mean() > 0.15
    head, _, body = page.eval("ply().text().then((text) => text.slice(0, 400))").partition("end_header")
    assert f"element vertex {len(moved)}\n" in head
    row = page.eval("[...rows.slice(0, 14)]")  # what is downloaded is where it was, and as large
    np.testing.assert_allclose(row[:3], moved.means[0], rtol=0, atol=2e-4 * larger)
    np.testing.assert_allclose(row[7:10], moved.scales[0].log(), rtol=0, atol=0.033)


@pytest.mark.parametrize("draw", ["webgl", "2d"])
def test_a_print_shows_the_object_on_paper(page, file, draw):
    """In its own proportions, whatever the sheet's, and in the light."""
    page.open(file, f"#spin=0&draw={draw}&background=dark")
    pdf = page.call("Page.printToPDF")["data"]
    page.eval("canvas.hidden = true")
    assert len(pdf) > len(page.call("Page.printToPDF")["data"]) + 4000
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        page.wait("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'")
        assert page.eval("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert page.eval("getComputedStyle(canvas).objectFit") == "contain"
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize(
    ("said", "is_"),
    [
        ("distance=", {}),
        ("x=Infinity&y=abc", {}),
        ("distance=-2", {"distance": 0.3}),
        ("elevation=90", {"elevation": 89}),
    ],
)
def test_an_address_of_odd_numbers_still_shows_the_object(page, file, said, is_):
    page.open(file, f"#spin=0&draw=2d&{said}&z=0.25")
    wanted = {"azimuth": 0, "elevation": 10, "distance": 1.5, "x": 0, "y": 0, "z": 0.25} | is_
    assert json.loads(page.eval("JSON.stringify(view)")) == wanted


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
    page.open(file, "#spin=0&draw=2d")
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
