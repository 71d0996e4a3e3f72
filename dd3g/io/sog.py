"""PlayCanvas's .sog: a zip of meta.json and five lossless WebP pictures, a pixel a Gaussian; 2 is written."""

from __future__ import annotations

import json
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dd3g.gaussians import Gaussians
from dd3g.io.formats import AGAIN, Splats
from dd3g.io.packed import smallest_three
from dd3g.io.ply import from_raw, to_raw

_MOST = 1 << 26  # Gaussians, and bytes of meta.json: more would fill the memory


def encode(gaussians: Gaussians, axes: str, antialiased: bool) -> bytes:
    """Write Gaussians (N,), which are in these axes, in Morton order.

    Positions have 16 bits, all else 8, scales and colours by codebook. meta.json tells axes other than
    "opencv", which every reader assumes, and as the "model" whether they are drawn antialiased.
    """
    raw = to_raw(gaussians).astype(np.float64)
    places = np.sign(raw[:, :3]) * np.log1p(np.abs(raw[:, :3]))
    low, high = places.min(0), places.max(0)
    steps = np.rint(65535 * (places - low) / np.where(high > low, high - low, 1)).astype(np.uint16)
    order = np.argsort(_morton(steps), kind="stable")
    raw, steps = raw[order], steps[order]
    scales, scale_labels = _codebook(raw[:, 7:10])
    colors, color_labels = _codebook(raw[:, 3:6])
    alpha = np.rint(255 / (1 + np.exp(-raw[:, 6:7]))).astype(np.uint8)
    opaque = np.full_like(alpha, 255)
    pictures = {
        "means_l.webp": np.concatenate([(steps & 255).astype(np.uint8), opaque], -1),
        "means_u.webp": np.concatenate([(steps >> 8).astype(np.uint8), opaque], -1),
        "quats.webp": _packed(raw[:, 10:14]),
        "scales.webp": np.concatenate([scale_labels, opaque], -1),
        "sh0.webp": np.concatenate([color_labels, alpha], -1),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "dd3g"} | ({} if axes == "opencv" else {"axes": axes}),
        "count": len(raw),
        **({"model": "antialiased"} if antialiased else {}),
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": _short(scales), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": _short(colors), "files": ["sh0.webp"]},
    }
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # stored: WebP is compressed; the clock is not written
        for name, pixels in pictures.items():
            archive.writestr(zipfile.ZipInfo(name), _webp(pixels))
        archive.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta, separators=(",", ":")))
    return packed.getvalue()


def decode(data: bytes) -> Splats:
    """Read the Gaussians in the file's own axes; spherical harmonics above degree 0 are left out.

    Raises:
        ValueError: when the data is not such a file, or is damaged.
        LookupError, TypeError, AttributeError: when its meta.json lacks something.
    """
    try:
        archive = zipfile.ZipFile(BytesIO(data))
        if archive.getinfo("meta.json").file_size > _MOST:
            raise ValueError("its meta.json is too large")
        meta = json.loads(archive.read("meta.json"))
        version = meta.get("version", 1)
        if version not in (1, 2):
            raise ValueError(f"its version is {version!r}, but only 1 and 2 can be read: convert it again")
        count = meta["count"] if version == 2 else meta["means"]["shape"][0]
        if not isinstance(count, int) or not 0 < count <= _MOST:
            raise ValueError(f"it claims {count!r} Gaussians")
        files = [*meta["means"]["files"], *(meta[k]["files"][0] for k in ("quats", "scales", "sh0"))]
        low, high, quats, labels, sh0 = (_pixels(archive, name, count) for name in files)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{str(error) or 'it is not a zip file'}; {AGAIN}") from error
    except (OSError, NotImplementedError, RuntimeError) as error:  # encrypted, or packed in another way
        raise ValueError(str(error) or "it is not a zip file") from error
    mins, maxs = (np.array(meta["means"][k], np.float64) for k in ("mins", "maxs"))
    places = mins + (low[:, :3] + 256.0 * high[:, :3]) / 65535 * (maxs - mins)
    raw = np.empty((count, 14))
    raw[:, 0:3] = np.sign(places) * np.expm1(np.abs(places).clip(max=88.7))
    if version == 2:
        opacity = (sh0[:, 3] / 255).clip(1e-6, 1 - 1e-6)
        raw[:, 3:6] = np.array(meta["sh0"]["codebook"], np.float64)[sh0[:, :3]]
        raw[:, 6] = np.log(opacity / (1 - opacity))
        raw[:, 7:10] = np.array(meta["scales"]["codebook"], np.float64)[labels[:, :3]]
    else:
        raw[:, 3:7] = _between(meta["sh0"], sh0)
        raw[:, 7:10] = _between(meta["scales"], labels[:, :3])
    raw[:, 10:14] = smallest_three(quats[:, :3] / 255, quats[:, 3].clip(252) - 252)
    antialiased = meta.get("model") == "antialiased"
    return Splats(from_raw(raw), meta.get("asset", {}).get("axes"), antialiased, "shN" in meta)


def bundled(meta: Path) -> bytes:
    """The .sog of a meta.json and the pictures beside it that it names.

    Raises:
        OSError: when one of them cannot be read.
    """
    text, packed = meta.read_bytes(), BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("meta.json", text)
        for picture in meta.parent.iterdir():
            if picture.suffix in (".webp", ".png") and picture.name.encode() in text:
                archive.writestr(picture.name, picture.read_bytes())
    return packed.getvalue()


def _between(told: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """Raw values (N, K) from bytes between the bounds of each column, as version 1 has them."""
    mins, maxs = (np.array(told[k], np.float64) for k in ("mins", "maxs"))
    return mins + pixels / 255 * (maxs - mins)


def _packed(quats: np.ndarray) -> np.ndarray:
    """Unit wxyz (N, 4) -> the three smaller components, and which is missing, in bytes."""
    rows = np.arange(len(quats))
    largest = np.abs(quats).argmax(-1)
    quats = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    places = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    three = np.rint(255 * (quats[rows[:, None], places] / 2**0.5 + 0.5)).clip(0, 255)
    return np.concatenate([three, 252 + largest[:, None]], -1).astype(np.uint8)


def _codebook(values: np.ndarray, size: int = 256, rounds: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """K-means in one dimension: sorted centres (256,) and the labels (N, 3) of values (N, 3)."""
    flat = np.sort(values, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    # From the middle between even steps and quantiles: neither rare nor frequent values are lost.
    spread = np.linspace(flat[0], flat[-1], size)
    centres = (spread + flat[np.linspace(0, len(flat) - 1, size).astype(int)]) / 2
    for _ in range(rounds):
        edges = np.searchsorted(flat, (centres[1:] + centres[:-1]) / 2)
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(flat)]])
        means = (sums[ends] - sums[starts]) / np.maximum(ends - starts, 1)
        centres = np.sort(np.where(ends > starts, means, centres))
    labels = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return centres, labels.astype(np.uint8)


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _morton(steps: np.ndarray) -> np.ndarray:
    """Codes (N,) that keep neighbours in space together (Morton 1966), from 10 of 16 bits of (N, 3)."""
    code = np.zeros(len(steps), np.uint32)
    for bit in range(10):
        for axis in range(3):
            code |= (steps[:, axis] >> bit + 6 & 1).astype(np.uint32) << np.uint32(3 * bit + axis)
    return code


def _webp(pixels: np.ndarray) -> bytes:
    """Bytes (N, 4) as a lossless picture whose sides are multiples of 4, rows filled one after the other."""
    width = -(-int(np.ceil(len(pixels) ** 0.5)) // 4) * 4
    height = -(-len(pixels) // width // 4) * 4
    image = np.zeros((height * width, 4), np.uint8)
    image[: len(pixels)] = pixels
    written = BytesIO()
    # `exact` keeps the colour of pixels whose fourth byte is 0.
    Image.fromarray(image.reshape(height, width, 4)).save(written, "WEBP", lossless=True, exact=True)
    return written.getvalue()


def _pixels(archive: zipfile.ZipFile, name: str, count: int) -> np.ndarray:
    """The first bytes (count, 4) of a picture."""
    if archive.getinfo(name).file_size > 8 * _MOST:
        raise ValueError(f"its {name} is too large")
    with Image.open(BytesIO(archive.read(name)), formats=["WEBP", "PNG"]) as image:
        if image.width * image.height < count:
            raise ValueError(f"its {name} has fewer pixels than there are Gaussians")
        return np.asarray(image.convert("RGBA")).reshape(-1, 4)[:count]
