"""Metadata as a table of values, and the documents that meet conditions: equality, ranges and membership, joined by "and".

A value equals another if their texts are the same: 2020 and "2020", true and "true". A list equals each of its elements.
A range with a number compares numbers (also those given as text, as CSV does); a range with other text compares texts,
which orders ISO dates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from taskdistill.search.filters import Condition, Scalar

ENTRIES = pa.schema(
    [
        ("document", pa.int64()),
        ("key", pa.string()),
        ("text", pa.large_string()),
        ("number", pa.float64()),
    ]
)
_LONGEST_NUMBER = 40
"""Characters of a text that is read as a number."""
_RANGES = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


def entries_of(metadata: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Turn metadata into a table with one row a value.

    Args:
        metadata: One mapping a document; objects inside it have no rows and cannot be filtered by.

    Returns:
        Columns document, key, text, number (null where the value is none).
    """
    rows = [
        (document, key, _text(each), _number(each))
        for document, values in enumerate(metadata)
        for key, value in values.items()
        for each in (value if isinstance(value, list | tuple) else [value])
        if isinstance(each, str | int | float)
    ]
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return pa.record_batch(
        [pa.array(column, each.type) for column, each in zip(columns, ENTRIES, strict=True)],
        schema=ENTRIES,
    )


def renumbered(entries: pa.RecordBatch, documents: NDArray[np.int64]) -> pa.RecordBatch:
    """Return entries with other document numbers.

    Args:
        entries: What `entries_of` returned.
        documents: New document number of each row.

    Returns:
        The entries.
    """
    return pa.record_batch([pa.array(documents, pa.int64()), *entries.columns[1:]], schema=ENTRIES)


def matching(
    entries: pa.Table, documents: int, conditions: Sequence[Condition]
) -> NDArray[np.bool_]:
    """Find the documents for which every condition holds.

    Args:
        entries: All entries of a segment.
        documents: Its number of documents.
        conditions: What `filters.parse_filter` returned.

    Returns:
        (documents,) True where all hold.
    """
    found = np.ones(documents, dtype=bool)
    for condition in conditions:
        held = np.zeros(documents, dtype=bool)
        values = entries.filter(pc.equal(entries["key"], condition.key))
        held[values.filter(_holds(values, condition))["document"].to_numpy()] = True
        found &= held
    return found


def keys_of(entries: pa.Table) -> set[str]:
    """Return the keys that occur.

    Args:
        entries: All entries of a segment.

    Returns:
        The keys.
    """
    return set(pc.unique(entries["key"]).to_pylist())


def _holds(values: pa.Table, condition: Condition) -> Any:
    if condition.operator == "in":
        return pc.is_in(
            values["text"],
            value_set=pa.array([_text(each) for each in condition.values], pa.large_string()),
        )
    compare, bound = _RANGES[condition.operator], condition.values[0]
    number = _number(bound)
    if number is not None:
        return compare(values["number"], number)
    return pc.and_(
        pc.is_null(values["number"]),
        compare(values["text"], pa.scalar(_text(bound), pa.large_string())),
    )


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _number(value: Scalar) -> float | None:
    if isinstance(value, bool) or (isinstance(value, str) and not _is_numeral(value)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < float("inf") else None


def _is_numeral(text: str) -> bool:
    """Say whether a text is a number with digits before and behind its point, as `-1`, `2.50` or `1e-3`."""
    if len(text) > _LONGEST_NUMBER:
        return False
    mantissa, power, exponent = text.replace("E", "e").partition("e")
    whole, point, fraction = mantissa.removeprefix("-").partition(".")
    digits = exponent[1:] if exponent[:1] in ("+", "-") else exponent
    return (
        whole.isdecimal()
        and (not point or fraction.isdecimal())
        and (not power or digits.isdecimal())
    )
