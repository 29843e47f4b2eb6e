"""How much of an evaluation set was seen in training: exact texts, and texts that share a run of 13
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskdistill.data.dedup import fold_text, share_of_runs, word_runs


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which evaluation texts occur in the training texts: masks of shape (evaluation texts,)."""

    exact: np.ndarray
    near: np.ndarray

    def counts(self) -> dict[str, int]:
        """Return the numbers for a report.

        Returns texts, exact (equal after NFKC, case folding, joined white space) and near (share 13
        words in a row, not exact).
        """
        return {
            "texts": len(self.exact),
            "exact": int(self.exact.sum()),
            "near": int((self.near & ~self.exact).sum()),
        }


@dataclass(frozen=True, slots=True)
class SeenTexts:
    """What training texts are compared by: normalised texts, and the sorted hashes of their runs of
    words.
    """

    texts: frozenset[str]
    runs: np.ndarray


def trained_on(train_texts: Sequence[str]) -> SeenTexts:
    """Prepare training texts for several comparisons. Returns what `overlap_with` takes."""
    return SeenTexts(frozenset(map(fold_text, train_texts)), np.unique(word_runs(train_texts)[0]))


def overlap_with(trained: SeenTexts, eval_texts: Sequence[str]) -> Overlap:
    """Compare evaluation texts with prepared training texts.

    Returns for each evaluation text whether it was seen.
    """
    exact = np.array([fold_text(text) in trained.texts for text in eval_texts], dtype=bool)
    return Overlap(exact, share_of_runs(eval_texts, trained.runs) > 0)


def overlap(train_texts: Sequence[str], eval_texts: Sequence[str]) -> Overlap:
    """Compare evaluation texts with training texts.

    Returns for each evaluation text whether it was seen.
    """
    return overlap_with(trained_on(train_texts), eval_texts)
