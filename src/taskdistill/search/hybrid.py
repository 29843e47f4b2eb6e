"""Lexical search beside the vectors: BM25 (bm25s) stored in the index folder, joined by reciprocal rank fusion."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, require_extra
from taskdistill.io.arrays import damaged, map_file
from taskdistill.search.ranking import Ranked, best
from taskdistill.search.storage.journal import change, commit, free_number, write_part
from taskdistill.search.storage.manifest import load_manifest
from taskdistill.search.storage.segment_writer import Rows
from taskdistill.search.storage.snapshot import Snapshot
from taskdistill.search.target import disk

RRF_CONSTANT = 60
"""The usual constant of reciprocal rank fusion."""

DEPTH = 100
"""Rows of either ranking that fusion looks at, at least."""

_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W{_IDEOGRAPHS}]+")
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")


def tokens(text: str) -> list[str]:
    """Cut a text into terms for BM25, in any language.

    Args:
        text: Any text.

    Returns:
        Case-folded words; runs of ideographs and kana, which have no spaces, as overlapping pairs.
    """
    found: list[str] = []
    for run in _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _IDEOGRAPH.match(run) and len(run) > 2:
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            found.append(run)
    return found


class Bm25:
    """A BM25 index over the texts of some rows."""

    def __init__(self, bm25: Any) -> None:
        """Take over a bm25s index.

        Args:
            bm25: A built or loaded `bm25s.BM25`.
        """
        self._bm25 = bm25

    @classmethod
    def build(cls, texts: Iterator[str] | Sequence[str]) -> Bm25:
        """Index texts.

        Args:
            texts: One a row.

        Returns:
            The BM25 index, with bm25s's default k1 and b.
        """
        require_extra("bm25s", "search", "lexical search")
        import bm25s

        vocabulary: dict[str, int] = {}
        ids = [
            np.array(
                [vocabulary.setdefault(each, len(vocabulary)) for each in tokens(text)], np.int32
            )
            for text in texts
        ]
        bm25 = bm25s.BM25()
        vocabulary.setdefault("", len(vocabulary))
        bm25.index((ids, vocabulary), show_progress=False)
        return cls(bm25)

    @property
    def bytes(self) -> int:
        """Size of the postings."""
        return int(sum(self._bm25.scores[name].nbytes for name in ("data", "indices", "indptr")))

    def save(self, folder: Path) -> None:
        """Write the files of the index.

        Args:
            folder: An existing folder.
        """
        self._bm25.save(folder, show_progress=False)

    def rank(self, query: str, top_k: int, allowed: NDArray[np.bool_] | None = None) -> Ranked:
        """Rank rows for a query.

        Args:
            query: Its text.
            top_k: Rows at most.
            allowed: (rows,) True where a row may be found; None for all.

        Returns:
            Rows that share a term with the query, numbered as the texts were, best first, and BM25 scores.
        """
        ids = self._bm25.get_tokens_ids(tokens(query))
        if not ids:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        scores = self._bm25.get_scores_from_ids(ids)
        if allowed is not None:
            scores = scores * allowed
        rows = np.flatnonzero(scores > 0)
        return best(rows, scores[rows], top_k)


def build_bm25(snapshot: Snapshot) -> None:
    """Build the lexical part of an index for its current generation and commit it; the caller holds the lock.

    Args:
        snapshot: The current generation.

    Raises:
        BadInput: If the index holds no document, or bm25s is not installed.
    """
    if snapshot.live_count == 0:
        raise BadInput(
            f"{snapshot.path} holds no documents; add some before building its lexical part"
        )
    lexical = Bm25.build(text for segment in snapshot.segments for text in segment.titled_texts())
    path, manifest = snapshot.path, snapshot.manifest
    with disk(path):
        number = free_number(path, "bm25", manifest.generation + 1)
        folder = f"bm25/{number:08}"
        with change(path, manifest, [folder]):
            files = {**manifest.files, **write_part(path, folder, lexical.save)}
            commit(path, manifest.next(bm25=number, files=files))


def open_bm25(snapshot: Snapshot, *, full: bool = True) -> Bm25:
    """Open the lexical part of an index.

    Args:
        snapshot: The current generation.
        full: Whether to hash its files, not only to compare sizes.

    Returns:
        BM25 over the live rows of the snapshot, in order.

    Raises:
        BadInput: If there is none, or it is damaged.
    """
    require_extra("bm25s", "search", "lexical search")
    import bm25s

    manifest = snapshot.manifest
    if manifest.bm25 is None:
        raise BadInput(
            f"{snapshot.path} has no lexical part, or its documents have changed since it was built; "
            "build it with Index.build_bm25(), or search without hybrid"
        )
    folder = f"bm25/{manifest.bm25:08}"
    if folder not in manifest.contents:
        raise damaged(snapshot.path, f"the manifest lists no files of {folder}")
    for name, expected in manifest.files.items():
        if name.startswith(f"{folder}/"):
            try:
                map_file(snapshot.path / name, expected, full=full).close()
            except FileNotFoundError:
                if load_manifest(snapshot.path).files == manifest.files:
                    raise damaged(snapshot.path / name, "it is missing") from None
                raise BadInput(
                    f"{snapshot.path} has changed since it was opened; open it again"
                ) from None
    bm25 = bm25s.BM25.load(snapshot.path / folder, mmap=True)
    if bm25.scores["num_docs"] != snapshot.live_count:
        raise damaged(
            snapshot.path / folder,
            f"it has {bm25.scores['num_docs']} rows instead of {snapshot.live_count}",
        )
    return Bm25(bm25)


def fuse(rankings: Sequence[Rows], top_k: int) -> Ranked:
    """Join rankings by reciprocal rank fusion: a row scores the sum of 1 / (60 + its rank) over the rankings that have it.

    Args:
        rankings: Rows, best first; ranks count from 1.
        top_k: Rows at most.

    Returns:
        Rows and scores, best first; equal scores in the order of rows.
    """
    rows, inverse = np.unique(
        np.concatenate([np.zeros(0, np.int64), *rankings]), return_inverse=True
    )
    parts = np.concatenate(
        [np.zeros(0), *(1 / (RRF_CONSTANT + 1 + np.arange(len(ranking))) for ranking in rankings)]
    )
    scores = np.bincount(inverse, weights=parts, minlength=len(rows)).astype(np.float32)
    return best(rows, scores, top_k)
