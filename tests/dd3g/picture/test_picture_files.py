"""Pictures of every mode, format, depth and orientation give the colours that they show."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.encoded_pictures import bad, chunk, encoded, fails, opened
from stand_ins.made_up_pictures import DISPLAY_P3, disc, extent

from dd3g.picture import load_image, read_rgba


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


def test_a_first_picture_that_covers_a_part(tmp_path):
    """An encoder stores the covered part alone, and may not say that the rest is clear."""
    first = Image.new("RGBA", (48, 32))
    first.paste((200, 80, 40, 255), (0, 0, 24, 32))
    blue = [Image.new("RGBA", (48, 32), "blue")]
    for suffix in (".webp", ".gif", ".png", ".avif"):
        out = opened(tmp_path, first, suffix, save_all=True, append_images=blue, duration=100)
        assert out[16, 12, 3] == 255 and out[16, 40, 3] == 0, suffix


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


@pytest.mark.parametrize("side", [8, pytest.param(8000, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize(
    "suffix, options",
    [
        (".tif", {}),
        (".tiff", {"compression": "tiff_lzw"}),
        (".tif", {"compression": "tiff_deflate"}),
        (".tif", {"compression": "packbits"}),
        (".avif", {"quality": 100, "subsampling": "4:4:4"}),
        (".ico", {"sizes": [(64, 64)]}),
        (".ico", {"sizes": [(64, 64)], "bitmap_format": "bmp"}),
        (".bmp", {}),
    ],
)
def test_formats_with_alpha(tmp_path, suffix, options):
    image = Image.fromarray(disc(64, 64, (32, 32), 20))
    out = opened(tmp_path, image, suffix, **options).astype(int)
    wanted = np.asarray(image).astype(int)
    inside = wanted[..., 3] > 0
    assert np.abs(out[..., 3] - wanted[..., 3]).max() <= 2 and np.abs((out - wanted)[inside]).max() <= 8


def test_names_of_jpegs(tmp_path):
    image = Image.new("RGB", (32, 32), (200, 80, 40))
    (tmp_path / "x.jfif").write_bytes(encoded(image, "JPEG").getvalue())
    image.save(tmp_path / "x.mpo", save_all=True, append_images=[Image.new("RGB", (32, 32), "blue")])
    for path in tmp_path.iterdir():
        assert np.abs(np.asarray(read_rgba(path))[9, 9].astype(int) - (200, 80, 40, 255)).max() <= 4


def test_heic(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    image = Image.new("RGB", (64, 64), (200, 80, 40))
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95)
    path = bad(tmp_path, buffer.getvalue(), "x.heic")
    assert np.abs(np.asarray(read_rgba(path))[9, 9].astype(int) - (200, 80, 40, 255)).max() <= 6
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    fails(path, r"needs the extra 'heif': pip install 'dd3g\[heif\]'")


def test_heic_turned_cut_out_deep_and_of_several(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    red = Image.new("RGB", (64, 48), (200, 80, 40))

    def read(file, **how):
        buffer = io.BytesIO()
        (pillow_heif.from_pillow(file) if isinstance(file, Image.Image) else file).save(
            buffer, quality=95, **how
        )
        return np.asarray(read_rgba(bad(tmp_path, buffer.getvalue(), "x.heic"))).astype(int)

    striped = red.copy()
    striped.paste((0, 0, 200), (0, 0, 64, 12))
    sides = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}
    for turn, side in sides.items():
        exif = Image.Exif()
        exif[0x0112] = turn
        out = read(striped, exif=exif.tobytes())
        assert out.shape[:2] == ((48, 64) if turn < 5 else (64, 48))
        edges = {"top": out[3, 24], "bottom": out[-3, 24], "left": out[24, 3], "right": out[24, -3]}
        assert [name for name, pixel in edges.items() if pixel[2] > 150] == [side], turn
    out = read(Image.fromarray(disc(64, 64, (32, 32), 20)))
    assert out[32, 32, 3] == 255 and out[2, 2, 3] == 0
    out = read(Image.new("RGB", (64, 48), (91, 195, 60)), icc_profile=DISPLAY_P3)
    assert np.abs(out[9, 9] - (8, 200, 0, 255)).max() <= 15
    deep = np.full((48, 64, 3), np.array([200, 80, 40]) * 257, "<u2")
    out = read(pillow_heif.from_bytes("RGB;16", (64, 48), deep.tobytes()))
    assert np.abs(out[9, 9] - (200, 80, 40, 255)).max() <= 6
    several = pillow_heif.from_pillow(red)
    several.add_from_pillow(Image.new("RGB", (64, 48), "blue"))
    assert read(several)[9, 9, 2] < 60 < 200 < read(several, primary_index=1)[9, 9, 2]


def test_a_bmp_of_32_bits_with_no_alpha_in_it(tmp_path):
    pixels = disc()
    pixels[..., 3] = 0  # as Windows writes them
    out = opened(tmp_path, Image.fromarray(pixels), ".bmp")
    assert (out[..., 3] == 255).all() and (out[..., :3] == pixels[..., :3]).all()


def test_a_lab_picture_is_opaque(tmp_path):
    Image.new("LAB", (32, 32), (255, 128, 128)).save(tmp_path / "lab.tif")  # L* 100: white
    rgba = read_rgba(tmp_path / "lab.tif")
    assert rgba.getextrema()[3] == (255, 255) and min(low for low, _ in rgba.getextrema()) > 250
