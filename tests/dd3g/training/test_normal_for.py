"""Random numbers that are counted instead of drawn."""

from __future__ import annotations

import math

import torch
from stand_ins.on_meta import OnMeta

from dd3g.training import normal_for
from dd3g.training.data import mixed_seed


def split_mix(x):
    """SplitMix64 of one number, by whole numbers of Python."""
    x = x * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_by_whole_numbers():
    found = normal_for(7, torch.tensor([3, (1 << 40) + 5]), (2, 3))
    assert found.shape == (2, 2, 3) and found.dtype == torch.float32
    for row, index in zip(found.flatten(1), (3, (1 << 40) + 5), strict=True):
        for place, value in enumerate(row.tolist()):
            bits = split_mix((split_mix(index + mixed_seed(7, 0)) + place) % 2**64)
            low, high = bits % 2**32 + 1, bits >> 32
            wanted = math.sqrt(-2 * math.log(low / 2**32)) * math.cos(2 * math.pi * high / 2**32)
            assert abs(value - wanted) < 1e-6


def test_they_are_normal_and_independent():
    """Between neighbours in place, sample and seed; the bounds are four standard errors."""
    x = normal_for(0, torch.arange(64), (4096,)).double()
    count = x.numel()
    assert abs(x.mean()) < 4 / math.sqrt(count) and abs(x.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / count)
    for z in (0.5, 1.0, 2.0, 3.0):
        share = math.erfc(z / math.sqrt(2))
        assert abs((x.abs() > z).double().mean() - share) < 4 * math.sqrt(share / count)
    other = normal_for(1, torch.arange(64), (4096,)).double()
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[1:, :-1], x[:-1, 1:]), (x, other)):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())
        assert abs((a**2 * b**2).mean() - 1) < 4 * math.sqrt(8 / a.numel())


def test_a_sample_has_its_own_wherever_it_stands():
    batch = normal_for(5, torch.tensor([9, 2, 9]), (4,))
    assert torch.equal(batch[0], batch[2]) and torch.equal(batch[1:2], normal_for(5, torch.tensor([2]), (4,)))
    with OnMeta():
        assert normal_for(5, torch.empty(2, dtype=torch.int64, device="meta"), (4, 3)).is_meta
