"""The perceptual hash on drawn pictures, and the search for near duplicates against its plain twin."""

import functools
import io
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_gen.filters import duplicates
from data_gen.filters.duplicates import near_duplicates, perceptual_hash

SIDE = 256


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


@functools.cache
def drawing(seed: int, side: int = SIDE) -> np.ndarray:
    """A blob with coloured patches, antialiased, on nothing."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    reach = rng.uniform(0.22, 0.4, (8, 1)) * rng.uniform(0.4, 1.0, 2)
    outline = (0.5 + reach * np.stack([np.cos(angles), np.sin(angles)], 1)) * 4 * side
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in outline], fill=255)
    paint = Image.new("RGB", mask.size, tuple(rng.integers(0, 256, 3).tolist()))
    brush = ImageDraw.Draw(paint)
    for _ in range(8):
        x, y, r = rng.uniform(0.2, 0.8, 3) * 4 * side * (1, 1, 0.25)
        brush.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    paint.putalpha(mask)
    return np.asarray(paint.convert("RGBa").reduce(4).convert("RGBA"))


def resized(rgba: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(rgba).convert("RGBa").resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGBA"))


def noisy(rgba: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 6, (*rgba.shape[:2], 3))
    return np.dstack([(rgba[..., :3] + noise).clip(0, 255).astype(np.uint8), rgba[..., 3]])


def compressed(rgba: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(rgba).convert("RGB").save(stream, "JPEG", quality=70)
    return np.dstack([np.asarray(Image.open(stream)), rgba[..., 3]])


def moved(rgba: np.ndarray) -> np.ndarray:
    return np.roll(rgba, (7, -5), (0, 1))


def recoloured_nothing(rgba: np.ndarray) -> np.ndarray:
    return np.where(rgba[..., 3:] > 0, rgba, np.array([255, 0, 200, 0], np.uint8))


def half_size(rgba: np.ndarray) -> np.ndarray:
    return resized(rgba, SIDE // 2)


def larger(rgba: np.ndarray) -> np.ndarray:
    return resized(rgba, 400)


@pytest.mark.parametrize("change", [noisy, compressed, moved, recoloured_nothing, half_size, larger])
def test_a_changed_picture_keeps_its_hash_nearly(change):
    found = [distance(drawing(seed), change(drawing(seed))) for seed in range(20)]
    # A few bits always lie near their median; most pictures keep all but two.
    assert np.median(found) <= 2 and np.mean(np.array(found) <= 4) >= 0.9, found


def test_different_pictures_differ():
    hashes = np.array([perceptual_hash(drawing(seed)) for seed in range(60)], np.uint64)
    between = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(60, 1)]
    assert between.min() > 8 and 20 < between.mean() < 40


def disc(colour: tuple[int, int, int], width: int = 200, height: int = 200) -> np.ndarray:
    image = Image.new("RGBA", (SIDE, SIDE))
    box = ((SIDE - width) // 2, (SIDE - height) // 2, (SIDE + width) // 2, (SIDE + height) // 2)
    ImageDraw.Draw(image).ellipse(box, fill=(*colour, 255))
    return np.asarray(image)


def test_one_form_in_another_colour_or_width_is_another_picture():
    red = disc((200, 60, 40))
    assert distance(red, disc((200, 60, 40))) == 0
    assert distance(red, disc((40, 80, 220))) > 4
    assert distance(red, disc((200, 60, 40), 30)) >= 2  # only the width bits can tell


def test_hash_is_64_bits_and_that_of_nothing_is_0():
    assert all(0 <= perceptual_hash(drawing(s)) < 2**64 for s in range(5))
    assert any(perceptual_hash(drawing(s)) >= 2**63 for s in range(5))
    assert perceptual_hash(np.zeros((32, 32, 4), np.uint8)) == 0
    dot = np.zeros((32, 32, 4), np.uint8)
    dot[5, 6] = 255
    assert 0 < perceptual_hash(dot) < 2**64


def brute_force(hashes: np.ndarray, distance: int) -> np.ndarray:
    kept: list[int] = []
    result = []
    for i, value in enumerate(hashes):
        near = [j for j in kept if int(value ^ hashes[j]).bit_count() <= distance]
        result.append(near[0] if near else -1)
        if not near:
            kept.append(i)
    return np.array(result, np.int64)


def crowded(rng: np.random.Generator, count: int, centres: int, flips: int) -> np.ndarray:
    hashes = rng.integers(0, 2**64, centres, dtype=np.uint64)[rng.integers(0, centres, count)]
    for _ in range(flips):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64))
    return hashes


@pytest.mark.parametrize("leaf", [1024, 8], ids=["usual", "halving"])
@pytest.mark.parametrize("trial", range(12))
def test_search_agrees_with_brute_force(monkeypatch, leaf, trial):
    monkeypatch.setattr(duplicates, "_LEAF", leaf)
    rng = np.random.default_rng(trial)
    near = int(rng.integers(0, 10))
    hashes = crowded(rng, 400, int(rng.integers(1, 300)), int(rng.integers(0, 6)))
    assert np.array_equal(near_duplicates(hashes, near), brute_force(hashes, near))


def test_search_in_banded_tables_agrees_with_brute_force(monkeypatch):
    monkeypatch.setattr(duplicates, "_LEAF", 1)
    hashes = crowded(np.random.default_rng(0), 1500, 700, 3)
    assert np.array_equal(near_duplicates(hashes, 5), brute_force(hashes, 5))


@pytest.mark.parametrize("near", [0, 1, 4, 9])
def test_no_pair_at_exactly_the_distance_is_missed(near):
    rng = np.random.default_rng(near)
    first = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    flips = np.argsort(rng.random((3000, 64)), 1)[:, :near].astype(np.uint64)
    second = first ^ (np.uint64(1) << flips).sum(1, dtype=np.uint64)
    found = near_duplicates(np.concatenate([first, second]), near)
    assert np.array_equal(found[3000:], np.arange(3000))
    further = second ^ (np.uint64(1) << np.argsort(rng.random((3000, 64)), 1)[:, 0].astype(np.uint64))
    apart = np.bitwise_count(further ^ first) > near
    found = near_duplicates(np.concatenate([first, further]), near)
    assert np.array_equal(found[3000:] < 0, apart)


def test_a_duplicate_of_a_duplicate_is_kept_when_it_is_far_from_the_kept_one():
    hashes = np.array([0b0, 0b11, 0b1111, 0b11], np.uint64)
    assert near_duplicates(hashes, 2).tolist() == [-1, 0, -1, 0]
    assert near_duplicates(hashes, 0).tolist() == [-1, -1, -1, 1]


def test_empty_and_wrong_distance():
    assert near_duplicates(np.empty(0, np.uint64), 4).shape == (0,)
    with pytest.raises(ValueError, match="got 64"):
        near_duplicates(np.zeros(2, np.uint64), 64)


def test_120k_hashes_take_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 120_000, dtype=np.uint64)
    planted = np.arange(100_000, 101_200)
    hashes[planted] = hashes[planted - 90_000] ^ np.uint64(0b1011)
    start = time.process_time()
    found = near_duplicates(hashes, 4)
    assert time.process_time() - start < 10
    assert np.array_equal(np.flatnonzero(found >= 0), planted)
    assert np.array_equal(found[planted], planted - 90_000)


@pytest.mark.slow
def test_120k_hashes_around_one_take_seconds():
    hashes = crowded(np.random.default_rng(0), 120_000, 1, 4)
    start = time.process_time()
    found = near_duplicates(hashes, 4)
    assert time.process_time() - start < 20
    kept = hashes[found < 0]
    assert np.bitwise_count(hashes[found >= 0] ^ hashes[found[found >= 0]]).max() <= 4
    assert near_duplicates(kept, 4).max() == -1
