"""What smaller vectors cost in quality: every dimension and precision, from the same vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.encode import EncodedSet
from taskdistill.evaluate.exact_search import (
    Number,
    named_ranking,
    ndcg_by_query,
    ndcg_by_query_of_bits,
    top_documents,
)
from taskdistill.evaluate.rankings import score_ranking
from taskdistill.evaluate.records import CompressionRow
from taskdistill.evaluate.set_data import RankingData, SetData
from taskdistill.evaluate.task_type import AnyTask, Vectors
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


@dataclass(frozen=True, kw_only=True)
class CompressionResult:
    """One way to store vectors: its score and share of the uncompressed score, size and speed."""

    dim: int
    precision: str
    rescored: bool
    score: float
    retention: float
    bytes: int
    query_ms: float | None

    def label(self) -> str:
        """Return the setting in words, such as `256 dimensions, binary, rescored`."""
        return f"{self.dim} dimensions, {self.precision}" + (", rescored" if self.rescored else "")

    def to_json(self) -> CompressionRow:
        """Return plain data, in which `kept` is the retention."""
        return {
            "dim": self.dim,
            "precision": self.precision,
            "rescored": self.rescored,
            "score": self.score,
            "bytes": self.bytes,
            "query_ms": self.query_ms,
            "kept": self.retention,
        }

    @classmethod
    def from_json(cls, row: CompressionRow) -> CompressionResult:
        """Read what `to_json` returned."""
        return cls(
            dim=row["dim"],
            precision=row["precision"],
            rescored=row["rescored"],
            score=row["score"],
            retention=row["kept"],
            bytes=row["bytes"],
            query_ms=row["query_ms"],
        )


@dataclass(frozen=True, eq=False)
class CompressionMatrix:
    """Cells by dimension (largest first) and precision, and the int8 ranges that were used."""

    cells: tuple[CompressionResult, ...]
    ranges: Mapping[int, Int8Ranges]


def compression_matrix(
    task: AnyTask,
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
    for each dimension, on documents, and used for both sides. `retention` is relative to all
    dimensions in float32. `ranges`: int8 ranges by dimension where the model stores some; others
    are fitted here. `offsets`: what the model takes from vectors before their signs; None takes
    nothing. Raises BadInput if a dimension is larger than the vectors, or a precision is unknown.
    """
    full_score = task.score(data, encoded.sides).score
    if too_large := [dim for dim in dims if dim > encoded.dim]:
        raise BadInput(
            f"dimensions {too_large} exceed the {encoded.dim} of these vectors; leave them out"
        )
    fitted: dict[int, Int8Ranges] = dict(ranges or {})
    searched = data if isinstance(data, RankingData) and data.candidates is None else None
    cells = []
    for dim in sorted(set(dims), reverse=True):
        sides = {side: truncate(x, dim) for side, x in encoded.sides.items() if len(x)}
        if dim not in fitted:
            fitted[dim] = Int8Ranges.fit(
                next(sides[each] for each in _CALIBRATION if each in sides)
            )
        vectors = _Truncated(sides, fitted[dim], _side_offsets(task, sides, dim, offsets or {}))
        for precision in precisions:
            size = bytes_per_vector(dim, precision)
            measured = [(False, size, _plain(task, data, vectors, precision))]
            if rescore and precision in RESCORED and searched is not None:
                # Rescoring reads int8 documents, which binary has to store too.
                size += bytes_per_vector(dim, Precision.INT8) * (precision == Precision.BINARY)
                measured.append((True, size, _rescored(searched, vectors, precision)))
            cells += [
                CompressionResult(
                    dim=dim,
                    precision=str(precision),
                    rescored=rescored,
                    score=score,
                    retention=score / full_score if full_score > 0 else 0.0,
                    bytes=size,
                    query_ms=milliseconds,
                )
                for rescored, size, (score, milliseconds) in measured
            ]
    return CompressionMatrix(tuple(cells), fitted)


def decoded(
    x: NDArray[np.float32], precision: str, ranges: Int8Ranges | None
) -> NDArray[np.float32]:
    """Return what is left of (n, dim) vectors after storing them at a precision.

    Binary leaves the signs, whose cosine orders pairs as Hamming distance does. Raises BadInput if
    the precision is unknown, or int8 has no ranges.
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
            float(np.mean([getattr(cell, field) for cell in same]))
            for field in ("score", "retention")
        )
        result.append(
            replace(
                first,
                score=score,
                retention=retention,
                query_ms=float(np.mean(times)) if times else None,
            )
        )
    return tuple(result)


def cheapest(cells: Sequence[CompressionResult], share: float) -> CompressionResult | None:
    """Return the setting of fewest bytes that keeps a share of the uncompressed score, or None.

    Of equal sizes one without rescoring comes first, then the better one.
    """
    good = [cell for cell in cells if cell.retention >= share]
    return min(good, key=lambda cell: (cell.bytes, cell.rescored, -cell.retention), default=None)


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
                f" {100 * cell.retention:.1f} %)."
            )
    return " ".join(sentences)


@dataclass(frozen=True, eq=False)
class _Truncated:
    """Vectors of one dimension, and what turns them into codes."""

    sides: Vectors
    ranges: Int8Ranges
    offsets: SideOffsets

    def bits(self, side: str, x: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Pack the signs of a side, or of some of its vectors, around the model's offset."""
        offset, x = self.offsets[side], self.sides[side] if x is None else x
        return pack_bits(x if offset is None else x - offset)


def _side_offsets(task: AnyTask, sides: Vectors, dim: int, offsets: Offsets) -> SideOffsets:
    roles = {side: task.query_role if side == "queries" else Role.DOCUMENT for side in sides}
    return {side: offsets.get(role, {}).get(dim) for side, role in roles.items()}


def _plain(
    task: AnyTask, data: SetData, vectors: _Truncated, precision: str
) -> tuple[float, float | None]:
    """Return the score of what is stored, and milliseconds a query where a corpus is searched."""
    sides, ranges = vectors.sides, vectors.ranges
    binary = precision == Precision.BINARY
    if not isinstance(data, RankingData) or data.candidates is not None:
        stored = {
            side: (
                unpack_bits(vectors.bits(side), x.shape[1]).astype(np.float32)
                if binary
                else decoded(x, precision, ranges)
            )
            for side, x in sides.items()
        }
        return task.score(data, stored).score, None
    if binary:
        query_bits, bits = vectors.bits("queries"), vectors.bits("documents")
        score = float(ndcg_by_query_of_bits(data, query_bits, bits).mean())
        return score, _timed(query_bits, lambda some: _nearest_bits(some, bits, _CUTOFF))
    queries = normalize(decoded(sides["queries"], precision, ranges))
    documents = decoded(sides["documents"], precision, ranges)
    codes = _stored(sides["documents"], precision, ranges)
    score = float(ndcg_by_query(data, queries, documents).mean())
    return score, _timed(queries, lambda some: top_documents(some, _loaded(codes, ranges), _CUTOFF))


def _rescored(data: RankingData, vectors: _Truncated, precision: str) -> tuple[float, float]:
    queries, documents, ranges = (
        vectors.sides["queries"],
        vectors.sides["documents"],
        vectors.ranges,
    )
    codes, bits = ranges.encode(documents), vectors.bits("documents")

    def search(some: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if precision == Precision.BINARY:
            places, _ = _nearest_bits(vectors.bits("queries", some), bits, _CUTOFF * OVERSAMPLE)
        else:
            near = normalize(ranges.decode(ranges.encode(some)))
            places, _ = top_documents(near, normalize(ranges.decode(codes)), _CUTOFF * OVERSAMPLE)
        scores = np.empty(places.shape, np.float32)
        for i, row in enumerate(places):
            scores[i] = normalize(ranges.decode(codes[row])) @ some[i]
        return places, scores

    ranking = named_ranking(data, *search(queries))
    return score_ranking(data, ranking).score, _timed(queries, search)


def _nearest_bits(
    queries: NDArray[np.uint8], documents: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    k = min(k, len(documents))
    places, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for i in range(0, len(queries), _BATCH):
        distances = hamming(queries[i : i + _BATCH], documents)
        nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
        places[i : i + _BATCH] = nearest
        scores[i : i + _BATCH] = -np.take_along_axis(distances, nearest, 1)
    return places, scores


def _stored(x: NDArray[np.float32], precision: str, ranges: Int8Ranges) -> NDArray[np.generic]:
    if precision == Precision.INT8:
        return ranges.encode(x)
    return x.astype(np.float16) if precision == Precision.FLOAT16 else x


def _loaded(stored: NDArray[np.generic], ranges: Int8Ranges) -> NDArray[np.float32]:
    if stored.dtype == np.int8:
        return ranges.decode(np.asarray(stored, np.int8))
    return stored.astype(np.float32, copy=False)


def _timed(queries: NDArray[Number], search: Callable[[NDArray[Number]], object]) -> float:
    """Return milliseconds a query: the best of three, so that other processes count least."""
    some = queries[:_BATCH]
    search(some)
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        search(some)
        spent.append(time.perf_counter() - start)
    return 1000 * min(spent) / len(some)
