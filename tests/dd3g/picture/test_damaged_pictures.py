"""Files that are no picture, damaged, or too large, and what the user is told."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from stand_ins.encoded_pictures import bad, encoded, fails, opened
from stand_ins.made_up_pictures import disc

from dd3g.errors import UserError
from dd3g.picture import load_image, read_rgba


@pytest.mark.parametrize("damage", ["no TIFF", "no end", "tags"])
def test_a_damaged_exif_block_spoils_no_picture(tmp_path, damage, recwarn):
    exif = Image.Exif()
    exif[0x010E] = "words"
    whole = exif.tobytes()
    block = {"no TIFF": b"Exif\0\0by an editor", "no end": whole[:-9], "tags": whole[:14] + b"\xff" * 30}
    for suffix in (".jpg", ".png", ".webp"):
        assert opened(tmp_path, Image.fromarray(disc()[..., :3]), suffix, exif=block[damage]).shape[0] == 64
    assert not recwarn.list


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


@pytest.mark.parametrize(
    "side, message",
    [(9000, "is damaged or cut short"), (17000, "more than 268 million"), (60000, "268 million pixels")],
)
def test_decompression_bomb(tmp_path, side, message):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10000))
    chunks = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
        for n, d in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
    fails(bad(tmp_path, b"\x89PNG\r\n\x1a\n" + chunks), message)


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


def test_too_little_memory_is_not_called_damage(tmp_path, monkeypatch):
    path = bad(tmp_path, encoded(Image.fromarray(disc()), "PNG").getvalue())

    def hungry(*_, **__):
        raise MemoryError

    def greedy(*_, **__):  # numpy raises a kind of its own
        np.empty(1 << 60, np.uint8)

    for ask in (hungry, greedy):
        monkeypatch.setattr(Image, "open", ask)
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
