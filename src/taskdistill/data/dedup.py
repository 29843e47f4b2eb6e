"""Which texts are the same: exactly after normalisation, or nearly, by the runs of 13 words that
they share.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

RUN = 13
"""Words of a run; texts that share one are near duplicates."""

_WORD = re.compile(r"\w+")
_STEP = np.uint64(0x9E3779B97F4A7C15)


def fold_text(text: str) -> str:
    """Return the form in which texts are compared: NFKC, case folded, white space joined."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def words_of(text: str) -> list[str]:
    """Return the words of a normalised text, without punctuation. Returns its words in order."""
    return _WORD.findall(fold_text(text))


def word_runs(texts: Sequence[str], size: int = RUN) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of words of every text.

    `texts`: texts; one with fewer than `size` words has no run. Returns hashes (uint64) and the
    number of the text that each belongs to (int64), both of shape (runs,), in text order.
    """
    known: dict[str, int] = {}
    ids: list[int] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    for number, text in enumerate(texts):
        words = words_of(text)
        lengths[number] = len(words)
        ids += [known.setdefault(word, len(known)) for word in words]
    if len(ids) < size:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    codes = np.array([_code(word) for word in known], dtype=np.uint64)[np.array(ids)]
    owners = np.repeat(np.arange(len(texts)), lengths)
    runs = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for place in range(size):
        runs = runs * _STEP + codes[place : place + len(runs)]
    inside_one_text = owners[: len(runs)] == owners[size - 1 :]
    return runs[inside_one_text], owners[: len(runs)][inside_one_text]


def share_of_runs(texts: Sequence[str], held: np.ndarray) -> np.ndarray:
    """Say how much of each text's runs occur among given ones.

    `held`: hashes that `word_runs` returned. Returns share in 0..1, shape (texts,); 0 for a text
    too short to have a run.
    """
    runs, owners = word_runs(texts)
    counts = np.bincount(owners, minlength=len(texts))
    hits = np.bincount(owners[np.isin(runs, held)], minlength=len(texts))
    return hits / np.maximum(counts, 1)


def repeats_within(texts: Sequence[str], max_share: float = 0.5) -> np.ndarray:
    """Find the texts that mostly repeat earlier ones.

    `max_share`: share of a text's runs found in earlier kept texts from which on it is a repeat.
    Returns True for a text equal to an earlier one or for a repeat, shape (texts,).
    """
    runs, owners = word_runs(texts)
    ends = np.searchsorted(owners, np.arange(len(texts)), side="right").tolist()
    result: set[int] = set()
    keys_seen: set[str] = set()
    repeats = np.zeros(len(texts), dtype=bool)
    start = 0
    for number, end in enumerate(ends):
        text_runs = runs[start:end].tolist()
        start = end
        key = exact_key(texts[number])
        repeats[number] = key in keys_seen or (
            bool(text_runs)
            and sum(run in result for run in text_runs) >= max_share * len(text_runs)
        )
        keys_seen.add(key)
        if not repeats[number]:
            result.update(text_runs)
    return repeats


def exact_key(text: str) -> str:
    """Return the key of equal texts: the normalised text without punctuation at its end."""
    return fold_text(text).rstrip(" .:;!")


def _code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
