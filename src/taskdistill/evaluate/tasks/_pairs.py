"""Pairs of texts with a score each: read for STS and pair classification, sides for bitext too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.evaluate.set_data import PairData, is_number, language, varied_rows
from taskdistill.evaluate.task_type import split_files
from taskdistill.io.beir import refuse, rows, sample


def scored_files(root: Path, split: str, *, binary: bool) -> Iterator[tuple[str, Path]]:
    """Yield the files of `scored/` whose scores are all 0 or 1, or those where one is not."""
    for name, path in split_files(root / "scored", split):
        # Reading stops at the first score that is neither.
        if all(row.get("score") in (0, 1) for row in rows(path, (), [])) == binary:
            yield name, path


def read_scored(name: str, path: Path, limit: int | None, seed: int) -> PairData:
    """Read pairs with a score each; languages whose scores are all equal are left out and noted."""
    notes: list[str] = []
    sampled = sample(list(rows(path, ("text1", "text2"), notes)), limit, seed)
    for row in sampled:
        if not is_number(row.get("score")):
            refuse(path, row["#"], f"score is {row.get('score')!r}; a finite number is needed")
    languages, scores = [language(row) for row in sampled], [row["score"] for row in sampled]
    usable = [sampled[i] for i in varied_rows(name, languages, scores, "scores", notes)]
    if outside := sum(not 0 <= row["score"] <= 1 for row in usable):
        notes.append(
            f"{outside} of {len(usable)} scores lie outside 0 to 1; only their order counts"
        )
    return PairData(
        first=[row["text1"] for row in usable],
        second=[row["text2"] for row in usable],
        scores=np.array([row["score"] for row in usable], dtype=np.float64),
        languages=[language(row) for row in usable],
        notes=tuple(notes),
    )


def constant_note(similarities: NDArray[np.floating]) -> tuple[str, ...]:
    """Warn of a model that gives every pair the same similarity."""
    if np.ptp(similarities) > 0:
        return ()
    return ("every similarity is the same number: this model does not tell the texts apart",)
