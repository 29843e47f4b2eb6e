"""What smaller vectors cost in quality: every dimension and precision, from the same vectors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.encode import EncodedSet
from taskdistill.evaluate.exact_search import (
    named_ranking,
    ndcg_by_query,
    ndcg_by_query_of_bits,
    top_documents,
)
from taskdistill.evaluate.rankings import score_ranking
from taskdistill.evaluate.set_data import RankingData, SetData
from taskdistill.evaluate.task_type import EvaluationTask
from taskdistill.quantization import (
    Int8Ranges,
    bytes_per_vector,
    hamming,
    normalize,
    pack_bits,
    truncate,
    unpack_bits,
)
from taskdistill.tasks import Role
from taskdistill.types import Precision

Offsets = Mapping[str, Mapping[int, NDArray[np.float32]]]
"""query and document to dimension to what a model takes from vectors before their signs."""
SideOffsets = Mapping[str, NDArray[np.float32] | None]
OVERSAMPLE = 10
"""Candidates rescored for each of the ten results that are kept."""

RESCORED = (Precision.INT8, Precision.BINARY)
"""Precisions whose order of candidates float32 queries can correct."""

TARGETS = (0.99, 0.97, 0.95)
"""Shares of the uncompressed score that the verdict looks for."""

_CUTOFF = 10
_CALIBRATION = ("documents", "train", "texts", "second", "human")
_BATCH = 32


@dataclass(frozen=True)
class CompressionResult:
    """One way to store vectors: its score and share of the uncompressed score, size and speed."""

    dim: int
    precision: str
    rescored: bool
    score: float
    kept: float
    bytes: int
    query_ms: float | None

    def label(self) -> str:
        """Return the setting in words, such as `256 dimensions, binary, rescored`."""
        return f"{self.dim} dimensions, {self.precision}" + (", rescored" if self.rescored else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CompressionMatrix:
    """Cells by dimension (largest first) and precision, and the int8 ranges that were used."""

    cells: tuple[CompressionResult, ...]
    ranges: Mapping[int, Int8Ranges]


def compression_matrix(
    name: str,
    task: EvaluationTask[Any],
    data: SetData,
    encoded: EncodedSet,
    dims: Sequence[int],
    precisions: Sequence[str] = tuple(Precision),
    *,
    ranges: Mapping[int, Int8Ranges] | None = None,
    rescore: bool = True,
    offsets: Offsets | None = None,
) -> CompressionMatrix:
    """Score every dimension and precision of vectors that are already computed.

    Binary compares sign bits on both sides by Hamming distance, int8 the codes of both sides.
    Rescoring, for sets that search, takes the best candidates of int8 or binary (ten for each of
    ten results) and ranks them again by float32 queries against int8 documents, which binary then
    stores too; float16 loses nothing that rescoring could bring back. int8 ranges are fitted once
    for each dimension, on documents, and used for both sides. `kept` is relative to all
    dimensions in float32.

    Args:
        ranges: int8 ranges by dimension where the model stores some; others are fitted here.
        offsets: What the model takes from vectors before their signs; None takes nothing.

    Raises:
        BadInput: If a dimension is larger than the vectors, or a precision is unknown.
    """
    full_score = task.score(data, encoded.sides).score
    if too_large := [dim for dim in dims if dim > encoded.dim]:
        raise BadInput(
            f"dimensions {too_large} exceed the {encoded.dim} of these vectors; leave them out"
        )
    fitted: dict[int, Int8Ranges] = dict(ranges or {})
    cells = []
    for dim in sorted(set(dims), reverse=True):
        cut = replace(
            encoded, sides={side: truncate(x, dim) for side, x in encoded.sides.items() if len(x)}
        )
        if dim not in fitted:
            fitted[dim] = Int8Ranges.fit(
                next(cut.sides[side] for side in _CALIBRATION if side in cut.sides)
            )
        side_offsets = _side_offsets(task, cut, dim, offsets or {})
        for precision in precisions:
            size = bytes_per_vector(dim, precision)
            score, milliseconds = _plain(
                name, task, data, cut, precision, fitted[dim], side_offsets
            )
            cells.append(
                CompressionResult(
                    dim, str(precision), False, score, _share(score, full_score), size, milliseconds
                )
            )
            if (
                rescore
                and precision in RESCORED
                and isinstance(data, RankingData)
                and data.candidates is None
            ):
                size += (
                    bytes_per_vector(dim, Precision.INT8) if precision == Precision.BINARY else 0
                )
                score, milliseconds = _rescored(data, cut, precision, fitted[dim], side_offsets)
                cells.append(
                    CompressionResult(
                        dim,
                        str(precision),
                        True,
                        score,
                        _share(score, full_score),
                        size,
                        milliseconds,
                    )
                )
    return CompressionMatrix(tuple(cells), fitted)


def decoded(
    x: NDArray[np.float32], precision: str, ranges: Int8Ranges | None
) -> NDArray[np.float32]:
    """Return what is left of (n, dim) vectors after storing them at a precision.

    Binary leaves the signs, whose cosine orders pairs as Hamming distance does.

    Raises:
        BadInput: If the precision is unknown, or int8 has no ranges.
    """
    bytes_per_vector(x.shape[1], precision)
    match precision:
        case Precision.FLOAT16:
            return x.astype(np.float16).astype(np.float32)
        case Precision.INT8:
            if ranges is None:
                raise BadInput("int8 needs ranges; fit them on documents")
            return ranges.decode(ranges.encode(x))
        case Precision.BINARY:
            return unpack_bits(pack_bits(x), x.shape[1]).astype(np.float32)
    return x


def mean_cells(matrices: Sequence[Sequence[CompressionResult]]) -> tuple[CompressionResult, ...]:
    """Average the settings that all sets have, in the order of the first; sets count equally."""
    by_setting = [
        {(cell.dim, cell.precision, cell.rescored): cell for cell in cells} for cells in matrices
    ]
    result = []
    for setting, first in by_setting[0].items() if by_setting else ():
        if not all(setting in cells for cells in by_setting):
            continue
        same = [cells[setting] for cells in by_setting]
        times = [cell.query_ms for cell in same if cell.query_ms is not None]
        score, retention = (
            float(np.mean([getattr(cell, field) for cell in same])) for field in ("score", "kept")
        )
        result.append(
            replace(
                first,
                score=score,
                kept=retention,
                query_ms=float(np.mean(times)) if times else None,
            )
        )
    return tuple(result)


def cheapest(cells: Sequence[CompressionResult], share: float) -> CompressionResult | None:
    """Return the setting of fewest bytes that keeps a share of the uncompressed score, or None.

    Of equal sizes one without rescoring comes first, then the better one.
    """
    good = [cell for cell in cells if cell.kept >= share]
    return min(good, key=lambda cell: (cell.bytes, cell.rescored, -cell.kept), default=None)


def verdict(cells: Sequence[CompressionResult]) -> str:
    """Say in sentences which settings are the cheapest that keep 99, 97 and 95 % of the score."""
    largest = max(cell.bytes for cell in cells)
    result: dict[CompressionResult | None, list[str]] = {}
    for share in TARGETS:
        result.setdefault(cheapest(cells, share), []).append(f"{100 * share:.0f} %")
    sentences = []
    for cell, shares in result.items():
        requested = " or ".join(shares)
        if cell is None:
            sentences.append(f"No setting keeps {requested} of the score.")
        else:
            smaller = f", {largest / cell.bytes:.0f} times smaller" if cell.bytes < largest else ""
            size = f"{cell.bytes} byte{'s' * (cell.bytes != 1)} a vector{smaller}"
            sentences.append(
                f"To keep {requested} of the score: {cell.label()} ({size}; keeps"
                f" {100 * cell.kept:.1f} %)."
            )
    return " ".join(sentences)


def _plain(
    name: str,
    task: EvaluationTask[Any],
    data: SetData,
    cut: EncodedSet,
    precision: str,
    ranges: Int8Ranges,
    side_offsets: SideOffsets,
) -> tuple[float, float | None]:
    if precision == Precision.BINARY:
        cut = replace(
            cut, sides={side: _signed(x, side_offsets[side]) for side, x in cut.sides.items()}
        )
    if not isinstance(data, RankingData) or data.candidates is not None:
        sides = {side: decoded(x, precision, ranges) for side, x in cut.sides.items()}
        return task.score(data, sides).score, None
    queries, documents = cut.sides["queries"], cut.sides["documents"]
    if precision == Precision.BINARY:
        bits = pack_bits(documents)
        score = float(ndcg_by_query_of_bits(data, pack_bits(queries), bits).mean())
        return score, _timed(pack_bits(queries), lambda some: _nearest_bits(some, bits, _CUTOFF))
    queries = normalize(decoded(queries, precision, ranges))
    score = float(ndcg_by_query(data, queries, decoded(documents, precision, ranges)).mean())
    stored = _stored(documents, precision, ranges)
    return score, _timed(
        queries, lambda some: top_documents(some, _loaded(stored, ranges), _CUTOFF)
    )


def _side_offsets(
    task: EvaluationTask[Any], cut: EncodedSet, dim: int, offsets: Offsets
) -> SideOffsets:
    return {
        side: offsets.get(task.query_role if side == "queries" else Role.DOCUMENT, {}).get(dim)
        for side in cut.sides
    }


def _signed(x: NDArray[np.float32], offset: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return x if offset is None else x - offset


def _rescored(
    data: RankingData,
    cut: EncodedSet,
    precision: str,
    ranges: Int8Ranges,
    side_offsets: SideOffsets,
) -> tuple[float, float]:
    queries, documents = cut.sides["queries"], cut.sides["documents"]
    codes, bits = ranges.encode(documents), pack_bits(_signed(documents, side_offsets["documents"]))

    def search(some: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if precision == Precision.BINARY:
            places, _ = _nearest_bits(
                pack_bits(_signed(some, side_offsets["queries"])), bits, _CUTOFF * OVERSAMPLE
            )
        else:
            near = normalize(ranges.decode(ranges.encode(some)))
            places, _ = top_documents(near, normalize(ranges.decode(codes)), _CUTOFF * OVERSAMPLE)
        scores = np.empty(places.shape, np.float32)
        for i, row in enumerate(places):
            scores[i] = normalize(ranges.decode(codes[row])) @ some[i]
        return places, scores

    places, scores = search(queries)
    return score_ranking(data, named_ranking(data, places, scores)).score, _timed(queries, search)


def _share(score: float, full_score: float) -> float:
    return score / full_score if full_score > 0 else 0.0


def _nearest_bits(
    queries: NDArray[np.uint8], documents: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    k = min(k, len(documents))
    places, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for i in range(0, len(queries), _BATCH):
        distances = hamming(queries[i : i + _BATCH], documents)
        keep = np.argpartition(distances, k - 1, axis=1)[:, :k]
        places[i : i + _BATCH], scores[i : i + _BATCH] = (
            keep,
            -np.take_along_axis(distances, keep, 1),
        )
    return places, scores


def _stored(x: NDArray[np.float32], precision: str, ranges: Int8Ranges) -> NDArray[Any]:
    if precision == Precision.INT8:
        return ranges.encode(x)
    return x.astype(np.float16) if precision == Precision.FLOAT16 else x


def _loaded(stored: NDArray[Any], ranges: Int8Ranges) -> NDArray[np.float32]:
    return (
        ranges.decode(stored) if stored.dtype == np.int8 else stored.astype(np.float32, copy=False)
    )


def _timed(queries: NDArray[Any], search: Any) -> float:
    """Return milliseconds a query: the best of three, so that other processes count least."""
    some = queries[:_BATCH]
    search(some)
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        search(some)
        spent.append(time.perf_counter() - start)
    return 1000 * min(spent) / len(some)
