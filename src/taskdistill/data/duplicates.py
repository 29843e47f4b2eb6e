"""Which texts are the same: exactly after normalisation, or nearly by the word runs that they share."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """Return the form in which texts are compared: NFKC, case folded, white space joined.

    Args:
        text: Any text.

    Returns:
        The normalised text.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())
