import io
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dd3g.matting
import dd3g.picture
from dd3g import models
from dd3g.errors import UserError
from dd3g.picture import FILL, Picture, load_image, read_rgba, resize_rgba


def disc(width=96, height=64, centre=(40, 30), radius=16, colour=(200, 40, 20)) -> np.ndarray:
    """(H, W, 4) uint8: an opaque disc on transparent."""
    y, x = np.mgrid[:height, :width] + 0.5
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = 255 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2)
    return rgba


def extent(alpha: torch.Tensor) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of the object in pixels, to a fraction of a pixel."""
    columns, rows = alpha.amax(0), alpha.amax(1)
    edges = []
    for profile in (columns, rows):
        inside = (profile > 0.5).nonzero()[:, 0]
        edges += [inside[0].item(), inside[-1].item() + 1]
    return tuple(edges)


@pytest.fixture
def matte_of_left_half(monkeypatch):
    """A matting model that takes the left half of any picture for the object."""

    def predict(image, model):
        mask = np.zeros((image.height, image.width), np.uint8)
        mask[:, : image.width // 2] = 255
        return Image.fromarray(mask)

    monkeypatch.setattr(dd3g.picture, "predict_matte", predict)


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


# --- file formats ------------------------------------------------------------------------------------------


def encoded(image: Image.Image, format: str, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer


def opened(tmp_path, image, suffix, **options) -> np.ndarray:
    path = tmp_path / f"x{suffix}"
    image.save(path, **options)
    pixels = np.asarray(read_rgba(path))
    assert (np.asarray(read_rgba(path.read_bytes())) == pixels).all()
    return pixels


def test_every_mode_and_format_gives_the_same_colours(tmp_path):
    rgba = Image.fromarray(disc())
    rgb = rgba.convert("RGB")
    for suffix, image, options, tolerance in [
        (".png", rgba, {}, 0),
        (".png", rgb, {}, 0),
        (".bmp", rgb, {}, 0),
        (".webp", rgba, {"lossless": True, "exact": True}, 0),
        (".jpg", rgb, {"quality": 95}, 8),
        (".jpg", rgb.convert("CMYK"), {"quality": 95}, 8),
        (".png", rgb.quantize(16), {}, 2),
        (".gif", rgb.quantize(16), {}, 2),
    ]:
        out = opened(tmp_path, image, suffix, **options)
        wanted = np.asarray(image.convert("RGB") if image.mode != "RGBA" else image)
        difference = np.abs(out[..., : wanted.shape[-1]].astype(int) - wanted)
        assert difference.max() <= tolerance, (suffix, image.mode)


def test_grey_and_grey_with_alpha(tmp_path):
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
    for mode, image in [
        ("L", Image.fromarray(grey)),
        ("LA", Image.fromarray(np.stack([grey, 255 - grey], -1))),
    ]:
        out = opened(tmp_path, image, ".png")
        assert (out[..., :3] == grey[..., None]).all()
        assert (out[..., 3] == (255 - grey if mode == "LA" else 255)).all()


def test_one_bit(tmp_path):
    pixels = np.arange(16 * 16).reshape(16, 16) % 3 == 0
    assert (opened(tmp_path, Image.fromarray(pixels), ".png")[..., 0] == 255 * pixels).all()


def test_16_bit_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16)
    grey = np.tile(values, (16, 1))
    out = opened(tmp_path, Image.fromarray(grey), ".png")
    assert (out[..., 0] == grey >> 8).all()
    for channels, kind in ((3, 2), (4, 6)):  # RGB and RGBA, which Pillow does not write at 16 bits
        path = tmp_path / f"{channels}.png"
        path.write_bytes(png16(np.repeat(grey[..., None], channels, -1), kind))
        assert (np.asarray(read_rgba(path))[..., :channels] == (grey >> 8)[..., None]).all()


def png16(pixels: np.ndarray, kind: int) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_palette_with_transparency(tmp_path):
    indices = np.zeros((16, 16), np.uint8)
    indices[4:12, 4:12] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([0, 255, 0, 250, 10, 20])
    for suffix in (".png", ".gif"):
        out = opened(tmp_path, image, suffix, transparency=0)
        assert (out[..., 3] == 255 * indices).all()
        assert (out[6, 6] == (250, 10, 20, 255)).all()
    out = opened(tmp_path, image, ".png", transparency=bytes([0, 128]))  # graded alpha per palette entry
    assert out[6, 6, 3] == 128 and out[0, 0, 3] == 0


def test_single_transparent_colour(tmp_path):
    image = Image.fromarray(disc()[..., :3].copy())
    image.putpixel((0, 0), (0, 0, 0))
    out = opened(tmp_path, image, ".png", transparency=(0, 0, 0))
    assert out[0, 0, 3] == 0 and out[5, 5, 3] == 255


def test_a_transparent_grey_of_16_bits(tmp_path):
    grey = np.full((16, 16), 40000, np.uint16)
    grey[4:12, 4:12] = 40001  # the same once it has 8 bits
    out = opened(tmp_path, Image.fromarray(grey), ".png", transparency=40000)
    assert (out[4:12, 4:12] == (156, 156, 156, 255)).all()
    assert (out[..., 3] == np.where(grey == 40000, 0, 255)).all()


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert tuple(np.asarray(read_rgba(tmp_path / "x.gif"))[3, 3]) == (255, 0, 0, 255)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_rotation(tmp_path, suffix):
    upright = np.zeros((40, 24, 3), np.uint8)
    upright[:10] = (255, 0, 0)
    stored = Image.fromarray(np.rot90(upright).copy())  # turned left, as a camera held on its side stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn right to show"
    out = opened(tmp_path, stored, suffix, exif=exif)
    assert out.shape[:2] == (40, 24)
    assert out[4, 12, 0] > 240 and out[30, 12, 0] < 15


def test_icc_profile_is_ignored(tmp_path):
    from PIL import ImageCms

    image = Image.fromarray(disc()[..., :3])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert (opened(tmp_path, image, ".png", icc_profile=profile) == opened(tmp_path, image, ".png")).all()


@pytest.mark.parametrize("side", [8, 8000])
def test_smallest_and_largest(tmp_path, side):
    image = Image.new("P", (side, side))
    image.putpalette([0, 0, 0, 9, 99, 199])
    image.paste(1, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    path = tmp_path / "x.png"
    image.save(path, transparency=0, compress_level=1)
    picture = load_image(path, size=64)
    edges = extent(picture.rgba[3])
    assert edges == pytest.approx((6.4, 57.6, 6.4, 57.6), abs=1 if side == 8000 else 4)
    assert torch.allclose(picture.rgba[:, 32, 32], torch.tensor([9, 99, 199, 255]) / 255)


def test_extreme_aspect_ratio():
    rgba = np.full((8, 2000, 4), 255, np.uint8)
    rgba[0] = 0
    assert load_image(rgba, size=64).rgba[3].sum() > 0


# --- what the object is ------------------------------------------------------------------------------------


def test_alpha_is_used_without_any_matting_model(monkeypatch):
    monkeypatch.setattr(dd3g.picture, "predict_matte", lambda *_: pytest.fail("a matte was asked for"))
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[0, 0, 3] = 254  # one pixel below 255 is enough
    load_image(rgba)


def test_opaque_alpha_channel_is_matted(matte_of_left_half):
    rgba = np.full((64, 64, 4), 255, np.uint8)
    left, right, top, bottom = extent(load_image(rgba, size=100).rgba[3])
    assert (right - left, bottom - top) == (40, 80)


def test_no_matte_takes_the_whole_picture(monkeypatch):
    monkeypatch.setattr(dd3g.picture, "predict_matte", lambda *_: pytest.fail("a matte was asked for"))
    picture = load_image(np.full((40, 80, 3), 77, np.uint8), size=100, matte="none")
    assert extent(picture.rgba[3]) == (10, 90, 30, 70)
    assert torch.equal(picture.rgba[:, 50, 50], torch.tensor([77, 77, 77, 255]) / 255)
    assert picture.warnings == ()


def test_no_warning_for_a_good_picture():
    assert load_image(disc()).warnings == ()


def test_warning_when_nearly_empty():
    (warning,) = load_image(disc(400, 400, (200, 200), 40)).warnings  # 3.1 %
    assert "only 3.1 %" in warning


@pytest.mark.parametrize("centre", [(10, 30), (90, 30), (40, 10), (40, 60)])
def test_warning_when_the_border_is_touched(centre):
    (warning,) = load_image(disc(96, 64, centre, 16)).warnings
    assert "touches the border" in warning


def test_empty_matte_is_an_error(monkeypatch):
    monkeypatch.setattr(dd3g.picture, "predict_matte", lambda image, model: Image.new("L", image.size))
    with pytest.raises(UserError, match="no object was found"):
        load_image(np.full((64, 64, 3), 255, np.uint8))


def test_missing_matting_model_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path))
    dd3g.matting._u2netp_session.cache_clear()
    with pytest.raises(UserError, match="python -m dd3g.models fetch u2netp"):
        load_image(np.full((64, 64, 3), 255, np.uint8))


@pytest.mark.parametrize("name", ["auto", "u2netp"])
def test_u2netp_is_run_without_rembg_whichever_way_it_is_named(monkeypatch, name):
    class Session:
        def get_inputs(self):
            return [SimpleNamespace(name="input")]

        def run(self, _, inputs):
            return [inputs["input"][:, :1]]

    monkeypatch.setattr(dd3g.matting, "_u2netp_session", lambda *_: Session())
    monkeypatch.setattr(dd3g.matting, "_rembg_session", lambda *_: pytest.fail("rembg was asked"))
    shape = disc()
    rgb = np.where(shape[..., 3:] > 0, np.uint8(255), np.uint8(0)).repeat(3, -1)
    cutout, _ = dd3g.picture.cut_out(read_rgba(rgb), name, "x")
    assert (np.asarray(cutout)[..., 3] >= 128).mean() == pytest.approx((shape[..., 3] > 0).mean(), abs=0.02)


@pytest.mark.skipif(models.model_path("u2netp") is None, reason="u2netp is not fetched")
def test_u2netp_finds_a_disc():
    dd3g.matting._u2netp_session.cache_clear()
    shape = disc(300, 200, (150, 90), 60)
    rgb = np.where(shape[..., 3:] > 0, shape[..., :3], np.uint8(235))
    cutout, warnings = dd3g.picture.cut_out(read_rgba(rgb), "auto", "x")
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


# --- bad input ---------------------------------------------------------------------------------------------


def bad(tmp_path, data: bytes, name="x.png"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def fails(path, message):
    with pytest.raises(UserError, match=message) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated(tmp_path, format, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format).getvalue()
    fails(bad(tmp_path, data[: int(part * len(data))]), "damaged or cut short|is not a PNG")


def test_damaged_bytes_never_give_a_traceback(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = encoded(noise.convert("RGB") if format == "JPEG" else noise, format).getvalue()
        for _ in range(60):
            damaged = bytearray(data)
            for i in rng.integers(0, min(len(data), 200), 4):
                damaged[i] = rng.integers(0, 256)
            try:
                load_image(bad(tmp_path, bytes(damaged)), size=16, matte="none")
            except UserError as e:
                assert len(str(e)) < 400


def test_empty_file(tmp_path):
    fails(bad(tmp_path, b""), r"empty \(0 bytes\)")


def test_text_renamed_to_png(tmp_path):
    fails(bad(tmp_path, b"hello, I am a text\n" * 20), "is not a PNG, JPEG")


def test_unsupported_format(tmp_path):
    path = tmp_path / "x.tiff"
    Image.fromarray(disc()).save(path)
    fails(path, "save it as PNG")


def test_postscript_is_never_run(tmp_path):
    fails(bad(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"), "is not a PNG")


@pytest.mark.parametrize("side", [9000, 12000, 60000])
def test_decompression_bomb(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10000))
    chunks = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
        for n, d in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
    fails(bad(tmp_path, b"\x89PNG\r\n\x1a\n" + chunks), "more than 80 million pixels")


@pytest.mark.parametrize("width, height", [(1, 1), (7, 100), (100, 7)])
def test_too_small(tmp_path, width, height):
    path = tmp_path / "x.png"
    Image.new("RGB", (width, height)).save(path)
    fails(path, f"is {width}x{height} pixels, too small")


def test_fully_transparent(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(path)
    fails(path, "fully transparent")


def test_missing_and_folder(tmp_path):
    fails(tmp_path / "nothere.png", "does not exist")
    fails(tmp_path, "is a folder")


def test_unreadable(tmp_path, monkeypatch):
    path = bad(tmp_path, b"x")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    fails(path, "may not be read")


def test_the_system_names_its_own_errors(tmp_path, monkeypatch):
    fails(tmp_path / (300 * "x"), r"cannot be read \(File name too long\): check the path")
    path = bad(tmp_path, b"x")

    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", refuse)
    fails(path, r"cannot be read \(Input/output error\)")


@pytest.mark.parametrize("array", [np.zeros((8, 8, 5), np.uint8), np.zeros((8, 8, 3)), np.zeros(8, np.uint8)])
def test_wrong_array(array):
    with pytest.raises(UserError, match="must be uint8"):
        load_image(array)


def test_reading_a_bad_picture_does_not_wait_for_torch(tmp_path):
    path = bad(tmp_path, b"no picture")
    code = (
        "import sys; from dd3g.picture import load_image; from dd3g.errors import UserError\n"
        f"try: load_image({str(path)!r})\nexcept UserError: sys.exit(10 + ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 10
