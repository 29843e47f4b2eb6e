"""Texts as 16-byte keys, and where each key's vector lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput

KEY_BYTES = 16
KEY_DTYPE = np.dtype(f"S{KEY_BYTES}")

Keys = npt.NDArray[np.bytes_]


def text_keys(texts: Sequence[str]) -> Keys:
    """Hash texts.

    Returns (n,) of the first 16 bytes of each text's SHA-256 in UTF-8. Raises BadInput if a text
    holds half of a surrogate pair and so has no UTF-8 form.
    """
    try:
        joined = b"".join(hashlib.sha256(text.encode()).digest()[:KEY_BYTES] for text in texts)
    except UnicodeEncodeError as error:
        raise BadInput(
            f"a text is not valid Unicode ({error.reason}: {error.object[:40]!a}); repair or remove"
            " that row"
        ) from None
    return np.frombuffer(joined, KEY_DTYPE)


def key_name(key: bytes) -> str:
    """Return a key as a person reads it.

    `key`: a key, without the zero bytes that numpy strips from its end. Returns the first 12
    hexadecimal digits.
    """
    return key.ljust(KEY_BYTES, b"\0").hex()[:12]


def first_seen(keys: Keys) -> npt.NDArray[np.int64]:
    """Return the place of the first of each distinct key, in the order of first sight."""
    return np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)


class KeyIndex:
    """Keys sorted once, searched by bisection: 24 bytes a key, whatever the texts' length."""

    def __init__(self, keys: Keys) -> None:
        """Sort the keys. `keys`: (rows,) keys in the order of the rows."""
        self._rows = np.argsort(keys, kind="stable").astype(np.int64)
        self._keys = keys[self._rows]

    def rows(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Find the rows of keys. Returns (n,) row numbers, -1 where a key is not known."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._rows[at], -1)
