"""Pictures in files of many kinds, written byte by byte where no library writes them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dd3g.errors import UserError
from dd3g.picture import load_image, read_rgba


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


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bad(tmp_path, data: bytes, name="x.png"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def fails(path, message):
    with pytest.raises(UserError, match=message) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
