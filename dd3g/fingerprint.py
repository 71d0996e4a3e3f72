"""One hash for whatever must stay the same while a piece of work goes on."""

from __future__ import annotations

import hashlib


def fingerprint(*parts: str | bytes) -> str:
    """First 16 hex digits of the sha256 of some texts or bytes, one behind the other.

    Args:
        parts: texts count as UTF-8 in every locale, and may hold file names that are not valid.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return sha.hexdigest()[:16]
