"""Metadata as a table of values, and filters over it: equality, ranges and membership, joined by "and".

A value equals another if their texts are the same: 2020 and "2020", true and "true". A list equals each of its elements.
A range with a number compares numbers (also those given as text, as CSV does); a range with other text compares texts,
which orders ISO dates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from taskdistill.errors import BadInput

ENTRIES = pa.schema([("document", pa.int64()), ("key", pa.string()), ("text", pa.large_string()), ("number", pa.float64())])
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_EXPRESSION = re.compile(r"\s*(?P<key>[^=<>]+?)\s*(?P<operator>>=|<=|=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)
_MEMBERSHIP = re.compile(r"\s*(?P<key>[^=<>]+?)\s+in\s+(?P<values>[^=<>]+)")
_RANGES = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}

Filter = Mapping[str, Any] | Sequence[str] | str
"""`{"lang": "en", "year": {">=": 2020}, "tag": ["a", "b"]}`, or `["lang=en", "year>=2020", "tag in a, b"]`."""


@dataclass(frozen=True)
class Condition:
    """One condition on the value of a key: `operator` is `in` or a comparison with the only value."""

    key: str
    operator: str
    values: tuple[str | int | float | bool, ...]


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
    return pa.record_batch([pa.array(column, each.type) for column, each in zip(columns, ENTRIES, strict=True)], schema=ENTRIES)


def renumbered(entries: pa.RecordBatch, documents: NDArray[np.int64]) -> pa.RecordBatch:
    """Return entries with other document numbers.

    Args:
        entries: What `entries_of` returned.
        documents: New document number of each row.

    Returns:
        The entries.
    """
    return pa.record_batch([pa.array(documents, pa.int64()), *entries.columns[1:]], schema=ENTRIES)


def parse_filter(given: Filter | None) -> tuple[Condition, ...]:
    """Read a filter.

    Args:
        given: A mapping, expressions, one expression, or None.

    Returns:
        Conditions that all must hold.

    Raises:
        BadInput: If an expression or operator is not understood.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        return (_expression(given),)
    if isinstance(given, Mapping):
        return tuple(condition for key, value in given.items() for condition in _conditions(key, value))
    return tuple(_expression(each) for each in given)


def matching(entries: pa.Table, documents: int, conditions: Sequence[Condition]) -> NDArray[np.bool_]:
    """Find the documents for which every condition holds.

    Args:
        entries: All entries of a segment.
        documents: Its number of documents.
        conditions: What `parse_filter` returned.

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
        return pc.is_in(values["text"], value_set=pa.array([_text(each) for each in condition.values], pa.large_string()))
    compare, bound = _RANGES[condition.operator], condition.values[0]
    number = _number(bound)
    if number is not None:
        return compare(values["number"], number)
    return pc.and_(pc.is_null(values["number"]), compare(values["text"], pa.scalar(_text(bound), pa.large_string())))


def _expression(text: str) -> Condition:
    if match := _EXPRESSION.fullmatch(text):
        operator = "in" if match["operator"] == "=" else match["operator"]
        return Condition(match["key"], operator, (match["value"],))
    if match := _MEMBERSHIP.fullmatch(text):
        return Condition(match["key"], "in", tuple(each.strip() for each in match["values"].split(",")))
    raise BadInput(f"the filter {text!r} is not understood; write key=value, key>=value (or <=, <, >) or `key in a, b`")


def _conditions(key: str, value: Any) -> list[Condition]:
    if isinstance(value, Mapping):
        unknown = [operator for operator in value if operator not in _RANGES]
        if unknown or not value:
            raise BadInput(f"the filter on {key!r} has the operator {unknown[:1]}; known: {', '.join(_RANGES)}")
        return [Condition(key, operator, _scalars(key, [bound])) for operator, bound in value.items()]
    return [Condition(key, "in", _scalars(key, list(value) if isinstance(value, list | tuple | set) else [value]))]


def _scalars(key: str, values: list[Any]) -> tuple[str | int | float | bool, ...]:
    for value in values:
        if not isinstance(value, str | int | float):
            raise BadInput(f"the filter on {key!r} compares with {type(value).__name__}; give text, a number or true/false")
    return tuple(values)


def _text(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _number(value: str | int | float | bool) -> float | None:
    if isinstance(value, bool) or (isinstance(value, str) and (len(value) > 40 or not _NUMBER.fullmatch(value))):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < float("inf") else None
