"""Each filter with a picture that passes it and one that fails it and nothing else."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from data_gen.filters.mattes import MatteConfig, Matted, matte_and_frame
from data_gen.filters.rules import REASONS, RULES, FilterConfig, judge, measure

SIDE = 256


def picture(mask: Image.Image, colours: tuple = ((190, 90, 60), (60, 80, 150)), stripe: int = 24) -> Matted:
    """A striped object in the form of a mask, cut out as pictures with alpha are."""
    paint = Image.new("RGBA", mask.size, colours[0])
    brush = ImageDraw.Draw(paint)
    for x in range(0, mask.width, 2 * stripe):
        brush.rectangle((x, 0, x + stripe - 1, mask.height), fill=colours[1])
    paint.putalpha(mask)
    found = matte_and_frame(paint, MatteConfig(size=SIDE))
    assert found is not None
    return found


def form(*boxes: tuple[float, ...], kind: str = "ellipse", side: int = 512) -> Image.Image:
    """A mask of ellipses or rectangles; boxes in 0..1."""
    mask = Image.new("L", (2 * side, 2 * side))
    for box in boxes:
        getattr(ImageDraw.Draw(mask), kind)([v * 2 * side for v in box], fill=255)
    return mask.reduce(2)


DISC = (0.2, 0.2, 0.8, 0.8)


def with_glass(alpha: int, radius: float) -> Image.Image:
    """A disc whose middle is half transparent."""
    mask = form(DISC)
    low, high = 512 * (0.5 - radius), 512 * (0.5 + radius)
    ImageDraw.Draw(mask).ellipse((low, low, high, high), fill=alpha)
    return mask


def blurred(matted: Matted, radius: float) -> Matted:
    colour = Image.fromarray(matted.rgba).convert("RGBa").filter(ImageFilter.GaussianBlur(radius))
    return Matted(np.dstack([np.asarray(colour.convert("RGBA"))[..., :3], matted.rgba[..., 3]]), matted.alpha)


def grid(bars: int, thickness: float) -> Image.Image:
    """A net of bars, one part, nowhere thick."""
    centres = np.linspace(0.15, 0.85, bars)
    boxes = [(c - thickness, 0.15, c + thickness, 0.85) for c in centres]
    return form(*boxes, *((b, a, d, c) for a, b, c, d in boxes), kind="rectangle")


def cross(width: float) -> Image.Image:
    arms = (0.1, 0.5 - width, 0.9, 0.5 + width), (0.5 - width, 0.1, 0.5 + width, 0.9)
    return form(*arms, kind="rectangle")


def bar(width: float) -> Image.Image:
    return form((0.05, 0.5 - width / 2, 0.95, 0.5 + width / 2), kind="rectangle")


GREY = ((90, 90, 90), (170, 170, 170))
CASES = {
    # code: (a picture that passes, one that fails, other options)
    "small": (form((0.4, 0.4, 0.6, 0.6)), form((0.46, 0.46, 0.54, 0.54)), {}),
    "large": (form((0.02, 0.02, 0.98, 0.98)), form((0.01, 0.01, 0.99, 0.99), kind="rectangle"), {}),
    "border": (form((0.01, 0.2, 0.6, 0.8)), form((-0.2, 0.2, 0.4, 0.8)), {}),
    "parts": (
        form(DISC, (0.02, 0.02, 0.12, 0.12)),
        form((0.1, 0.1, 0.45, 0.45), (0.55, 0.55, 0.9, 0.9)),
        {},
    ),
    "soft": (with_glass(128, 0.08), with_glass(128, 0.2), {}),
    "flat": (bar(0.06), bar(0.03), {"min_thickness": 0.0}),
    "sparse": (cross(0.05), cross(0.015), {"min_thickness": 0.0}),
    "thin": (grid(4, 0.03), grid(9, 0.005), {}),
    "blur": (picture(form(DISC)), blurred(picture(form(DISC)), 6), {}),
    "contrast": (
        picture(form(DISC), ((150, 90, 90), (138, 86, 80))),
        picture(form(DISC), ((120, 60, 60), (119, 62, 59))),
        {},
    ),
    "grey": (picture(form(DISC)), picture(form(DISC), GREY), {"min_colourfulness": 5.0}),
    "garish": (picture(form(DISC)), picture(form(DISC), ((255, 0, 0), (0, 255, 30))), {}),
}


def rejected_by(scores: dict[str, float], config: FilterConfig) -> list[str]:
    """Every reason there is, each found with the other thresholds out of the way."""
    found = []
    for code, (score, _, _) in RULES.items():
        alone = judge({k: v for k, v in scores.items() if k == score}, config)
        found += [code] if alone == code else []
    return found


@pytest.mark.parametrize("code", CASES)
def test_filter_rejects_what_it_is_for_and_nothing_else(code):
    good, bad, options = CASES[code]
    config = FilterConfig(**options)
    good, bad = (p if isinstance(p, Matted) else picture(p) for p in (good, bad))
    assert judge(measure(good), config) == "", measure(good)
    assert rejected_by(measure(bad), config) == [code], measure(bad)
    assert judge(measure(bad), config) == code


def test_scores_of_a_known_picture():
    scores = measure(picture(form((0.25, 0.25, 0.75, 0.75), kind="rectangle")))
    assert scores["coverage"] == pytest.approx(0.25, abs=0.005)
    assert scores["border"] == 0 and scores["soft"] == 0 and scores["main"] == 1
    assert scores["aspect"] == pytest.approx(1, abs=0.01) and scores["fill"] == pytest.approx(1, abs=0.01)
    assert scores["thickness"] == pytest.approx(0.8, abs=0.02)  # as the frame is filled
    assert all(type(v) is float and np.isfinite(v) for v in scores.values())
    left, right = np.array([[190, 90, 60], [60, 80, 150]], float)
    luminance = np.array([0.299, 0.587, 0.114])
    assert scores["contrast"] == pytest.approx(abs((left - right) @ luminance) / 2, rel=0.1)
    a = [c[0] - c[1] for c in (left, right)]
    b = [(c[0] + c[1]) / 2 - c[2] for c in (left, right)]
    expected = np.hypot(np.std(a), np.std(b)) + 0.3 * np.hypot(np.mean(a), np.mean(b))
    assert scores["colourfulness"] == pytest.approx(expected, rel=0.1)


def test_sharpness_falls_with_the_blur_and_ignores_the_contrast():
    sharp = picture(form(DISC))
    faint = picture(form(DISC), ((120, 90, 60), (100, 88, 78)))
    falling = [measure(blurred(sharp, r))["sharpness"] for r in (0, 2, 4)]
    assert falling == sorted(falling, reverse=True) and falling[0] > 0.6 > 0.3 > falling[2]
    assert measure(faint)["sharpness"] == pytest.approx(falling[0], abs=0.05)
    assert measure(picture(form(DISC), ((90, 60, 30), (90, 60, 30))))["sharpness"] == 1.0


def test_border_counts_a_cut_edge_by_its_length():
    alpha = np.zeros((100, 100), np.uint8)
    alpha[40:60, :30] = 255
    rgba = picture(form(DISC)).rgba
    assert measure(Matted(rgba, alpha))["border"] == pytest.approx(20 / 396, abs=1e-4)


@pytest.mark.parametrize("size", [64, 100, 128, 200, 256, 512])
def test_any_size_gives_similar_scores(size):
    found = matte_and_frame(Image.fromarray(picture(form(DISC)).rgba), MatteConfig(size=size))
    scores, expected = measure(found), measure(picture(form(DISC)))
    for name in ("main", "aspect", "fill", "contrast", "colourfulness"):
        assert scores[name] == pytest.approx(expected[name], rel=0.2), name


def test_a_picture_of_nothing_is_rejected_without_an_error():
    nothing = Matted(np.zeros((64, 64, 4), np.uint8), np.zeros((80, 90), np.uint8))
    assert judge(measure(nothing), FilterConfig()) == "small"
    tiny = matte_and_frame(Image.fromarray(picture(form(DISC)).rgba), MatteConfig(size=16))
    assert all(np.isfinite(v) for v in measure(tiny).values())
    faint = Matted(np.full((64, 64, 4), 100, np.uint8), np.full((80, 90), 100, np.uint8))
    assert all(np.isfinite(v) for v in measure(faint).values())


def test_scores_that_are_not_there_are_not_judged():
    assert judge({}, FilterConfig()) == ""
    assert judge({"clip": 0.1}, FilterConfig()) == "clip"
    assert judge({"aesthetic": 3.0}, FilterConfig()) == "ugly"
    assert judge({"unsafe": 1.0, "clip": 0.1}, FilterConfig()) == "unsafe"
    assert judge({"clip": 0.2, "aesthetic": 4.5, "unsafe": 0.5}, FilterConfig()) == ""


def test_every_reason_has_a_sentence():
    assert set(RULES) | {"unreadable", "no_object", "duplicate"} == set(REASONS)
    assert all(name in vars(FilterConfig()) for _, name, _ in RULES.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_soft": float("nan")}, "max_soft must be between 0 and 1, got nan"),
        ({"min_main": 90}, "min_main must be between 0 and 1, got 90"),
        ({"max_unsafe": -0.1}, "max_unsafe must be between 0 and 1, got -0.1"),
        ({"min_contrast": 200}, "min_contrast must be between 0 and 127.5, got 200"),
        ({"max_colourfulness": -1}, "max_colourfulness must be at least 0, got -1"),
        ({"min_clip": 25}, "min_clip must be between -1 and 1, got 25"),
        ({"min_coverage": 0.9}, "min_coverage 0.9 is above max_coverage 0.85"),
        ({"duplicate_distance": 63}, "duplicate_distance must be between -1 and 62, got 63"),
        ({"aesthetic": "head.safetensors"}, "set clip as well"),
        ({"safety": "head.safetensors"}, "set clip as well"),
    ],
)
def test_unusable_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FilterConfig(**options)
