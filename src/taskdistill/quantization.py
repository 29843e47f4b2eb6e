"""Smaller vectors: truncation, unit length, int8 codes, packed sign bits and Hamming distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.types import Precision

_ROWS = 16_384
"""Rows worked on at a time where an intermediate is wider than the result."""

_HAMMING_BYTES = 32 << 20
"""Largest intermediate of `hamming`."""


def normalize(x: NDArray[Any]) -> NDArray[np.float32]:
    """Scale every row to length one; a row of zeros stays zero.

    Lengths are computed in float64, so rows whose squares leave the range of float32 come out
    right. Raises BadInput if `x` is not a matrix or holds NaN or infinity.
    """
    x = _matrix(x)
    unit = np.empty(x.shape, dtype=np.float32)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        unit[start : start + _ROWS] = np.divide(
            rows, length, out=np.zeros_like(rows), where=length > 0
        )
    return unit


def truncate(x: NDArray[Any], dim: int) -> NDArray[np.float32]:
    """Take the first `dim` numbers of every row and scale them to length one (section 11.2).

    Raises BadInput if `dim` is outside 1..width, or `x` is not a finite matrix.
    """
    x = _matrix(x)
    if not 1 <= dim <= x.shape[1]:
        raise BadInput(
            f"truncate_dim {dim} is outside 1..{x.shape[1]}, the dimensions of these vectors;"
            " give one within"
        )
    return normalize(x[:, :dim])


@dataclass(frozen=True, eq=False)
class Int8Ranges:
    """Smallest and largest value of each dimension, which turn numbers into int8 codes and back.

    Fit once on documents, store, and use for documents and queries alike: codes of different
    ranges do not compare.
    """

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]

    @classmethod
    def fit(cls, x: NDArray[Any], quantile: float | None = None) -> Int8Ranges:
        """Find the ranges of (n, dim) vectors, n at least 1.

        `quantile`: share of values cut off at either end of each dimension, in [0, 0.5); None cuts
        nothing. Raises BadInput if there are no rows, they are not finite, or the quantile is out
        of range.
        """
        x = _matrix(x)
        if len(x) == 0:
            raise BadInput("int8 ranges cannot be fitted on no vectors; give at least one")
        if quantile is None:
            return cls(x.min(axis=0).astype(np.float32), x.max(axis=0).astype(np.float32))
        if not 0 <= quantile < 0.5:
            raise BadInput(
                f"the quantile of int8 ranges is {quantile}; it must be at least 0 and below 0.5"
            )
        low, high = np.quantile(x, [quantile, 1 - quantile], axis=0)
        return cls(low.astype(np.float32), high.astype(np.float32))

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.minimum)

    def encode(self, x: NDArray[Any]) -> NDArray[np.int8]:
        """Round every number to one of 256 steps of its range; numbers outside saturate.

        Raises BadInput if `x` is not a finite matrix of this many dimensions.
        """
        x = _matrix(x)
        self._check_dim(x.shape[1])
        codes = np.empty(x.shape, dtype=np.int8)
        step = self._step()
        for start in range(0, len(x), _ROWS):
            rows = x[start : start + _ROWS].astype(np.float64)
            codes[start : start + _ROWS] = np.clip(
                np.rint((rows - self.minimum) / step) - 128, -128, 127
            )
        return codes

    def decode(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Return the (n, dim) numbers that codes stand for, not scaled to length one.

        They lie within half a step of what was encoded from inside the range.
        """
        self._check_dim(codes.shape[-1])
        values = codes.astype(np.float32)
        values += 128
        values *= self._step().astype(np.float32)
        values += self.minimum
        return values

    def to_json(self) -> dict[str, list[float]]:
        """Return plain data that `from_json` reads back to the same float32 numbers."""
        return {"minimum": self.minimum.tolist(), "maximum": self.maximum.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Int8Ranges:
        """Read what `to_json` returned.

        Raises BadInput if the lists are missing, of different length, not finite, or a minimum
        exceeds its maximum.
        """
        try:
            ends = [np.asarray(value[key], dtype=np.float32) for key in ("minimum", "maximum")]
        except (KeyError, TypeError, ValueError):
            raise BadInput(
                "int8 ranges need two lists of numbers, `minimum` and `maximum`; fit and store"
                " them again"
            ) from None
        low, high = ends
        if (
            low.ndim != 1
            or low.shape != high.shape
            or len(low) == 0
            or not np.isfinite(ends).all()
            or (low > high).any()
        ):
            raise BadInput(
                "int8 ranges are damaged: lists of unequal length, or numbers out of order; fit"
                " and store them again"
            )
        return cls(low, high)

    def _step(self) -> NDArray[np.float64]:
        width = self.maximum.astype(np.float64) - self.minimum
        return np.where(width > 0, width / 255, 1.0)

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            raise BadInput(
                f"int8 ranges of {self.dim} dimensions cannot be used for vectors of {dim}; fit"
                " ranges for that dimension"
            )


def fit_ranges(
    x: NDArray[Any], dims: Sequence[int], quantile: float | None = None
) -> dict[int, Int8Ranges]:
    """Fit ranges for each truncation: cutting changes the length, so every prefix has its own."""
    return {dim: Int8Ranges.fit(truncate(x, dim), quantile) for dim in dims}


def ranges_to_json(ranges: Mapping[int, Int8Ranges]) -> dict[str, Any]:
    """Return ranges as plain data, under each dimension as text."""
    return {str(dim): each.to_json() for dim, each in sorted(ranges.items())}


def ranges_from_json(value: Mapping[str, Any]) -> dict[int, Int8Ranges]:
    """Read what `ranges_to_json` returned.

    Raises BadInput if a key is no dimension or differs from the length of its lists.
    """
    result = {}
    for key, entry in value.items():
        ranges = Int8Ranges.from_json(entry)
        if key != str(ranges.dim):
            raise BadInput(
                f"int8 ranges stored for dimension {key!r} have {ranges.dim} numbers; fit and"
                " store them again"
            )
        result[ranges.dim] = ranges
    return result


def pack_bits(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the sign of every number as (n, ceil(dim / 8)) bytes: a bit is set above zero.

    The most significant bit comes first; the last byte is filled with zero bits.
    """
    return np.packbits(_matrix(x) > 0, axis=1)


def unpack_bits(codes: NDArray[np.uint8], dim: int) -> NDArray[np.int8]:
    """Return the (n, dim) signs, 1 and -1, that packed bits stand for.

    Raises BadInput if `dim` does not fit the number of bytes.
    """
    if codes.ndim != 2 or (dim + 7) // 8 != codes.shape[1] or dim < 1:
        raise BadInput(
            f"{codes.shape} packed bytes cannot hold {dim} dimensions; give the dimension the"
            " vectors had when packed"
        )
    bits = np.unpackbits(codes, axis=1, count=dim).astype(np.int8)
    return bits * np.int8(2) - np.int8(1)


def hamming(queries: NDArray[np.uint8], documents: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Count the bits in which packed vectors differ: (q, n); memory beside it stays below 64 MB.

    Raises BadInput if the widths differ.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise BadInput(
            f"packed vectors of shapes {queries.shape} and {documents.shape} do not compare;"
            " pack both from the same dimension"
        )
    left, right = _words(queries), _words(documents)
    words = left.shape[1]
    distances = np.empty((len(left), len(right)), dtype=np.int32)
    columns = max(1, min(len(right), 8192))
    rows = max(1, _HAMMING_BYTES // (16 * columns))
    for i in range(0, len(left), rows):
        for j in range(0, len(right), columns):
            block = np.zeros((len(left[i : i + rows]), len(right[j : j + columns])), dtype=np.int32)
            for k in range(words):
                block += np.bitwise_count(
                    left[i : i + rows, k, None] ^ right[None, j : j + columns, k]
                )
            distances[i : i + rows, j : j + columns] = block
    return distances


def bytes_per_vector(dim: int, precision: str) -> int:
    """Return the stored bytes of one vector; ranges of int8 are stored once and not counted.

    Raises BadInput if the precision is unknown.
    """
    match precision:
        case Precision.FLOAT32:
            return 4 * dim
        case Precision.FLOAT16:
            return 2 * dim
        case Precision.INT8:
            return dim
        case Precision.BINARY:
            return (dim + 7) // 8
    raise BadInput(f"unknown precision {precision!r}{did_you_mean(precision, Precision)}")


def _matrix(x: NDArray[Any]) -> NDArray[Any]:
    x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise BadInput(
            f"vectors must be a matrix of numbers, (n, dim); got shape {x.shape} of {x.dtype}"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise BadInput(
            f"{len(rows)} of {len(x)} vectors hold NaN or infinity, the first at row {rows[0]};"
            " check the model that made them"
        )
    return x


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Pad rows with zero bytes to whole 64-bit words."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view(np.uint64)
