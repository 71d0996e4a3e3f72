"""Shadows, glows and films around a cut-out become no matter; glass and hair stay."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dd3g import Generator, load_image
from dd3g.picture.framing import box_sum, grown, without_haze

LAMP = np.asarray(Image.open(Path(__file__).parents[3] / "assets/lamp.png").convert("RGBA"))
Y, X = np.mgrid[:256, :256]


def blurred(alpha: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(alpha.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)))


def dropped(right: int, down: int, blur: float, level: int) -> np.ndarray:
    return blurred(np.roll(LAMP[..., 3], (down, right), (0, 1)), blur) * (level / 255)


def layer(alpha: np.ndarray, colour) -> Image.Image:
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, alpha
    return Image.fromarray(rgba)


ELLIPSE = ((X - 128) / 100) ** 2 + ((Y - 225) / 16) ** 2 < 1
HAZE = {
    "soft shadow": (dropped(12, 12, 6, 63), 0),
    "dense shadow": (dropped(20, 20, 10, 110), 0),
    "denser than half": (dropped(15, 10, 8, 150), 0),
    "hard shadow": (dropped(15, 15, 0.6, 63), 0),
    "on the ground": (np.where(ELLIPSE, 63, 0), 0),
    "contact": (blurred(np.where(ELLIPSE, 90, 0), 4), 0),
    "bluish": (dropped(15, 15, 8, 80), (60, 60, 120)),
    "tinted": (blurred(np.where(ELLIPSE, 120, 0), 5), (60, 60, 120)),
    "plate": (np.where((abs(X - 128) < 110) & (abs(Y - 128) < 120), 20, 0), (200, 200, 200)),
    "noise": (np.random.default_rng(0).integers(0, 30, (256, 256)), (90, 200, 30)),
    "film": (np.full((256, 256), 60), (200, 200, 200)),
    "faint film": (np.full((256, 256), 9), (200, 200, 200)),
    "glow": (dropped(0, 0, 12, 100), (255, 230, 120)),
    "black glow": (dropped(0, 0, 8, 200), 0),
}


@pytest.mark.parametrize("kind", HAZE)
@pytest.mark.parametrize("times", [1, 5])
def test_haze_goes_and_the_object_stays(kind, times):
    around = layer(*HAZE[kind])
    image = Image.alpha_composite(around, Image.fromarray(LAMP)).resize((256 * times,) * 2)
    left = np.asarray(without_haze(image)[0].resize((256, 256)))[..., 3].astype(int)
    object = LAMP[..., 3] > 0
    assert ((left > 5) & ~grown(object, 1)).sum() < 0.04 * object.sum()
    before = np.asarray(around)[..., 3]
    assert ((before > 5) & ~grown(object, 1)).sum() > 0.1 * object.sum()
    assert np.abs(left - LAMP[..., 3])[object].mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft shadow", "contact", "glow"])
def test_a_shadow_adds_no_gaussians(kind):
    image = Image.alpha_composite(layer(*HAZE[kind]), Image.fromarray(LAMP))
    found = load_image(image)
    (warning,) = found.warnings
    assert "such as a shadow or stray pixels, were left out when it was framed" in warning
    generator = Generator.from_pretrained("nano")
    plain = len(generator.generate(Image.fromarray(LAMP)))
    assert len(generator.generate(found)) == pytest.approx(plain, rel=0.05)


def hair(colour, first: float = np.pi) -> list[Image.Image]:
    """Strands at angles from `first` to a whole turn, below the head."""
    rng, drawn = np.random.default_rng(0), Image.new("L", (1024, 1024))
    pen = ImageDraw.Draw(drawn)
    for _ in range(900):
        angle, length, bend = rng.uniform(first, 2 * np.pi), rng.uniform(110, 190), rng.normal(0, 0.25)
        radii = [100 + (length - 100) * k / 6 for k in range(7)]
        turns = [angle + bend * k / 6 for k in range(7)]
        line = [(2 * (256 + np.cos(t) * r), 2 * (300 + np.sin(t) * r)) for t, r in zip(turns, radii)]
        pen.line(line, fill=int(rng.uniform(80, 200)), width=1)
    y, x = np.mgrid[:512, :512]
    head = np.where(np.hypot(x - 256, y - 300) < 110, 255, 0)
    return [layer(np.asarray(drawn.resize((512, 512))), colour), layer(head, (200, 160, 140))]


def blurred_layer(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


BOWL = ((X - 128) / 55) ** 2 + ((Y - 85) / 70) ** 2
FOOT = np.where((abs(X - 128) < 5) & (Y > 150) & (Y < 230) | (abs(X - 128) < 40) & (abs(Y - 232) < 6), 255, 0)
WINGS = np.minimum(abs(X - 65), abs(X - 191)) ** 2 / 55**2 + (Y - 100.0) ** 2 / 30**2 < 1
DISC = np.hypot(X - 128, Y - 128) < 60
MATTER = {
    "glass": lambda: [layer(np.where(BOWL < 1, 70, 0), (190, 210, 230)), layer(FOOT, 170)],
    "soft glass": lambda: [layer(blurred(np.where(BOWL < 1, 70, 0), 1.2), (190, 210, 230)), layer(FOOT, 170)],
    "black glass": lambda: [layer(np.where(BOWL < 1, 70, 0), 0), layer(FOOT, 0)],
    "soft black glass": lambda: [layer(blurred(np.where(BOWL < 1, 90, 0), 1.2), 0), layer(FOOT, 170)],
    "black glass in a rim": lambda: [
        layer(np.where(BOWL < 1, 70, 0), 0),
        layer(FOOT, 170),
        layer(np.where(abs(BOWL - 1) < 0.08, 255, 0), 120),
    ],
    "wings": lambda: [
        layer(np.where(WINGS, 90, 0), (240, 220, 240)),
        layer(np.where((abs(X - 128) < 8) & (abs(Y - 110) < 50), 255, 0), 40),
    ],
    "black lenses": lambda: [
        layer(np.where(np.minimum(abs(X - 80), abs(X - 176)) ** 2 + (Y - 128) ** 2 < 35**2, 150, 0), 0),
        layer(np.where((abs(Y - 100) < 4) & (abs(X - 128) < 90), 255, 0), 0),
    ],
    "black lenses without a rim": lambda: [
        layer(np.where(np.minimum(abs(X - 80), abs(X - 176)) ** 2 + (Y - 128) ** 2 < 35**2, 90, 0), 0),
        layer(np.where((abs(Y - 128) < 4) & (abs(X - 128) < 20), 255, 0), 0),
    ],
    "ghost": lambda: [  # solid in stripes, with a sharp outline
        layer(np.where((abs(X - 128) < 55) & (abs(Y - 128) < 80), 90 + 40 * np.sin(X / 10), 0), 230)
    ],
    "out of focus": lambda: [layer(blurred(np.where(DISC, 255, 0), 9), (240, 240, 250))],
    "black out of focus": lambda: [layer(blurred(np.where(DISC, 255, 0), 7), 3)],
    "flame": lambda: [layer(np.clip(280 - 3 * np.hypot(1.8 * (X - 128), Y - 165.0), 0, 255), (255, 180, 40))],
    "hair": lambda: hair((70, 50, 40)),
    "black hair": lambda: hair(0),
    "blurred black hair": lambda: [blurred_layer(hair(0)[0], 1.5), hair(0)[1]],
    "blurred coat of black fur": lambda: [blurred_layer(hair(0, 0)[0], 3), hair(0)[1]],
    "blurred coat of brown fur": lambda: [blurred_layer(hair((70, 50, 40), 0)[0], 3), hair(0)[1]],
    "lamp": lambda: [Image.fromarray(LAMP)],
}


@pytest.mark.parametrize("kind", MATTER)
def test_what_belongs_to_the_object_stays(kind):
    image, *more = MATTER[kind]()
    for part in more:
        image = Image.alpha_composite(image, part)
    cleaned, went = without_haze(image)
    assert went == 0 and np.array_equal(np.asarray(cleaned), np.asarray(image))


@pytest.mark.filterwarnings("error")
def test_what_is_faint_within_a_frame_stays():
    hole = np.where((abs(X - 128) < 60) & (abs(Y - 128) < 60), 60, 255)
    image = layer(hole, (200, 80, 40))
    assert without_haze(image) == (image, 0.0)


def test_the_user_may_take_alpha_as_it_is(tmp_path):
    image = Image.alpha_composite(layer(*HAZE["soft shadow"]), Image.fromarray(LAMP))
    image.save(tmp_path / "a.png")
    kept = load_image(tmp_path / "a.png", mask=tmp_path / "a.png").rgba[3]
    cleaned = load_image(tmp_path / "a.png").rgba[3]
    assert (kept > 0.02).sum() > 1.3 * (cleaned > 0.02).sum()


def test_box_sums_against_brute_force():
    values = np.random.default_rng(0).random((9, 14))
    for by in (0, 1, 3, 20):
        sums = box_sum(values, by)
        for i, j in np.ndindex(values.shape):
            near = values[max(0, i - by) : i + by + 1, max(0, j - by) : j + by + 1]
            assert sums[i, j] == pytest.approx(near.sum())


@pytest.mark.parametrize("size", [(4000, 12), (12, 4000), (5000, 8), (700, 1)])
def test_a_strip_of_one_cell_across_keeps_what_it_shows(size):
    alpha = np.full(size[::-1], 255, np.uint8)
    alpha[: size[1] // 3], alpha[:, : size[0] // 3] = 100, 60
    strip = layer(alpha, (200, 50, 50))
    cleaned, _ = without_haze(strip)
    assert cleaned.size == size
    assert (np.asarray(cleaned)[..., 3] == 255).sum() == (alpha == 255).sum()
