"""Pictures of more pixels than are kept."""

import numpy as np
import pytest
from PIL import Image
from stand_ins.encoded_pictures import encoded
from stand_ins.made_up_pictures import disc

import dd3g.picture.decoding
from dd3g.picture import read_rgba


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_photo_of_100_million_pixels_is_reduced(tmp_path, suffix):
    image = Image.new("L", (12000, 9000), 255)
    image.paste(60, (3000, 2000, 9000, 7000))
    path = tmp_path / f"x{suffix}"
    image.save(path, compress_level=1)
    out = read_rgba(path)
    assert out.size == (6000, 4500)
    assert out.getpixel((3000, 2250))[0] == pytest.approx(60, abs=3) and out.getpixel((9, 9))[0] > 250


@pytest.mark.parametrize("limit", [16000, 4000])
@pytest.mark.parametrize(
    "suffix, mode",
    [(".jpg", "RGB"), (".jpg", "CMYK"), (".mpo", "RGB"), (".png", "RGBA"), (".png", "P"), (".png", "I;16")]
    + [(".png", "LA"), (".webp", "RGBA"), (".gif", "P"), (".bmp", "RGB"), (".tif", "RGBA"), (".tif", "CMYK")]
    + [(".tif", "F"), (".tif", "LAB"), (".png", "1"), (".avif", "RGB"), (".heic", "RGB"), ("", "RGB")],
)
def test_too_large_pictures_of_every_kind_are_reduced(tmp_path, monkeypatch, suffix, mode, limit):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = disc(96, 288, (64, 120), 30)
    image[..., :3] = np.where(image[..., 3:] > 0, 0 if mode == "1" else (40, 200, 20), 255)
    kept = Image.fromarray(image) if "A" in mode and mode != "LAB" else Image.fromarray(image[..., :3])
    if mode in ("I;16", "F"):
        grey = np.asarray(kept.convert("L"))
        kept = Image.fromarray(grey.astype(np.uint16) << 8 if mode == "I;16" else grey / np.float32(255))
    elif mode != kept.mode:
        kept = kept.convert("L").convert(mode) if mode in ("LA", "1") else kept.convert(mode)
        if mode == "LA":
            kept.putalpha(Image.fromarray(image[..., 3]))
    source = kept
    if suffix:
        source = tmp_path / f"x{suffix}"
        exif = Image.Exif()
        exif[0x0112] = 3  # half a turn
        quality = {"quality": 95} if suffix in (".jpg", ".mpo", ".webp", ".avif", ".heic") else {}
        kept.save(source, **quality, **({} if suffix in (".gif", ".bmp") else {"exif": exif}))
    whole = read_rgba(source)
    assert whole.size == (96, 288)
    monkeypatch.setattr(dd3g.picture.decoding, "MAX_PIXELS", limit)
    reduced = read_rgba(source)
    by = {16000: 2, 4000: 4 if suffix in (".jpg", ".mpo") else 3}[limit]
    assert reduced.size == (96 // by, 288 // by)
    difference = np.abs(np.asarray(reduced).astype(int) - np.asarray(whole.reduce(by)))
    assert difference.mean() < 3 and np.median(difference) <= 2


def test_a_large_jpeg_without_its_end_marker(monkeypatch):
    data = encoded(Image.fromarray(disc()[..., :3]), "JPEG").getvalue()
    monkeypatch.setattr(dd3g.picture.decoding, "MAX_PIXELS", 4000)
    assert read_rgba(data[:-2]).size == (48, 32)
