"""One hash for whatever must stay the same while a piece of work goes on."""

from __future__ import annotations

import hashlib
import os


def fingerprint(*parts: str | bytes) -> str:
    """First 16 hex digits of the sha256 of some texts or bytes, one behind the other.

    Args:
        parts: texts may hold file names that are not valid UTF-8.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(os.fsencode(part) if isinstance(part, str) else part)
    return sha.hexdigest()[:16]
