"""Metadata filters: conditions as a request writes them, and the documents that meet them.

    expression = condition { "and" condition }
    condition  = key ( "=" | "==" | ">=" | "<=" | ">" | "<" ) value  |  key "in" list
    list       = value { "," value }, bare or within [ ] or ( )
    value      = text within " " or ' ', or bare text

A key may be quoted as well. Bare text ends at the last `and` before the next operator; what could
be read in two ways has to be quoted. An expression is read by hand in one pass over a bounded text:
no regular expression runs over what a stranger sends.

A value equals another if their texts are the same: 2020 and "2020", true and "true". A list equals
each of its elements. A range with a number compares numbers (also those given as text, as CSV
does); a range with other text compares texts, which orders ISO dates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from taskdistill.errors import BadInput

MAX_CHARACTERS = 1_000
"""Longest expression, key or text to compare with."""

MAX_CONDITIONS = 32
MAX_VALUES = 10_000
"""Most values that all conditions of a filter compare with."""

MAX_NUMERAL = 40
"""Characters of a text that is read as a number."""

Scalar = str | int | float | bool

Filter = Mapping[str, Any] | Sequence[str] | str
"""`{"year": {">=": 2020}, "tag": ["a", "b"]}`, `["lang=en", "tag in a, b"]` or `"a=b and i>=2"`."""

ENTRIES = pa.schema(
    [
        ("document", pa.int64()),
        ("key", pa.string()),
        ("text", pa.large_string()),
        ("number", pa.float64()),
    ]
)
"""One row a metadata value; the number is null where the value is none."""

_RANGES = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
_OPERATORS = ("!=", "==", ">=", "<=", "=", ">", "<")
"""Two characters before one, so that the longer one is matched first."""
_SPACES = dict.fromkeys(map(ord, "\t\n\v\f\r"), " ")
_WORDS = (" in ", " in[", " in(")
_QUOTES = ("'", '"')
_CLOSING = {"[": "]", "(": ")"}
_FORMS = "write key=value, key>=value (or <=, <, >) or `key in a, b`, joined by `and`"


@dataclass(frozen=True)
class Condition:
    """One condition on the value of a key: `operator` is `in`, or compares with the only value."""

    key: str
    operator: str
    values: tuple[Scalar, ...]


def parse_filter(value: Filter | None) -> tuple[Condition, ...]:
    """Read a filter into conditions that all must hold.

    Raises BadInput if an expression or operator is not understood, or a limit above is exceeded.
    """
    if value is None:
        return ()
    if isinstance(value, Mapping):
        _check_count(len(value), MAX_CONDITIONS, "conditions")
        conditions = [each for key, test in value.items() for each in _key_conditions(key, test)]
    else:
        expressions = [value] if isinstance(value, str) else value
        _check_count(len(expressions), MAX_CONDITIONS, "conditions")
        conditions = [each for text in expressions for each in parse_expression(text)]
    _check_count(len(conditions), MAX_CONDITIONS, "conditions")
    _check_count(sum(len(condition.values) for condition in conditions), MAX_VALUES, "values")
    return tuple(conditions)


def parse_expression(text: str) -> list[Condition]:
    """Read conditions that are joined by `and`."""
    if not isinstance(text, str):
        raise BadInput(
            f"a filter is a text or an object of conditions, not {type(text).__name__}; {_FORMS}"
        )
    _check_length(text, "the filter")
    return _Expression(text).conditions()


class _Expression:
    """One expression and how far it is read; every place is looked at a bounded number of times."""

    def __init__(self, text: str) -> None:
        self._text = text
        # Character for character: every white space as a blank, the words in small letters.
        self._spaced = text.translate(_SPACES).replace(" AND ", " and ").replace(" IN", " in")
        # Places of operators, those within values included; the cursor only ever moves on.
        self._operators = [at for at in range(len(text)) if self._begins_operator(at)]
        self._cursor = 0
        self._at = 0

    def conditions(self) -> list[Condition]:
        conditions = [self._condition()]
        while self._at < len(self._text):
            conditions.append(self._condition())
        return conditions

    def _begins_operator(self, at: int) -> bool:
        return (
            self._text[at] in "=<>"
            or self._text.startswith("!=", at)
            or self._spaced.startswith(_WORDS, at)
        )

    def _condition(self) -> Condition:
        key = self._key()
        symbols = (symbol for symbol in _OPERATORS if self._text.startswith(symbol, self._at))
        operator = next(symbols, "in")
        self._at += len(operator)
        values = self._list() if operator == "in" else [self._value(operator)]
        self._join()
        return Condition(key, "in" if operator in ("=", "==") else operator, tuple(values))

    def _key(self) -> str:
        self._skip()
        if self._peek() in _QUOTES:
            key = self._quoted()
            self._skip()
            if not self._text.startswith(_OPERATORS, self._at) and not self._spaced.startswith(
                _WORDS, self._at - 1
            ):
                raise self._wrong(f"no operator follows the key {key[:60]!r}")
        else:
            end = self._operator_from(self._at)
            if end is None:
                raise self._wrong(f"it is not understood; {_FORMS}")
            key = self._text[self._at : end].strip()
            self._at = end + 1 if self._spaced[end] == " " else end
            if key[:4].lower() in ("not ", "not\t"):
                raise self._wrong(
                    "`not` is not known; name the values that are wanted: key in a, b (quote the "
                    "key if it is one)"
                )
        if not key.strip():
            raise self._wrong(f"a key is missing before character {self._at + 1}; {_FORMS}")
        return key

    def _value(self, operator: str) -> str:
        if operator == "!=":
            raise self._wrong("`!=` is not known; name the values that are wanted: key in a, b")
        self._skip()
        first = self._peek()
        if first in _QUOTES:
            return self._quoted()
        if first and first in "=<>":
            raise self._wrong(
                f"the value after {operator!r} begins with {first!r}; put it in quotes if it is "
                "meant so"
            )
        if first in _CLOSING:
            raise self._wrong(
                "a list goes with `in`, as in: key in [a, b]; put the value in quotes if it is "
                "meant so"
            )
        end = self._end_of_bare()
        value, spaced = self._text[self._at : end], self._spaced[self._at : end]
        last = max(value.rfind(symbol) for symbol in "=<>")
        for joint in (",", " or ", " OR ", ";", "&&", "||"):
            if 0 <= spaced.find(joint) < last:
                raise self._wrong(
                    f"conditions are joined by `and`, not by {joint.strip()!r}; put the value in "
                    "quotes if it is meant so"
                )
        self._at = end
        return value.strip()

    def _list(self) -> list[str]:
        self._skip()
        closing = _CLOSING.get(self._peek(), "")
        if closing:
            self._at += 1
        end = len(self._text) if closing else -1
        values = []
        while True:
            self._skip()
            if self._peek() in _QUOTES:
                values.append(self._quoted())
                self._skip()
            else:
                end = end if self._at < end else self._end_of_bare()
                values.append(self._item(end, closing))
            if not self._text.startswith(",", self._at):
                break
            self._at += 1
        if closing:
            if self._peek() != closing:
                raise self._wrong(f"the list is not closed by {closing!r}")
            self._at += 1
        return values

    def _item(self, end: int, closing: str) -> str:
        start = self._at
        while self._at < end and self._text[self._at] not in (",", closing):
            self._at += 1
        value = self._text[start : self._at].strip()
        if not value or any(symbol in value for symbol in "=<>[]()\"'"):
            raise self._wrong(
                f"the list holds {value[:60]!r}; put a value in quotes that is empty or has one of "
                "= < > [ ] ( ) or a quote"
            )
        return value

    def _quoted(self) -> str:
        end = self._text.find(self._text[self._at], self._at + 1)
        if end < 0:
            raise self._wrong(f"the quote at character {self._at + 1} is not closed")
        value = self._text[self._at + 1 : end]
        self._at = end + 1
        return value

    def _operator_from(self, place: int) -> int | None:
        while self._cursor < len(self._operators) and self._operators[self._cursor] < place:
            self._cursor += 1
        return self._operators[self._cursor] if self._cursor < len(self._operators) else None

    def _end_of_bare(self) -> int:
        """Return the place of the `and` that stands last before the next operator, or the end."""
        self._operator_from(self._at)
        start = self._at
        for number in range(self._cursor, len(self._operators)):
            operator = self._operators[number]
            place = self._spaced.rfind(" and ", start, operator)
            if place >= 0:
                return place
            start = max(start, operator - len(" and"))
        return len(self._text)

    def _join(self) -> None:
        """Go behind the `and` that follows a condition."""
        self._skip()
        if self._at == len(self._text):
            return
        if self._spaced[self._at : self._at + 4].lower() != "and ":
            raise self._wrong(
                f"{self._text[self._at : self._at + 20]!r} is not understood behind a value; "
                "conditions are joined by `and`"
            )
        self._at += len("and ")
        self._skip()
        if self._at == len(self._text):
            raise self._wrong("no condition follows the last `and`")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self) -> None:
        while self._at < len(self._text) and self._spaced[self._at] == " ":
            self._at += 1

    def _wrong(self, why: str) -> BadInput:
        return BadInput(f"the filter {self._text[:100]!r}: {why}")


def _key_conditions(key: str, value: Any) -> list[Condition]:
    _check_length(key, "a key of the filter")
    if isinstance(value, Mapping):
        unknown = [operator for operator in value if operator not in _RANGES]
        if unknown or not value:
            raise BadInput(
                f"the filter on {key!r} has the operator {str(unknown[:1])[:60]}; known: "
                f"{', '.join(_RANGES)}"
            )
        return [
            Condition(key, operator, _scalars(key, [bound])) for operator, bound in value.items()
        ]
    values = list(value) if isinstance(value, list | tuple | set) else [value]
    return [Condition(key, "in", _scalars(key, values))]


def _scalars(key: str, values: list[Any]) -> tuple[Scalar, ...]:
    _check_count(len(values), MAX_VALUES, "values")
    for value in values:
        if not isinstance(value, str | int | float):
            raise BadInput(
                f"the filter on {key!r} compares with {type(value).__name__}; give text, a number "
                "or true/false"
            )
        if isinstance(value, str):
            _check_length(value, f"a value of the filter on {key!r}")
        elif isinstance(value, int) and value.bit_length() > MAX_CHARACTERS:
            raise BadInput(
                f"the filter on {key!r} compares with a number of {value.bit_length()} bits; give "
                "a smaller one"
            )
    return tuple(values)


def _check_length(text: str, name: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise BadInput(
            f"{name} has {len(text):,} characters, the most are {MAX_CHARACTERS:,}; give a shorter "
            "one"
        )


def _check_count(count: int, limit: int, noun: str) -> None:
    if count > limit:
        raise BadInput(f"the filter has {count:,} {noun}, the most are {limit:,}; ask for fewer")


def metadata_entries(metadata: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Turn the metadata of documents into `ENTRIES`; objects inside it cannot be filtered by."""
    rows = [
        (document, key, _text(value), _number(value))
        for document, values in enumerate(metadata)
        for key, items in values.items()
        for value in (items if isinstance(items, list | tuple) else [items])
        if isinstance(value, str | int | float)
    ]
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, ENTRIES, strict=True)],
        schema=ENTRIES,
    )


def matching_documents(
    entries: pa.Table, documents: int, conditions: Sequence[Condition]
) -> NDArray[np.bool_]:
    """Return `(documents,)` True where every condition holds."""
    matching = np.ones(documents, dtype=bool)
    for condition in conditions:
        holds = np.zeros(documents, dtype=bool)
        values = entries.filter(pc.equal(entries["key"], condition.key))
        holds[values.filter(_holds(values, condition))["document"].to_numpy()] = True
        matching &= holds
    return matching


def _holds(values: pa.Table, condition: Condition) -> pa.Array:
    if condition.operator == "in":
        texts = pa.array([_text(value) for value in condition.values], pa.large_string())
        return pc.is_in(values["text"], value_set=texts)
    compare, bound = _RANGES[condition.operator], condition.values[0]
    number = _number(bound)
    if number is not None:
        return compare(values["number"], number)
    text = pa.scalar(_text(bound), pa.large_string())
    return pc.and_(pc.is_null(values["number"]), compare(values["text"], text))


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # 2020.0 of a CSV equals 2020 of a request, as far as a float can hold whole numbers.
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
    """Whether a text is a number with digits before and behind its point: `-1`, `2.50`, `1e-3`."""
    if len(text) > MAX_NUMERAL:
        return False
    mantissa, power, exponent = text.replace("E", "e").partition("e")
    integer, point, fraction = mantissa.removeprefix("-").partition(".")
    digits = exponent[1:] if exponent[:1] in ("+", "-") else exponent
    return (
        integer.isdecimal()
        and (not point or fraction.isdecimal())
        and (not power or digits.isdecimal())
    )
