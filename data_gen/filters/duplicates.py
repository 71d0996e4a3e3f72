"""Near duplicates over a whole set: a 64-bit hash of a picture, and a search that misses no pair."""

from __future__ import annotations

from itertools import combinations
from math import comb

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
_LEAF = 1024  # so few hashes are compared all with all
_CANDIDATES = 1 << 26  # pairs that one search may compare before it is halved
_CHUNK = 1 << 21  # pairs held at once


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
    bits are split into `distance + k` blocks, two hashes within `distance` agree on k blocks at least, so
    pairs are looked for among equal values of each choice of k blocks (multi-index hashing).

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
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    # An equal hash has the earliest kept twin of its first appearance, or that appearance.
    order = np.argsort(first)
    twins = _Search(values[order], distance).twins  # positions in the order of first appearance
    first = first[order]
    twin = np.where(twins < 0, first, first[twins])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    result = twin[rank[inverse]].astype(np.int64)
    result[first[twins < 0]] = -1
    return result


class _Search:
    """Greedy near twins among different hashes: `twins` is (N,) int64, -1 for each kept one."""

    def __init__(self, hashes: NDArray[np.uint64], distance: int) -> None:
        self.hashes, self.distance = hashes, distance
        self.masks = _masks(distance, len(hashes))
        self.twins = np.full(len(hashes), -1, np.int64)
        self._decide(np.arange(len(hashes)))

    def _decide(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Decide the items, in order, among each other; returns those kept."""
        if len(items) > _LEAF and self._candidates(items) > _CANDIDATES:
            # Many alike: those near a kept one of the first half need no comparison among each other.
            half = len(items) // 2
            kept = self._decide(items[:half])
            self._drop_near(kept, items[half:])
            rest = items[half:][self.twins[items[half:]] < 0]
            return np.concatenate([kept, self._decide(rest)])
        earlier, later = self._near_pairs(items)
        for a, b in zip(earlier.tolist(), later.tolist(), strict=True):
            if self.twins[b] < 0 and self.twins[a] < 0:
                self.twins[b] = a
        return items[self.twins[items] < 0]

    def _candidates(self, items: NDArray[np.int64]) -> int:
        total = 0
        for mask in self.masks:
            counts = np.unique(self.hashes[items] & mask, return_counts=True)[1]
            total += int((counts * (counts - 1) // 2).sum())
        return total

    def _near_pairs(self, items: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of items within the distance, by the later and then the earlier one, each once."""
        found = [np.empty(0, np.int64)]
        for mask in [np.uint64(0)] if len(items) <= _LEAF else self.masks:
            keys = self.hashes[items] & mask
            order = np.argsort(keys, kind="stable")
            keys, members = keys[order], items[order]
            values = self.hashes[members]
            at, step = np.arange(len(keys)), 0
            while len(at):
                step += 1
                at = at[: np.searchsorted(at, len(keys) - step)]
                at = at[keys[at + step] == keys[at]]
                near = at[np.bitwise_count(values[at + step] ^ values[at]) <= self.distance]
                found.append(members[near + step] * len(self.hashes) + members[near])
        pairs = np.unique(np.concatenate(found))
        return pairs % len(self.hashes), pairs // len(self.hashes)

    def _drop_near(self, kept: NDArray[np.int64], items: NDArray[np.int64]) -> None:
        """Note the earliest kept twin of each item that has one."""
        earliest = np.full(len(items), len(self.hashes), np.int64)
        for mask in self.masks:
            keys = self.hashes[kept] & mask
            order = np.argsort(keys, kind="stable")
            keys, members = keys[order], kept[order]
            wanted = self.hashes[items] & mask
            low, high = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            chunk = np.cumsum(high - low) // _CHUNK
            for part in np.split(np.arange(len(items)), np.flatnonzero(np.diff(chunk)) + 1):
                counts = (high - low)[part]
                which = np.repeat(part, counts)
                offset = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
                twin = members[low[which] + offset]
                bits = np.bitwise_count(self.hashes[twin] ^ self.hashes[items[which]])
                near = bits <= self.distance
                np.minimum.at(earliest, which[near], twin[near])
        has = earliest < len(self.hashes)
        self.twins[items[has]] = earliest[has]


def _masks(distance: int, count: int) -> list[np.uint64]:
    """Each choice of k of `distance + k` blocks of bits, for the k with the least work for random hashes."""
    choices = [k for k in range(1, 5) if distance + k <= 64]

    def work(k: int) -> float:
        agreeing = count**2 / 2 ** (64 * k / (distance + k) + 1)
        return comb(distance + k, k) * (20.0 * count + agreeing)

    k = min(choices, key=work)
    edges = np.linspace(0, 64, distance + k + 1).round().astype(int).tolist()
    blocks = [(1 << high) - (1 << low) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, k)]
