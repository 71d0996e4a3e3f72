"""Colours that a file describes: profiles, primaries and transfer curves come to sRGB."""

import struct

import numpy as np
import pytest
from PIL import Image
from stand_ins.encoded_pictures import chunk, encoded, opened
from stand_ins.made_up_pictures import DISPLAY_P3, disc

from dd3g.picture import read_rgba


def test_an_icc_profile_that_does_not_fit_is_ignored(tmp_path):
    from PIL import ImageCms

    image = Image.fromarray(disc()[..., :3])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for data in (profile, profile[:200], b"no profile"):
        assert (opened(tmp_path, image, ".png", icc_profile=data) == opened(tmp_path, image, ".png")).all()


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
        ((128, 128, 128), chunk(b"cICP", bytes([1, 4, 0, 1])), (129, 129, 129)),  # a power of 2.2
        ((128, 128, 128), chunk(b"cICP", bytes([1, 5, 0, 1])), (106, 106, 106)),  # and of 2.8
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
