"""What a file is that no decoder here knows, for messages that help."""

from __future__ import annotations

import re

# How pictures begin whose decoders do not know them again once they are cut short.
CUT = re.compile(rb"....ftypavi[fs]|II\*\0|MM\0\*|II\+\0|MM\0\+", re.DOTALL)
# How pictures begin that are read, if they are whole.
BEGINS = re.compile(rb"\x89PNG|\xff\xd8|GIF8|RIFF....WEBP|BM....\0{4}", re.DOTALL)
# How files that are not pictures begin, for messages that help.
FOREIGN = {
    rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head)": "a web page: give the address of the picture itself",
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype )?svg": "an SVG drawing: export it "
    "as PNG",
    rb"%PDF": "a PDF: export the page as PNG",
    rb"version https://git-lfs": "a pointer of Git LFS: run `git lfs pull`",
    rb"8BPS": "a Photoshop file: export it as PNG",
    rb"\x1f\x8b|PK\x03\x04": "an archive: unpack it",
    rb"\0\0\0\x0c(jP  |JXL )|\xff(\x0a|\x4f\xff\x51)": "a JPEG 2000 or JPEG XL picture: save it as PNG",
    rb"ply\r?\n|glTF": "a 3D file: `dd3g convert` and `dd3g view` take some of these",
    rb"....ftypcrx": "a camera's raw file: save it as PNG or JPEG",
    rb"....ftyp": "a video, or a kind of HEIF that is not read: save a frame as PNG",
}


def what_it_is(data: bytes) -> str:
    """How to go on from `<name> is ` for a file that no decoder takes; empty where nothing is known of it."""
    if CUT.match(data):
        if _has_tags(data):
            return "a kind of TIFF that is not read, such as a camera's raw file: save it as PNG or JPEG"
        return damaged("its end is missing")
    for start, kind in FOREIGN.items():
        if re.match(start, data[:2000], re.IGNORECASE | re.DOTALL):
            return kind
    return damaged("its header is broken") if BEGINS.match(data) else ""


def damaged(why: str) -> str:
    """The same for bytes that a decoder gave up on."""
    return f"damaged or cut short ({why}): copy or download the picture again"


def too_large(most: int) -> str:
    """How to go on from `<name> ` for a picture of more than so many pixels."""
    return f"has more than {most / 1e6:.0f} million pixels: scale it down first"


def avif_pixels(data: bytes) -> int:
    """How many pixels the largest picture in the bytes of an AVIF has, by its head; 0 for other files."""
    head = data[: 1 << 16] if re.match(rb"....ftyp.{4,40}avi[fs]", data, re.DOTALL) else b""
    sizes = re.findall(rb"ispe\0{4}(.{4})(.{4})", head, re.DOTALL)
    return max((int.from_bytes(width) * int.from_bytes(height) for width, height in sizes), default=0)


def is_strange_jpeg(data: bytes) -> bool:
    """Whether the frame of a JPEG is neither baseline nor extended nor progressive, or not of 8 bits."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1] if at + 4 < len(data) else 0xDA
        if marker == 0xDA:  # the pixels
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # of tables
            return marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or data[at + 4] != 8
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _has_tags(data: bytes) -> bool:
    """Whether a TIFF's first directory and the pixels that it places lie within the file."""
    order = {b"II": "little", b"MM": "big"}.get(data[:2])
    if order is None or data[2:4] not in (b"*\0", b"\0*"):
        return False

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    end = start + 2 + 12 * number(start, 2)
    if not 8 <= start < end <= len(data):
        return False
    tags = {number(at, 2): (number(at + 4, 4), number(at + 8, 4)) for at in range(start + 2, end, 12)}
    (strips, place), (_, size) = tags.get(273, (0, 0)), tags.get(279, (0, 0))
    return strips != 1 or place + size <= len(data)
