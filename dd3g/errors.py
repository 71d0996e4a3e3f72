"""The one error that command lines turn into a clear line and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What the user can put right: the message names the wrong value, a right one, and the next step."""


@contextmanager
def needed(sentence: str) -> Iterator[None]:
    """Report a package that cannot be imported within by a sentence that says what to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(sentence) from error


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind when it says nothing."""
    words = str(error)
    if isinstance(error, KeyError):  # whose words are the key alone, but for some libraries
        sentence = len(error.args) == 1 and " " in str(error.args[0])
        words = str(error.args[0]) if sentence else f"there is no {error}"
    words = re.sub(r" ?<[\w.]+ object at 0x[0-9a-f]+>", "", words)  # of what is read from memory, by Pillow
    return (words.strip().splitlines() or [type(error).__name__])[0]
