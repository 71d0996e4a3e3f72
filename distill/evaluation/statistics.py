"""Differences between two rows on the same objects, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from distill.evaluation.metrics import bootstrap_mean

DRAWS = 10_000


def paired_difference(
    a: Sequence[float | None], b: Sequence[float | None], seed: int = 0
) -> dict[str, float | int | None]:
    """Mean of a - b over objects with a 95 % bootstrap interval, and whether it could be chance.

    Args:
        a: one value an object.
        b: of the same objects in the same order; pairs with a NaN or None are left out.
        seed: of the resamples.

    Returns:
        mean, low, high and n as `bootstrap_mean`, and p: two-sided, of a sign-flip permutation test on the
        mean (exact up to 13 objects, 10,000 draws beyond); None without pairs.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    return bootstrap_mean(difference.tolist(), seed) | {"p": sign_flip_p(difference.tolist(), seed)}


def differences(
    columns: Mapping[str, Mapping[str, Sequence[float | None]]], name: str, seed: int = 0
) -> list[dict[str, Any]]:
    """Paired differences of every two rows of a table, later minus earlier.

    Args:
        columns: label of a row -> key -> one value an object, as `paired_difference` takes them.
        name: what a key is: it stands in each result, beside `a`, `b` and what `paired_difference` gives.
        seed: of the resamples.
    """
    labels = list(columns)
    return [
        {"a": a, "b": b, name: key, **paired_difference(columns[a][key], columns[b][key], seed)}
        for i, a in enumerate(labels)
        for b in labels[:i]
        for key in columns[a]
        if key in columns[b]
    ]


def sign_flip_p(difference: Sequence[float], seed: int = 0) -> float | None:
    """Share of sign patterns whose mean is at least as far from 0 as the one at hand."""
    x = np.asarray(difference, dtype=np.float64)
    if not len(x):
        return None
    # A little less than the mean at hand, so that rounding does not decide ties.
    bound = abs(x.mean()) * (1 - 1e-12)
    if len(x) <= 13:
        signs = np.array(list(product((1.0, -1.0), repeat=len(x))))
        return round(float((np.abs(signs @ x) / len(x) >= bound).mean()), 5)
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(DRAWS, len(x)))
    return round(float(((np.abs(signs @ x) / len(x) >= bound).sum() + 1) / (DRAWS + 1)), 5)
