"""Whole numbers that callers of Python give, of numpy's and torch's types too."""

from __future__ import annotations

import operator
from typing import Any

from dd3g.errors import UserError

SEEDS = 2**64  # torch knows no more


def whole(value: Any, what: str, least: int, most: int | None = None) -> int:
    """A number of any type of whole numbers, as Python's own.

    Raises:
        UserError: beginning with `what`, for anything else or outside of least .. most.
    """
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{what} {value!r} is not a whole number: give {limits}") from None
    if number < least or (most is not None and number > most):
        raise UserError(f"{what} {number} is out of range: give {limits}")
    return number


def whole_seed(value: Any, what: str = "the seed") -> int:
    """A seed that torch knows, see `whole`."""
    return whole(value, what, 0, SEEDS - 1)
