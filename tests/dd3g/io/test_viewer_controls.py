"""Hands, keys and eyes on the viewer page, in headless Chromium."""

import numpy as np
import pytest
from stand_ins.shown import BARE, SIZE, drawn, psnr

# Without a graphics card WebGL takes several times as long as the other painter, and it does not matter here.
STILL = "#spin=0&draw=2d"


def test_spins_until_touched_then_turns_and_zooms(page, file):
    page.open(file, "#draw=2d")
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
    page.open(file, STILL)
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
    page.open(file, STILL)
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
    page.open(file, STILL)
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
    page.open(file, STILL)
    page.eval("page.requestFullscreen = () => { page.dataset.full = 'yes'; }")
    page.key("f")
    assert page.eval("page.dataset.full") == "yes"


def luminance(rgb):
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("background", ["light", "dark"])
def test_words_and_signs_stand_out_from_the_page(page, file, background):
    page.open(file, f"{STILL}&background={background}")
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
    page.open(file, STILL)
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
        page.open(file, STILL)
        assert page.eval("page.classList.contains('dark')") is True
        page.open(file, f"{STILL}&background=light")
        assert page.eval("page.classList.contains('dark')") is False
    finally:
        page.call("Emulation.setEmulatedMedia", features=[])


def test_background_turns_dark_and_back(page, file):
    page.open(file, f"{STILL}&background=dark")
    page.wait("getComputedStyle(document.body).backgroundColor === 'rgb(18, 18, 20)'")
    assert (page.screenshot()[128, 4] == [0x12, 0x12, 0x14]).all()
    page.key("b")
    page.wait("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'")
    assert (page.screenshot()[128, 4] == 255).all()
