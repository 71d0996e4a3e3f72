"""What counts as the object: alpha, mattes, masks, shadows and stray pixels."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from stand_ins.made_up_pictures import disc, extent

import dd3g.picture.loading
from dd3g.errors import UserError
from dd3g.picture import load_image
from dd3g.picture.framing import connected, is_cut_out, object_box


@pytest.fixture
def asked(monkeypatch):
    """A matting model that takes the left half of any picture for the object, and what it was asked."""
    calls = []

    def predict(image, model):
        calls.append((model, np.asarray(image)))
        mask = np.zeros((image.height, image.width), np.uint8)
        mask[:, : image.width // 2] = 255
        return Image.fromarray(mask)

    monkeypatch.setattr(dd3g.picture.loading, "predict_matte", predict)
    return calls


def photo(alpha: np.ndarray | int, colour=(90, 120, 150)) -> np.ndarray:
    rgba = np.full((96, 128, 4), (*colour, 255), np.uint8)
    rgba[..., 3] = alpha
    return rgba


def rounded(radius: float) -> np.ndarray:
    image = Image.new("L", (128, 96))
    ImageDraw.Draw(image).rounded_rectangle((0, 0, 127, 95), radius, fill=255)
    return np.asarray(image)


def framed(value: int, sides=((1, 1), (1, 1))) -> np.ndarray:
    (top, bottom), (left, right) = sides
    inside = np.full((96 - top - bottom, 128 - left - right), 255, np.uint8)
    return np.pad(inside, sides, constant_values=value)


def one_pixel(value: int) -> np.ndarray:
    alpha = np.full((96, 128), 255, np.uint8)
    alpha[40, 50] = value
    return alpha


@pytest.mark.parametrize(
    "alpha",
    [
        *(one_pixel(254), one_pixel(0), 250, 100, rounded(4), rounded(21), rounded(26)),
        *(framed(0), framed(90), framed(0, sides=((1, 0), (0, 0))), framed(254, sides=((0, 0), (1, 1)))),
    ],
    ids=[
        *("one pixel of 254", "a hole of one pixel", "250", "100", "corners", "icon", "large corners"),
        *("frame", "soft frame", "row", "columns of 254"),
    ],
)
def test_alpha_that_is_none(alpha, asked):
    picture = load_image(photo(alpha), size=100)
    assert len(asked) == 1 and asked[0][0] == "auto"
    left, right, top, bottom = extent(picture.rgba[3])
    assert (right - left, bottom - top) == (54, 80)  # the left half
    assert torch.equal((picture.rgba[:3, 50, 40] * 255).round(), torch.tensor([90.0, 120, 150]))
    hidden = np.broadcast_to(alpha, (96, 128)) < 26
    assert (asked[0][1][hidden] == 255).all()  # what hides is arbitrary, so it is asked about white
    assert any("transparent only at its edge" in w for w in picture.warnings) == hidden.any()


@pytest.mark.parametrize(
    "alpha",
    [disc()[..., 3], rounded(47), 255 - rounded(10), np.pad(np.full((90, 122), 255), 3)],
    ids=["disc", "round all the way", "a hole with corners left", "a frame of three pixels"],
)
def test_alpha_that_is_a_cut_out(alpha, asked):
    rgba = np.full((*alpha.shape, 4), 200, np.uint8)
    rgba[..., 3] = alpha
    load_image(rgba, size=64)
    assert asked == [] and is_cut_out(Image.fromarray(rgba))


def test_a_named_model_is_asked_whatever_alpha_there_is(asked):
    picture = load_image(disc(128, 96, (90, 48), 30), size=100, matte="u2netp")
    assert [model for model, _ in asked] == ["u2netp"]
    assert (asked[0][1][0, 0] == 255).all()
    left, right, top, bottom = extent(picture.rgba[3])
    assert (right - left, bottom - top) == (54, 80)


# --- masks -------------------------------------------------------------------------------------------------


def test_a_mask_of_any_kind_wins_over_alpha_and_model(tmp_path, asked):
    shape = disc(128, 96, (80, 40), 24)
    inside = shape[..., 3] > 0
    cut = np.full((96, 128, 4), 255, np.uint8)
    cut[..., 3] = shape[..., 3]
    Image.fromarray(shape[..., 3]).save(tmp_path / "grey.png")
    Image.fromarray(cut).save(tmp_path / "alpha.png")
    Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "labels.png")
    masks = [
        tmp_path / "grey.png",
        str(tmp_path / "alpha.png"),
        tmp_path / "labels.png",
        inside,
        inside.astype(np.float32),
        torch.from_numpy(inside),
        Image.fromarray(inside),
        (tmp_path / "grey.png").read_bytes(),
    ]
    rgb = photo(255)
    rgb[..., :3] = np.random.default_rng(0).integers(0, 256, (96, 128, 3))
    wanted = rgb.copy()
    wanted[..., 3] = shape[..., 3]
    expected = load_image(wanted, size=64).rgba
    for mask in masks:
        assert torch.equal(load_image(rgb, size=64, mask=mask).rgba, expected)
    for alpha in (254, 128, np.where(shape[..., 3] > 0, 254, 255), np.pad(np.full((95, 127), 255), (1, 0))):
        masks.append(np.dstack([shape[..., [3, 3, 3]], np.broadcast_to(alpha, (96, 128))]).astype(np.uint8))
        assert torch.equal(load_image(rgb, size=64, mask=masks[-1]).rgba, expected)
    half = Image.fromarray(shape[..., 3]).resize((64, 48))
    assert (load_image(rgb, size=64, mask=half).rgba[3] - expected[3]).abs().mean() < 0.06
    assert asked == []


def test_a_picture_as_its_own_mask(tmp_path, asked):
    """A cut-out is; one without alpha is not."""
    Image.fromarray(disc()).save(tmp_path / "cut.png")
    Image.fromarray(disc()[..., :3]).save(tmp_path / "whole.png")
    own = load_image(tmp_path / "cut.png", mask=str(tmp_path / "cut.png"))
    assert torch.equal(own.rgba, load_image(tmp_path / "cut.png").rgba)
    with pytest.raises(UserError, match=r"whole.png has no alpha that could serve as its mask"):
        load_image(tmp_path / "whole.png", mask=tmp_path / "whole.png")
    assert asked == []


def test_a_saved_cut_out_is_a_picture_and_no_mask(tmp_path):
    """People edit it where the matte went wrong."""
    saved = load_image(disc(), size=64).save(tmp_path / "a.matte.png")
    with pytest.raises(
        UserError, match="a saved cut-out is framed; edit it, and give it in place of the pic"
    ):
        load_image(photo(255), mask=saved)
    again = load_image(saved, size=64).rgba
    assert (again - load_image(disc(), size=64).rgba).abs().mean() < 0.02


def test_masks_that_do_not_fit():
    rgb = photo(255)
    with pytest.raises(
        UserError, match="the mask is 96x128 pixels and its picture 128x96: give a mask of the"
    ):
        load_image(rgb, mask=np.full((128, 96), 255, np.uint8))
    with pytest.raises(UserError, match="the mask is black throughout: paint the object white"):
        load_image(rgb, mask=np.zeros((96, 128), np.uint8))
    with pytest.raises(UserError, match="nothere.png does not exist"):
        load_image(rgb, mask="nothere.png")


# --- the main mass -----------------------------------------------------------------------------------------


def shadowed(kind: str) -> np.ndarray:
    rgba = disc(256, 192, (100, 70), 40)
    if kind == "faint pixel":
        rgba[188, 250, 3] = 40
    elif kind == "solid pixels":
        rgba[180:183, 240:243, 3] = 255
    elif kind == "shadow":
        y, x = np.mgrid[:192, :256]
        shade = ((x - 140) / 110) ** 2 + ((y - 110) / 22) ** 2 <= 1
        rgba[shade & (rgba[..., 3] == 0)] = (0, 0, 0, 63)
    elif kind == "glow":
        y, x = np.mgrid[:192, :256]
        glow = np.clip(110 - 1.2 * (np.hypot(x - 100, y - 70) - 40), 0, 110).astype(np.uint8)
        rgba[..., 3] = np.maximum(rgba[..., 3], glow)
    return rgba


@pytest.mark.parametrize("kind", ["faint pixel", "solid pixels", "shadow", "glow"])
def test_what_lies_around_the_object_does_not_move_it(kind):
    picture = load_image(shadowed(kind), size=100)
    assert extent(picture.rgba[3]) == pytest.approx((10, 90, 10, 90), abs=1.5)
    (warning,) = picture.warnings
    assert "a shadow or stray pixels, were left out when it was framed" in warning


def test_parts_and_soft_edges_of_an_object_count():
    two = disc(256, 192, (60, 70), 40)
    two[120:140, 200:220] = (200, 40, 20, 255)  # 8 % of the disc
    assert object_box(Image.fromarray(two[..., 3])) == (20, 30, 220, 140)
    y, x = np.mgrid[:192, :256] + 0.5
    soft = np.clip(255 * (42 - np.hypot(x - 100, y - 70)) / 5, 0, 255).astype(np.uint8)
    picture = disc(256, 192)
    picture[..., 3] = soft
    left, top, right, bottom = object_box(Image.fromarray(soft))
    assert soft[top:bottom, left:right].sum() > 0.999 * soft.sum() and load_image(picture).warnings == ()


def test_connected_parts_against_brute_force():
    rng = np.random.default_rng(0)
    spiral = np.zeros((33, 33), bool)
    for ring in range(0, 16, 4):
        spiral[ring, ring : 33 - ring] = spiral[32 - ring, ring : 33 - ring] = True
        spiral[ring : 33 - ring, 32 - ring] = spiral[ring + 2 : 33 - ring, ring] = True
        spiral[ring + 2, ring : ring + 5] = True
    grids = [spiral, np.ones((5, 7), bool), *(rng.random((23, 31)) < p for p in (0.1, 0.3, 0.5, 0.7))]
    for grid in grids:
        label, seen = connected(grid), np.zeros(grid.shape, bool)
        for start in zip(*grid.nonzero(), strict=True):
            if seen[start]:
                continue
            part, todo = np.zeros(grid.shape, bool), [start]
            while todo:
                y, x = todo.pop()
                if 0 <= y < grid.shape[0] and 0 <= x < grid.shape[1] and grid[y, x] and not part[y, x]:
                    part[y, x] = True
                    todo += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            assert ((label == label[start]) == part).all()
            seen |= part


# --- what a model found -------------------------------------------------------------------------------------


def test_a_matte_that_is_none_shows_no_object(monkeypatch):
    y, x = np.mgrid[:160, :160]
    distance, rng = np.hypot(x - 80, y - 80), np.random.default_rng(0)
    texture = np.where((x // 8 + y // 8) % 2, 220, 40).astype(np.uint8)
    noise = rng.integers(0, 256, (160, 160, 3), np.uint8)
    disc_of = np.where(distance < 40, 255, 0)
    soft = np.clip(255 - 20 * (distance - 40), 0, 255)
    frequency = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160)) + 1e-9
    clouds = np.fft.irfft2(np.fft.rfft2(noise[..., 0] - 127.5) / frequency**1.5, (160, 160))
    clouds = 255 * (clouds - clouds.min()) / np.ptp(clouds)
    mattes = {  # matte, picture, whether there is an object
        "disc": (disc_of, texture, True),
        "soft disc": (soft, np.where(distance < 60, texture, 128), True),
        "blob of smooth noise": (soft, clouds, False),
        "on noise": (disc_of, np.where(distance < 40, texture, noise[..., 0]), True),
        "flat with grain": (disc_of, np.clip(rng.normal(120, 8, (160, 160)), 0, 255), True),
        "throughout": (np.full((160, 160), 255), texture, False),
        "nearly throughout": (np.where((x < 1) | (y < 1), 0, 250), texture, False),
        "haze": (np.clip(180 - 2 * distance, 30, 255), texture, False),
        "of noise": (disc_of, noise, False),
        "of grey noise": (disc_of, noise[..., 0], False),
        "of black and white": (disc_of, np.where(noise[..., 0] > 127, 255, 0), False),
    }
    for name, (matte, pixels, found) in mattes.items():
        given = Image.fromarray(matte.astype(np.uint8))
        monkeypatch.setattr(dd3g.picture.loading, "predict_matte", lambda image, model, given=given: given)
        pixels = pixels.astype(np.uint8)
        if found:
            assert load_image(pixels).rgba[3].max() == 1, name
        else:
            with pytest.raises(UserError, match="no object was found"):
                load_image(pixels)


# --- warnings ----------------------------------------------------------------------------------------------


def test_a_translucent_object_is_made_solid_and_that_is_said():
    rgba = disc(radius=24)
    rgba[..., 3] = np.where(rgba[..., 3] > 0, 100, 0)
    picture = load_image(rgba, size=64)
    assert picture.rgba[:, 32, 32].tolist() == pytest.approx([200 / 255, 40 / 255, 20 / 255, 1])
    (warning,) = picture.warnings
    assert "translucent (largest alpha 100 of 255)" in warning


def test_a_thin_cut_out_that_fills_the_frame_needs_no_warning():
    screwdriver = np.zeros((400, 400, 4), np.uint8)
    screwdriver[20:380, 192:208] = (60, 60, 70, 255)  # 3.6 % of the picture
    assert load_image(screwdriver).warnings == ()


def test_what_is_too_small_is_said_truly(monkeypatch):
    (warning,) = load_image(disc(400, 400, (200, 200), 10)).warnings
    assert "is only 20 pixels long" in warning and "crop" not in warning
    mask = Image.fromarray(disc(400, 400, (200, 200), 25)[..., 3])
    monkeypatch.setattr(dd3g.picture.loading, "predict_matte", lambda image, model: mask)
    (warning,) = load_image(np.full((400, 400, 3), 99, np.uint8)).warnings
    assert "spans only 12 % of the picture" in warning and "crop the picture closer" in warning


def test_a_cut_out_trimmed_to_its_object_misses_nothing(asked):
    assert load_image(disc(64, 64, (32, 32), 32)).warnings == ()
    (warning,) = load_image(photo(255)).warnings
    assert "touches the border" in warning  # of a photo, even on all sides


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alpha", "mask", "none"])
def test_a_small_object_on_a_large_canvas_keeps_its_detail(how):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 4), dtype=np.uint8)
    noise[..., 3] = 255
    canvas = np.zeros((4200, 4300, 4), np.uint8)
    canvas[900:1100, 4100:] = noise  # at the border, which is said
    close = canvas[600:1400, 3500:]
    given = {"mask": canvas[..., 3]} if how == "mask" else {}
    matte = "none" if how == "none" else "auto"
    far, near = load_image(canvas, matte=matte, **given), load_image(close, matte=matte)
    assert (far.rgba - near.rgba).abs().max() < 0.01 and far.warnings == near.warnings
    assert (how == "none") == (far.warnings == ())


def test_a_matte_that_looks_inverted_is_said():
    y, x = np.mgrid[:96, :128]
    rest = np.where(np.hypot(x - 64, y - 48) < 30, 0, 255).astype(np.uint8)
    for found in (load_image(photo(rest)), load_image(photo(255), mask=rest)):
        (warning,) = found.warnings
        assert "covers its border and leaves out what is within: invert it if" in warning
    for mask in (255 - rest, rounded(20)):
        assert load_image(photo(255), mask=mask).warnings == ()


def test_foreground_ratio():
    for ratio in (0.5, 0.8, 1.0):
        left, right, _, _ = extent(load_image(disc(), size=200, fill=ratio).rgba[3])
        assert right - left == pytest.approx(200 * ratio, abs=8)
    with pytest.raises(UserError, match="ratio 1.2 is out of range: give 0.1 to 1"):
        load_image(disc(), fill=1.2)
