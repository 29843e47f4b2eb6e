"""Lexical search beside the vectors: BM25 in the index folder, joined by rank fusion."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, require_extra
from taskdistill.io.arrays import damaged, map_file
from taskdistill.search.candidates import Rows
from taskdistill.search.ranking import Ranked, best_rows
from taskdistill.search.storage.commit import commit, free_number
from taskdistill.search.storage.manifest import load_manifest
from taskdistill.search.storage.snapshot import Snapshot

RRF_CONSTANT = 60
"""The usual constant of reciprocal rank fusion."""

DEPTH = 100
"""Rows of either ranking that fusion looks at, at least."""

_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W{_IDEOGRAPHS}]+")
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")


def tokens(text: str) -> list[str]:
    """Cut a text into case-folded words, in any language.

    Runs of ideographs and kana, which have no spaces, become overlapping pairs.
    """
    terms: list[str] = []
    for run in _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _IDEOGRAPH.match(run) and len(run) > 2:
            terms += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            terms.append(run)
    return terms


class Bm25:
    """A BM25 index over the texts of some rows, with bm25s's default k1 and b."""

    def __init__(self, bm25: Any) -> None:
        """Take over a built or loaded `bm25s.BM25`."""
        self._bm25 = bm25

    @classmethod
    def build(cls, texts: Iterable[str]) -> Bm25:
        """Index texts, one a row."""
        require_extra("bm25s", "search", "lexical search")
        import bm25s

        vocabulary: dict[str, int] = {}
        ids = [
            np.array(
                [vocabulary.setdefault(term, len(vocabulary)) for term in tokens(text)], np.int32
            )
            for text in texts
        ]
        bm25 = bm25s.BM25()
        # bm25s expects an empty term in every vocabulary.
        vocabulary.setdefault("", len(vocabulary))
        bm25.index((ids, vocabulary), show_progress=False)
        return cls(bm25)

    @property
    def bytes(self) -> int:
        """Size of the postings."""
        return int(sum(self._bm25.scores[name].nbytes for name in ("data", "indices", "indptr")))

    def save(self, folder: Path) -> None:
        """Write the files of the index into an existing folder."""
        self._bm25.save(folder, show_progress=False)

    def rank(self, query: str, top_k: int, allowed: NDArray[np.bool_] | None = None) -> Ranked:
        """Rank the rows that share a term with a query by BM25 scores.

        `allowed`: `(rows,)` True where a row may be found; None for all.
        """
        ids = self._bm25.get_tokens_ids(tokens(query))
        if not ids:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        scores = self._bm25.get_scores_from_ids(ids)
        if allowed is not None:
            scores = scores * allowed
        rows = np.flatnonzero(scores > 0)
        return best_rows(rows, scores[rows], top_k)


def build_bm25(snapshot: Snapshot) -> None:
    """Build the lexical part of an index and commit it; the caller holds the lock."""
    if snapshot.live_count == 0:
        raise BadInput(
            f"{snapshot.path} holds no documents; add some before building its lexical part"
        )
    bm25 = Bm25.build(text for segment in snapshot.segments for text in segment.titled_texts())
    number = free_number(snapshot.path, "bm25", snapshot.manifest.generation + 1)
    commit(snapshot, {f"bm25/{number:08}": bm25.save}, bm25=number)


def open_bm25(snapshot: Snapshot, *, full: bool = True) -> Bm25:
    """Open the lexical part of an index: BM25 over the live rows of the snapshot, in order.

    `full`: whether to hash its files, not only to compare sizes.
    """
    require_extra("bm25s", "search", "lexical search")
    import bm25s

    manifest, path = snapshot.manifest, snapshot.path
    if manifest.bm25 is None:
        raise BadInput(
            f"{path} has no lexical part, or its documents have changed since it was built; build "
            f"it with `taskdistill index MODEL CORPUS --out {path} --bm25`, or search with "
            "--no-hybrid"
        )
    folder = f"bm25/{manifest.bm25:08}"
    if folder not in manifest.contents:
        raise damaged(path, f"the manifest lists no files of {folder}")
    for name, _, _ in sorted(manifest.contents[folder]):
        try:
            map_file(path / name, dict(manifest.files[name]), full=full).close()
        except FileNotFoundError:
            if load_manifest(path).files == manifest.files:
                raise damaged(path / name, "it is missing") from None
            raise BadInput(f"{path} has changed since it was opened; open it again") from None
    bm25 = bm25s.BM25.load(path / folder, mmap=True)
    rows = bm25.scores["num_docs"]
    if rows != snapshot.live_count:
        raise damaged(path / folder, f"it has {rows} rows instead of {snapshot.live_count}")
    return Bm25(bm25)


def fuse(rankings: Sequence[Rows], top_k: int) -> Ranked:
    """Join rankings: a row scores the sum of 1 / (60 + its rank), with ranks from 1."""
    rows, inverse = np.unique(
        np.concatenate([np.zeros(0, np.int64), *rankings]), return_inverse=True
    )
    ranks = (np.arange(1, len(ranking) + 1) for ranking in rankings)
    parts = np.concatenate([np.zeros(0), *(1 / (RRF_CONSTANT + rank) for rank in ranks)])
    scores = np.bincount(inverse, weights=parts, minlength=len(rows)).astype(np.float32)
    return best_rows(rows, scores, top_k)
