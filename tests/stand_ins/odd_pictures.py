"""A folder of more than 150 odd pictures, and what must become of each: `python odd_pictures.py FOLDER`."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if __package__ or __name__ != "__main__":
    from stand_ins.made_up_pictures import DISPLAY_P3, LINEAR, disc
else:
    from made_up_pictures import DISPLAY_P3, LINEAR, disc

RED, GREY = (200, 80, 40), (111, 111, 111)
Expected = tuple[int, int, int] | str  # the colour in the middle of the matte, or a part of the message
Odd = dict[str, tuple[bytes, Expected]]


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunks(
    width: int, height: int, depth: int, kind: int, rows: bytes, *more: tuple[bytes, bytes]
) -> bytes:
    """A PNG that Pillow would not write."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def formats() -> Odd:
    """Every mode that each format has."""
    red, cut = Image.new("RGB", (48, 32), RED), Image.fromarray(disc(48, 32, (24, 16), 14, RED))
    grey = Image.new("L", (48, 32), 111)
    modes = {"rgb": red, "rgba": cut, "l": grey, "p": red.quantize(4), "1": Image.new("1", (48, 32), 1)}
    modes |= {"la": Image.merge("LA", (grey, cut.getchannel("A"))), "cmyk": red.convert("CMYK")}
    modes |= {"i16": Image.fromarray(np.full((32, 48), 111 << 8, np.uint16)), "ycbcr": red.convert("YCbCr")}
    modes |= {"i32": Image.fromarray(np.full((32, 48), 111 << 8, np.int32))}
    modes |= {"f": Image.fromarray(np.full((32, 48), 111 / 255, np.float32))}
    has = {
        "png": "rgb rgba l p 1 la i16",
        "jpg": "rgb l cmyk ycbcr",
        "jpeg": "rgb",
        "jfif": "rgb l",
        "webp": "rgb rgba l p",
        "gif": "rgb rgba l p 1",
        "bmp": "rgb rgba l p 1",
        "dib": "rgb",
        "tif": "rgb rgba l p 1 la i16 cmyk i32 f",
        "tiff": "rgb rgba",
        "avif": "rgb rgba l",
        "ico": "rgb rgba",
        "mpo": "rgb",
    }
    kinds = {"jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF"}
    colour: dict[str, Expected] = {
        "l": GREY,
        "la": GREY,
        "i16": GREY,
        "i32": GREY,
        "f": GREY,
        "1": (255, 255, 255),
    }
    odd: Odd = {}
    for suffix, names in has.items():
        for name in names.split():
            options = {"sizes": [(32, 32)]} if suffix == "ico" else {}
            data = encoded(modes[name], kinds.get(suffix, suffix.upper()), **options)
            odd[f"{suffix}-{name}.{suffix}"] = data, colour.get(name, RED)
    for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "zstd", "lzma"):
        odd[f"tif {compression}.tif"] = encoded(red, "TIFF", compression=compression), RED
    odd["tif fax.tif"] = encoded(modes["1"], "TIFF", compression="group4"), (255, 255, 255)
    for name, options in {
        "progressive": {"progressive": True},
        "full colour": {"subsampling": 0},
        "worst": {"quality": 60},
        "optimised": {"optimize": True},
        "restarts": {"restart_marker_rows": 1},
        "keeps rgb": {"keep_rgb": True},
    }.items():
        odd[f"jpg {name}.jpg"] = encoded(red, "JPEG", **options), RED
    odd["webp lossless.webp"] = encoded(cut, "WEBP", lossless=True), RED
    odd["gif transparent.gif"] = encoded(cut, "GIF", transparency=0), RED
    for sizes in ([(16, 16)], [(16, 16), (32, 32)], [(16, 16), (24, 24), (48, 32)]):
        odd[f"ico {len(sizes)}.ico"] = encoded(cut, "ICO", sizes=sizes), RED
    odd["ico bitmap.ico"] = encoded(cut, "ICO", sizes=[(32, 32)], bitmap_format="bmp"), RED
    rows = np.full((32, 48, 3), RED, ">u2") * 257
    deep = b"".join(b"\0" + row.tobytes() for row in rows)
    odd["png 16 bit colour.png"] = png_chunks(48, 32, 16, 2, deep), RED
    for depth in (1, 2, 4):
        packed = np.full(48 * depth // 8, 255, np.uint8).tobytes()
        odd[f"png grey of {depth} bits.png"] = (
            png_chunks(48, 32, depth, 0, (b"\0" + packed) * 32),
            (255, 255, 255),
        )
        palette = (b"PLTE", bytes(RED) * 2**depth)
        odd[f"png palette of {depth} bits.png"] = (
            png_chunks(48, 32, depth, 3, (b"\0" + packed) * 32, palette),
            RED,
        )
    inside = np.zeros((32, 48, 1), bool)
    inside[8:24, 12:36] = True
    for name, kind, values in (("grey", 4, GREY[:1]), ("colour", 6, RED)):
        deep = np.where(inside, np.array([*values, 255]) * 257, 0).astype(">u2")
        odd[f"png {name} and alpha of 16 bits.png"] = (
            png_chunks(48, 32, 16, kind, b"".join(b"\0" + row.tobytes() for row in deep)),
            GREY if kind == 4 else RED,
        )
    rows = b"".join(b"\0" + row.tobytes() for row in inside[..., 0].astype(np.uint8))
    for name, clear in (("all", b"\0\xff"), ("first", b"\0")):
        chunks = (b"PLTE", bytes((0, 0, 255, *RED))), (b"tRNS", clear)
        odd[f"png palette with alpha of {name}.png"] = png_chunks(48, 32, 8, 3, rows, *chunks), RED
    for suffix, format in (
        ("gif", "GIF"),
        ("webp", "WEBP"),
        ("png", "PNG"),
        ("tif", "TIFF"),
        ("avif", "AVIF"),
    ):
        frames = {"save_all": True, "append_images": [Image.new("RGB", (48, 32), "blue")]}
        odd[f"frames.{suffix}"] = encoded(red, format, **frames), RED
    return odd


def alphas() -> Odd:
    """What alpha may look like."""
    odd: Odd = {}

    def add(name: str, alpha, expected: Expected = RED) -> None:
        rgba = np.zeros((64, 64, 4), np.uint8)
        rgba[..., :3] = RED
        rgba[..., 3] = alpha
        odd[f"alpha {name}.png"] = encoded(Image.fromarray(rgba), "PNG"), expected

    y, x = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(x - 32, y - 32)
    add("one pixel", np.where((x < 1) & (y < 1), 254, 255))
    add("corners", np.where(distance > 43, 0, 255))
    add("round", np.where(distance > 32, 0, 255))
    add("none", 0, "is fully transparent (largest alpha 0 of 255)")
    add("hardly any", 20, "is fully transparent (largest alpha 20 of 255)")
    add("faint", np.where(distance < 20, 90, 0))
    add("soft", np.clip(255 - 8 * distance, 0, 255))
    add("ring", np.where(abs(distance - 20) < 6, 255, 0), (0, 0, 0))
    add("stray", np.where((distance < 12) | ((x > 62) & (y > 62)), 255, 0))
    add("stray faint", np.where(distance < 12, 255, np.where((x > 62) & (y > 62), 40, 0)))
    add("shadow", np.where(distance < 12, 255, np.where((y > 32) & (x > 32), 63, 0)))
    add("line", np.where(abs(y - 32) < 1, 255, 0))
    add("noise", np.where(distance < 9, 255, np.random.default_rng(0).integers(0, 30, (64, 64))))
    add("frame", np.pad(np.full((62, 62), 255), 1))
    add("frame of one side", np.where(y < 1, 0, 255))
    add("letterbox", np.where(abs(y - 32) < 20, 255, 0))
    add("checker", np.where((x // 8 + y // 8) % 2 == 1, 255, 0))
    for level in (128, 200, 250, 254):
        add(f"all {level}", level)
    return odd


def sizes() -> Odd:
    """Very small, thin and large pictures."""
    odd: Odd = {}
    for width, height in (
        (8, 8),
        (8, 900),
        (900, 8),
        (9, 13),
        (257, 255),
        (2000, 40),
        (1, 1),
        (7, 100),
        (100, 3),
    ):
        small = f"is {width}x{height} pixels, too small: give at least 8 a side"
        data = encoded(Image.new("RGB", (width, height), RED), "PNG")
        odd[f"size {width}x{height}.png"] = data, small if min(width, height) < 8 else RED
    line = b"\0" + bytes(90)
    for side in (9000, 12000, 60000, 2**31 - 1):
        bomb = png_chunks(side, side, 8, 0, line)
        odd[f"size bomb {side}.png"] = (
            bomb,
            ("damaged" if side < 2**14 else "million pixels") if side < 2**30 else "",
        )
    gif = bytearray(encoded(Image.new("L", (9, 9)), "GIF"))
    gif[6:10] = b"\xff" * 4
    avif = encoded(Image.new("RGB", (48, 32), RED), "AVIF")
    size = avif.index(b"ispe") + 8
    bomb = avif[:size] + struct.pack(">II", 50_000, 50_000) + avif[size + 8 :]
    odd["size bomb.avif"] = bomb, "more than 268 million pixels"
    odd["size bomb.gif"] = bytes(gif), "more than 268 million pixels"
    return odd


def metadata() -> Odd:
    """EXIF, profiles and texts, whole and broken."""
    red, odd = Image.new("RGB", (48, 32), RED), {}
    for turn in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = turn
        odd[f"exif turn {turn}.jpg"] = encoded(red, "JPEG", exif=exif), RED
    for name, block in {
        "no": b"Exif\0\0junk",
        "short": b"Exif\0\0II*\0\x08\0\0\0\x05\0",
        "empty": b"Exif\0\0",
    }.items():
        for suffix, format in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
            odd[f"exif {name}.{suffix}"] = encoded(red, format, exif=block), RED
    wide = Image.new("RGB", (48, 32), (91, 195, 60))
    for suffix, format in (
        ("jpg", "JPEG"),
        ("png", "PNG"),
        ("webp", "WEBP"),
        ("tif", "TIFF"),
        ("avif", "AVIF"),
    ):
        odd[f"icc p3.{suffix}"] = encoded(wide, format, icc_profile=DISPLAY_P3), (8, 200, 0)
        odd[f"icc linear.{suffix}"] = encoded(wide, format, icc_profile=LINEAR), (162, 227, 133)
        odd[f"icc cut.{suffix}"] = encoded(red, format, icc_profile=DISPLAY_P3[:150]), RED
    for name, text, zip in (
        ("long", "x" * 3_000_000, False),
        ("zipped", "x" * 3_000_000, True),
        ("null", "a\0b", True),
    ):
        info = PngInfo()
        info.add_text("Comment", text, zip=zip)
        odd[f"text {name}.png"] = encoded(red, "PNG", pnginfo=info), RED
    odd["comment.jpg"] = encoded(red, "JPEG", comment=b"c" * 60_000), RED
    odd["dpi of nothing.jpg"] = encoded(red, "JPEG", dpi=(0, 0)), RED
    return odd


def tiff(
    bits: int, format: int, values: bytes, *, samples: int = 1, kind: int = 1, packing: int = 1
) -> bytes:
    """A TIFF of one strip, 48x32 pixels, of a kind that Pillow would not write."""
    longs = {256: 48, 257: 32, 273: 0, 278: 32, 279: len(values)}
    shorts = {258: bits, 259: packing, 262: kind, 277: samples, 339: format}
    tags = sorted({**longs, **shorts})
    start = 10 + 12 * len(tags) + 4
    more = {258: bits, 339: format} if samples == 3 else {}
    longs[273] = start + 8 * len(more)
    rows, behind = b"", b""
    for tag in tags:
        if tag in more:
            rows += struct.pack("<HHII", tag, 3, 3, start + len(behind))
            behind += struct.pack("<4H", *[more[tag]] * 3, 0)
        elif tag in longs:
            rows += struct.pack("<HHII", tag, 4, 1, longs[tag])
        else:
            rows += struct.pack("<HHIHH", tag, 3, 1, shorts[tag], 0)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + behind + values


def tiffs() -> Odd:
    """Numbers of any size in TIFFs; and those that no reader here knows, which are not damaged."""
    grey, red = np.full((32, 48), 111 / 255), np.full((32, 48, 3), np.array(RED) / 255)
    colour = {"samples": 3, "kind": 2}
    strange = "is a kind of TIFF that is not read, such as a camera's raw file"
    deep = np.rint(red * 65535).astype("<u2").tobytes()
    return {
        "tiff 16 bit colour.tif": (tiff(16, 1, deep, **colour), RED),
        "tiff white is 0.tif": (tiff(8, 1, np.rint(255 - 255 * grey).astype("u1").tobytes(), kind=0), GREY),
        "tiff white is 0 of 16 bits.tif": (
            tiff(16, 1, np.rint(65535 - 65535 * grey).astype("<u2").tobytes(), kind=0),
            GREY,
        ),
        "tiff white is 0 of floats.tif": (tiff(32, 3, (1 - grey).astype("<f4").tobytes(), kind=0), GREY),
        "tiff float colour.tif": (tiff(32, 3, red.astype("<f4").tobytes(), **colour), strange),
        "tiff half colour.tif": (tiff(16, 3, red.astype("<f2").tobytes(), **colour), strange),
        "tiff double.tif": (tiff(64, 3, grey.astype("<f8").tobytes()), strange),
        "tiff raw.tif": (tiff(14, 1, bytes(32 * 48 * 2), kind=32803), strange),
        "tiff packed.tif": (tiff(8, 1, bytes(99), packing=34892), strange),
        "tiff 32 bit.tif": (tiff(32, 1, np.full((32, 48), 3_000_000_000, "<u4").tobytes()), "8 or 16 bits"),
        "tiff float cut.tif": (
            tiff(32, 3, red.astype("<f4").tobytes(), **colour)[:-900],
            "its end is missing",
        ),
    }


def damage() -> Odd:
    """Files cut short, and files that are something else."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    odd: Odd = {}
    for suffix, format in (
        ("png", "PNG"),
        ("jpg", "JPEG"),
        ("webp", "WEBP"),
        ("gif", "GIF"),
        ("bmp", "BMP"),
        ("tif", "TIFF"),
    ):
        data = encoded(noise, format)
        for part in (0.3, 0.6, 0.95):
            odd[f"cut at {part}.{suffix}"] = (
                data[: int(part * len(data))],
                "copy or download the picture again",
            )
        odd[f"head alone.{suffix}"] = data[:12], ""
        odd[f"empty.{suffix}"] = b"", "is empty (0 bytes)"
    whole = encoded(Image.new("RGB", (48, 32), RED), "JPEG")
    odd["no end marker.jpg"] = whole[:-2], RED
    odd["zeros behind.jpg"] = whole + bytes(5000), RED
    odd["two in one.jpg"] = whole + encoded(Image.new("RGB", (48, 32), "blue"), "JPEG"), RED
    odd["really a jpeg.png"] = whole, RED
    odd["really a webp.jpg"] = encoded(Image.new("RGB", (48, 32), RED), "WEBP"), RED
    odd["no width.png"] = png_chunks(0, 32, 8, 2, b""), "is damaged or cut short (its header is broken)"
    mailed = encoded(noise, "PNG").replace(b"\n", b"\r\n")
    odd["sent as text.png"] = mailed, "is damaged or cut short (its header is broken)"
    frame = whole.index(b"\xff\xc0")
    for name, at, value in (("lossless", 1, 0xC3), ("of 12 bits", 4, 12)):
        data = bytearray(whole)
        data[frame + at] = value
        odd[f"jpg {name}.jpg"] = bytes(data), "is a kind of JPEG that is not read"
    wrong = bytearray(encoded(noise, "PNG"))
    wrong[60] ^= 255
    odd["wrong checksum.png"] = bytes(wrong), "damaged or cut short"
    for name, data, message in (
        ("text", b"hello " * 50, "is not a PNG, JPEG"),
        ("page", b"<!doctype html><html>", "is a web page"),
        ("page with a mark", b"\xef\xbb\xbf <HTML>", "is a web page"),
        ("declared drawing", b"<?xml version='1.0'?>\n<!DOCTYPE svg PUBLIC '' ''>", "is an SVG drawing"),
        ("jpeg 2000", encoded(Image.new("RGB", (48, 32), RED), "JPEG2000"), "is a JPEG 2000 or JPEG XL"),
        ("stream of jpeg xl", b"\xff\x0a" + bytes(99), "is a JPEG 2000 or JPEG XL"),
        ("raw", b"\0\0\0\x18ftypcrx " + bytes(99), "is a camera's raw file"),
        ("splats", b"ply\nformat binary_little_endian 1.0\n", "is a 3D file"),
        ("radiance", b"#?RADIANCE\n" + bytes(99), "is not a PNG, JPEG"),
        ("drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        ("paper", b"%PDF-1.4", "is a PDF"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("film", b"\0\0\0\x18ftypisom" + bytes(99), "is a video"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not a PNG, JPEG"),
        ("zeros", bytes(999), "is not a PNG, JPEG"),
        ("photoshop", b"8BPS\0\1" + bytes(99), "is a Photoshop file"),
        ("archive", gzip.compress(whole), "is an archive: unpack it"),
    ):
        odd[f"{name}.png"] = data, message
    return odd


def corners() -> Odd:
    """What standards allow, tools write and readers meet seldom."""
    red, turned = Image.new("RGB", (48, 32), RED), Image.Exif()
    turned[0x0112] = 6
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(red))
    png = {
        "two of PLTE": ((b"PLTE", bytes(30)),),
        "gamma 0": ((b"gAMA", bytes(4)),),
        "chromaticities 0": ((b"cHRM", bytes(32)),),
        "no frames": ((b"acTL", bytes(8)),),
        "turned": ((b"eXIf", turned.tobytes()[6:]),),
        "wide pixels": ((b"pHYs", struct.pack(">IIB", 1, 2, 0)),),
        "empty data first": ((b"IDAT", b""),),
    }
    odd: Odd = {f"corner {n}.png": (png_chunks(48, 32, 8, 2, rows, *more), RED) for n, more in png.items()}
    whole = png_chunks(48, 32, 8, 2, rows)
    odd["corner no end.png"] = whole[:-12], RED
    odd["corner rows too many.png"] = png_chunks(48, 32, 8, 2, rows + bytes(9999)), RED
    odd["corner filter.png"] = png_chunks(48, 32, 8, 2, b"\x09" + rows[1:]), "damaged or cut short"
    jpeg, start = encoded(red, "JPEG", quality=95), b"http://ns.adobe.com/xap/1.0/\0"
    xmp = start + b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    for name, block in {
        "xmp": xmp,
        "turned by a long": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\4\0\0\0\1\0\0\0\6\0\0\0\0",
        "turned by a text": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\0026\0\0\0\0\0\0\0",
    }.items():
        marked = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        odd[f"corner {name}.jpg"] = jpeg[:2] + marked + jpeg[2:], RED
    odd["corner fill bytes.jpg"] = jpeg[:2] + b"\xff\xff\xff" + jpeg[2:], RED
    odd["corner two starts.jpg"] = b"\xff\xd8" + jpeg, "damaged or cut short"
    odd["corner in a letter.jpg"] = b"Content-Type: image/jpeg\r\n\r\n" + jpeg, "is not a PNG, JPEG"
    odd["corner 411.jpg"] = encoded(red.resize((47, 31)), "JPEG", subsampling="4:1:1", quality=95), RED
    odd["corner predictor.tif"] = encoded(red, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), RED
    odd["corner turned.tif"] = encoded(red, "TIFF", tiffinfo={274: 6}), RED
    bmp = encoded(red, "BMP")
    odd["corner no size.bmp"] = bmp[:34] + bytes(4) + bmp[38:], RED
    odd["corner wrong size.bmp"] = bmp[:2] + b"\7\0\0\0" + bmp[6:], RED
    odd["corner packed as jpeg.bmp"] = bmp[:30] + b"\4" + bmp[31:], "is of a kind that is not read"
    odd["corner interlaced.gif"] = encoded(red.quantize(4), "GIF", interlace=1), RED
    blank = {"save_all": True, "append_images": [red.convert("RGBA")], "disposal": 2}
    odd["corner blank first.gif"] = encoded(Image.new("RGBA", (48, 32)), "GIF", **blank), "fully transparent"
    odd["corner turned.webp"] = encoded(red, "WEBP", exif=turned.tobytes(), quality=95), RED
    odd["corner more behind.webp"] = encoded(red, "WEBP", quality=95) + bytes(999), RED
    odd["corner without pictures.ico"] = b"\0\0\1\0\0\0", "is not a PNG, JPEG"
    return odd


def names() -> Odd:
    """Names that file systems allow."""
    data = encoded(Image.new("RGB", (48, 32), RED), "PNG")
    stems = [
        "椅子",
        "a b",
        "a'b",
        'a"b',
        "a$b",
        "[x]",
        "-rf",
        "a%20b",
        "a#b",
        "naïve é",
        "🪑",
        "tab\there",
        "x" * 200,
    ]
    stems += ["a..b", "CON", "comma,comma", "a=b", "{0}", "a;b", "a&b", "(copy)", "back\\slash", "*", "?"]
    stems += ["L" * 251, "é" * 125, "new\nline"]
    odd: Odd = {f"{stem}.png": (data, RED) for stem in stems}
    odd["UPPER.PNG"] = data, RED
    odd[os.fsdecode(b"\xff\xfe.png")] = data, RED
    return odd


KINDS: tuple[Callable[[], Odd], ...] = (formats, tiffs, alphas, sizes, metadata, damage, corners, names)


def make(folder: Path) -> dict[str, Expected]:
    """Write them all; returns name -> what must become of it."""
    folder.mkdir(parents=True, exist_ok=True)
    odd: Odd = {}
    for kind in KINDS:
        odd |= kind()
    for name, (data, _) in odd.items():
        (folder / name).write_bytes(data)
    return {name: expected for name, (_, expected) in odd.items()}


if __name__ == "__main__":
    print(len(make(Path(sys.argv[1]))), "pictures")
