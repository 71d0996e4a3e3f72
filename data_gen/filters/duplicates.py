"""Near duplicates over a whole set: a 64-bit hash of a picture, and a search that misses no pair."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dd3g.picture.framing import SOLID

_GRID = 32  # samples a side that the transform sees
_FREQUENCIES = 8
_LUMINANCE_BITS = 48
# Steps at which a bit of the object's shape (log2 of width over height) and mean colour (blue and red against
# luminance, of 255) turns: a neutral grey lies far from each, and training renders fill all of them.
_ASPECT_STEPS = (-0.9, -0.25, 0.25, 0.9)
_BLUE_STEPS = (-36.0, -22.0, -12.0, -5.0, 5.0, 14.0)
_RED_STEPS = (-14.0, -5.0, 5.0, 12.0, 20.0, 32.0)
_LEAF = 512  # so few hashes are compared all with all

_ANGLES = np.pi * (2 * np.arange(_GRID) + 1) * np.arange(_FREQUENCIES)[:, None] / (2 * _GRID)
_DCT = (np.cos(_ANGLES) / _GRID).astype(np.float32)  # (8, 32): the lowest rows of the DCT-II
_ORDER = sorted(np.ndindex(_FREQUENCIES, _FREQUENCIES), key=lambda at: (sum(at), at))
# Of the lowest frequencies without the mean, lowest first.
_ROWS, _COLUMNS = np.array(_ORDER[1 : _LUMINANCE_BITS + 1]).T


def perceptual_hash(rgba: NDArray[np.uint8]) -> int:
    """64 bits that stay nearly the same under resizing, mild noise and compression.

    48 bits are the lowest frequencies of the luminance over grey, each against their median; the picture is
    first cropped to the object and stretched to a square, since thin objects would otherwise all look alike.
    The rest, in codes that change bit by bit, are the width to height ratio and the mean colour.

    Args:
        rgba: (H, W, 4) uint8, straight alpha.

    Returns:
        The hash, at least 0 and below 2^64; 0 for a picture without an object.
    """
    alpha = rgba[..., 3]
    columns, rows = alpha.max(0), alpha.max(1)
    (left, right), (top, bottom) = _extent(columns), _extent(rows)
    if right <= left or bottom <= top:
        return 0
    # Premultiplied, so that the colour of clear pixels does not matter.
    image = Image.fromarray(rgba).convert("RGBa")
    box = (left, top, right, bottom)
    small = np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BOX, box=box), np.float32)
    cover = small[..., 3] / 255  # (32, 32)
    over_grey = small[..., :3] + 128 * (1 - cover[..., None])
    luminance = over_grey @ np.array([0.299, 0.587, 0.114], np.float32)
    spectrum = (_DCT @ luminance @ _DCT.T)[_ROWS, _COLUMNS]
    area = max(float(cover.mean()), 0.05)
    blue, red = ((over_grey[..., c] - luminance).mean() / area for c in (2, 0))
    aspect = np.log2((right - left) / (bottom - top))
    bits = np.concatenate(
        [
            spectrum > np.median(spectrum),
            aspect > np.array(_ASPECT_STEPS),
            blue > np.array(_BLUE_STEPS),
            red > np.array(_RED_STEPS),
        ]
    )
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _extent(profile: NDArray[np.uint8]) -> tuple[float, float]:
    """First and last edge of the object along one axis, to a part of a pixel by the alpha there."""
    solid = np.flatnonzero(profile >= SOLID)
    if not len(solid):
        return 0.0, 0.0
    first, last = int(solid[0]), int(solid[-1])
    if last - first < 2:
        return float(first), float(last + 1)
    return first + 1 - float(profile[first]) / 255, last + float(profile[last]) / 255


def near_duplicates(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """For each hash the index of the earliest kept one within a Hamming distance.

    A hash is a duplicate only of one that is kept itself, decided in the order given. Exact: when the 64
    bits are split into `distance + 1` blocks, two hashes within `distance` agree on one at least, so pairs
    are looked for among equal values of each block (multi-index hashing).

    Args:
        hashes: (N,) uint64.
        distance: differing bits up to which two are near, 0..62.

    Returns:
        (N,) int64; -1 for each kept hash.

    Raises:
        ValueError: for a distance out of range.
    """
    if not 0 <= distance <= 62:
        raise ValueError(f"distance must be between 0 and 62 bits, got {distance}")
    hashes = np.ascontiguousarray(hashes, np.uint64)
    edges = np.linspace(0, 64, distance + 2).round().astype(int).tolist()
    blocks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    twins = np.full(len(hashes), -1, np.int64)

    def decide(items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Decide the items, in order, among each other; returns those kept."""
        if len(items) <= _LEAF:
            near = np.bitwise_count(hashes[items][:, None] ^ hashes[items]) <= distance
            for later, earlier in items[np.argwhere(np.tril(near, -1))].tolist():
                if twins[later] < 0 and twins[earlier] < 0:
                    twins[later] = earlier
            return items[twins[items] < 0]
        # Where many are alike, most of the second half goes by a few that are kept of the first.
        kept, rest = decide(items[: len(items) // 2]), items[len(items) // 2 :]
        twins[rest] = _earliest_near(hashes, kept, rest, blocks, distance)
        return np.concatenate([kept, decide(rest[twins[rest] < 0])])

    decide(np.arange(len(hashes)))
    return twins


def _earliest_near(
    hashes: NDArray[np.uint64],
    kept: NDArray[np.int64],
    items: NDArray[np.int64],
    blocks: list[np.uint64],
    distance: int,
) -> NDArray[np.int64]:
    """(len(items),) the first of `kept` within the distance of each item, -1 where there is none."""
    found = np.full(len(items), len(hashes))
    for block in blocks:
        keys = hashes[kept] & block
        order = np.argsort(keys, kind="stable")
        keys, members, wanted = keys[order], kept[order], hashes[items] & block
        at, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        left = np.flatnonzero(at < end)  # items that still have one to be compared with
        while len(left):
            other = members[at[left]]
            near = np.bitwise_count(hashes[other] ^ hashes[items[left]]) <= distance
            found[left[near]] = np.minimum(found[left[near]], other[near])
            at[left] += 1
            left = left[~near & (at[left] < end[left])]
    return np.where(found < len(hashes), found, -1)
