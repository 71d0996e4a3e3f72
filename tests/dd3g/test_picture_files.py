import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.made_up_pictures import DISPLAY_P3, disc, extent

from dd3g.errors import UserError
from dd3g.picture import load_image, read_rgba

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


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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


@pytest.mark.parametrize("damage", ["no TIFF", "no end", "tags"])
def test_a_damaged_exif_block_spoils_no_picture(tmp_path, damage, recwarn):
    exif = Image.Exif()
    exif[0x010E] = "words"
    whole = exif.tobytes()
    block = {"no TIFF": b"Exif\0\0by an editor", "no end": whole[:-9], "tags": whole[:14] + b"\xff" * 30}
    for suffix in (".jpg", ".png", ".webp"):
        assert opened(tmp_path, Image.fromarray(disc()[..., :3]), suffix, exif=block[damage]).shape[0] == 64
    assert not recwarn.list


def test_an_icc_profile_that_does_not_fit_is_ignored(tmp_path):
    from PIL import ImageCms

    image = Image.fromarray(disc()[..., :3])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for data in (profile, profile[:200], b"no profile"):
        assert (opened(tmp_path, image, ".png", icc_profile=data) == opened(tmp_path, image, ".png")).all()


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
    path = tmp_path / "x.tga"
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
    fails(path, f"cannot read {path}: check its permissions")


def test_the_system_names_its_own_errors(tmp_path, monkeypatch):
    fails(tmp_path / (300 * "x"), r"cannot be read \(File name too long\): check the path")
    path = bad(tmp_path, b"x")

    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", refuse)
    fails(path, r"cannot be read \(Input/output error\)")


def test_reading_a_bad_picture_does_not_wait_for_torch(tmp_path):
    path = bad(tmp_path, b"no picture")
    code = (
        "import sys; from dd3g.picture import load_image; from dd3g.errors import UserError\n"
        f"try: load_image({str(path)!r})\nexcept UserError: sys.exit(10 + ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 10


# --- corners of formats ------------------------------------------------------------------------------------


def test_wide_gamut_colours_come_to_srgb(tmp_path):
    """Green 0, 200, 0 of sRGB has other numbers in a Display P3 file."""
    image = Image.new("RGB", (16, 16), (91, 195, 60))
    for suffix, options in (
        (".png", {}),
        (".jpg", {"quality": 95}),
        (".webp", {"lossless": True}),
        (".tif", {}),
    ):
        pixel = opened(tmp_path, image, suffix, icc_profile=DISPLAY_P3, **options)[8, 8].astype(int)
        assert np.abs(pixel - (0, 200, 0, 255)).max() <= (20 if suffix == ".jpg" else 9), suffix
    cut = Image.fromarray(disc(colour=(91, 195, 60)))
    out = opened(tmp_path, cut, ".png", icc_profile=DISPLAY_P3)
    assert np.abs(out[30, 40].astype(int) - (0, 200, 0, 255)).max() <= 9
    assert (out[..., 3] == disc()[..., 3]).all()
    grey = opened(tmp_path, Image.new("L", (16, 16), 111), ".png", icc_profile=DISPLAY_P3)
    assert np.abs(grey[3, 3].astype(int) - (111, 111, 111, 255)).max() <= 2


P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


def chunks_of(gamma, *places) -> bytes:
    numbers = [round(100_000 * value) for value in (gamma, *places)]
    return chunk(b"gAMA", struct.pack(">I", numbers[0])) + (
        chunk(b"cHRM", struct.pack(">8I", *numbers[1:])) if places else b""
    )


@pytest.mark.parametrize(
    "given, told, right",
    [
        ((91, 195, 60), chunk(b"cICP", bytes([12, 13, 0, 1])), (16, 198, 15)),
        ((91, 195, 60), chunks_of(0.45455, *P3), (16, 198, 15)),
        ((91, 195, 60), chunk(b"sRGB", b"\0") + chunks_of(0.45455, *P3), (91, 195, 60)),
        ((91, 195, 60), chunks_of(0.45455), (91, 195, 60)),
        ((91, 195, 60), chunks_of(0.45455, *[0.3] * 8), (91, 195, 60)),  # no colours at all
        ((91, 195, 60), chunk(b"cICP", bytes([1, 13, 0, 1])) + chunks_of(1), (91, 195, 60)),
        ((10, 55, 128), chunks_of(1), (56, 128, 188)),  # linear
        ((10, 55, 128), chunk(b"cICP", bytes([1, 8, 0, 1])), (56, 128, 188)),
        ((148, 148, 148), chunk(b"cICP", bytes([9, 16, 0, 1])), (255, 255, 255)),  # PQ: 203 of 10,000 cd
        ((128, 0, 0), chunk(b"cICP", bytes([9, 16, 0, 1])), (227, 0, 0)),
        ((191, 191, 191), chunk(b"cICP", bytes([9, 18, 0, 1])), (255, 255, 255)),  # HLG: 75 %
        ((64, 64, 64), chunk(b"cICP", bytes([9, 18, 0, 1])), (62, 62, 62)),
    ],
)
def test_colours_told_by_numbers_come_to_srgb(given, told, right):
    data = encoded(Image.new("RGBA", (16, 16), (*given, 140)), "PNG").getvalue()
    pixel = np.asarray(read_rgba(data[:33] + told + data[33:]))[5, 5]  # behind the header
    assert np.abs(pixel.astype(int) - (*right, 140)).max() <= 1 and pixel[3] == 140


@pytest.mark.parametrize("suffix", ["avif", "heif"])
def test_colours_told_by_numbers_in_boxes(suffix):
    if suffix == "heif":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = encoded(Image.new("RGB", (64, 64), (91, 195, 60)), suffix, quality=100).getvalue()
    at = data.index(b"colrnclx") + 8
    for primaries, right in ((1, (91, 195, 60)), (12, (16, 198, 15))):
        changed = data[:at] + bytes([0, primaries, 0, 13]) + data[at + 4 :]
        pixel = np.asarray(read_rgba(changed))[5, 5]
        assert np.abs(pixel[:3].astype(int) - right).max() <= 10


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


@pytest.mark.parametrize("compressed", [False, True])
def test_metadata_of_megabytes_is_no_damage(tmp_path, compressed):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("workflow", "node " * 700_000, zip=compressed)
    assert opened(tmp_path, Image.fromarray(disc()), ".png", pnginfo=info).shape == (64, 96, 4)


def test_a_jpeg_without_its_end_marker(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = encoded(noise, "JPEG", **options).getvalue()
        assert (np.asarray(read_rgba(data[:-2])) == np.asarray(read_rgba(data))).all()
        if not options:  # a progressive one is whole, if coarse, wherever it ends
            for end in (0.5, 0.99):
                fails(bad(tmp_path, data[: int(end * len(data))]), "damaged or cut short")


def test_a_bmp_of_32_bits_with_no_alpha_in_it(tmp_path):
    pixels = disc()
    pixels[..., 3] = 0  # as Windows writes them
    out = opened(tmp_path, Image.fromarray(pixels), ".bmp")
    assert (out[..., 3] == 255).all() and (out[..., :3] == pixels[..., :3]).all()


@pytest.mark.slow
def test_a_photo_of_100_million_pixels_is_reduced_while_it_is_decoded(tmp_path):
    image = Image.new("L", (12000, 9000), 255)
    image.paste(60, (3000, 2000, 9000, 7000))
    path = tmp_path / "x.jpg"
    image.save(path)
    out = read_rgba(path)
    assert out.size == (6000, 4500)
    assert out.getpixel((3000, 2250))[0] == pytest.approx(60, abs=3) and out.getpixel((9, 9))[0] > 250
    image.save(tmp_path / "x.png", compress_level=1)
    fails(tmp_path / "x.png", "more than 80 million pixels")


def test_too_little_memory_is_not_called_damage(tmp_path, monkeypatch):
    path = bad(tmp_path, encoded(Image.fromarray(disc()), "PNG").getvalue())

    def hungry(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", hungry)
    fails(path, "not enough memory to read")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\n<!DOCTYPE html><html><body>", "a web page: give the address of the picture"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'>", "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop file"),
        (b"\0\0\0\x18ftypmp42" + bytes(20), "a video"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, data, message):
    fails(bad(tmp_path, data), message)


@pytest.mark.parametrize("format", ["AVIF", "TIFF"])
def test_formats_that_their_decoders_do_not_know_again_cut_short(tmp_path, format):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(data, format)
    fails(bad(tmp_path, data.getvalue()[:600]), "damaged or cut short")


def test_a_lab_picture_is_opaque(tmp_path):
    Image.new("LAB", (32, 32), (255, 128, 128)).save(tmp_path / "lab.tif")  # L* 100: white
    rgba = read_rgba(tmp_path / "lab.tif")
    assert rgba.getextrema()[3] == (255, 255) and min(low for low, _ in rgba.getextrema()) > 250
