"""From a record to a clean row: each is used as it is, repaired for a stated reason, or rejected
for one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from taskdistill.data.readers import Fault, parse_json
from taskdistill.data.rows import LabeledText, Pair, Row, ScoredPair, Text
from taskdistill.recipe.data import SourceConfig
from taskdistill.types import RowKind

MAX_CHARACTERS = 200_000
"""A longer text is cut before anything tokenises it."""

REQUIRED: dict[RowKind, tuple[str, ...]] = {
    RowKind.PAIRS: ("query", "positive"),
    RowKind.SCORED: ("text1", "text2", "score"),
    RowKind.LABELLED: ("text", "label"),
    RowKind.TEXTS: ("text",),
}
OPTIONAL: dict[RowKind, tuple[str, ...]] = {
    kind: ("negatives", "lang") if kind is RowKind.PAIRS else ("lang",) for kind in RowKind
}

_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]"
)

Repair = Callable[[str], None]


def make_row(record: Mapping[str, Any], source: SourceConfig, repair: Repair) -> Row:
    """Turn one record into a clean row.

    `repair`: called with a reason for every repair. Raises Fault if the record must be rejected.
    """
    names = source.columns
    lang = _lang(record, names.get("lang", "lang"))
    if source.kind is RowKind.PAIRS:
        return _pair(record, names, lang, repair)
    if source.kind is RowKind.SCORED:
        first = _text(record, names.get("text1", "text1"), repair)
        second = _text(record, names.get("text2", "text2"), repair)
        return ScoredPair(
            first, second, _score(record, names.get("score", "score"), source.score_range), lang
        )
    text = _text(record, names.get("text", "text"), repair)
    if source.kind is RowKind.LABELLED:
        return LabeledText(text, _label(record, names.get("label", "label"), repair), lang)
    return Text(text, lang)


def _value(record: Mapping[str, Any], column: str) -> Any:
    value = record.get(column)
    if value is None:
        raise Fault(
            f"no {column!r}",
            (
                "null"
                if column in record
                else f"columns: {', '.join(map(str, list(record)[:8]))[:120]}"
            ),
        )
    return value


def _text(record: Mapping[str, Any], column: str, repair: Repair) -> str:
    value = _value(record, column)
    if not isinstance(value, str):
        raise Fault(f"{column!r} is no text", f"it is {_kind(value)}")
    return clean_text(value, column, repair)


def clean_text(text: str, column: str, repair: Repair) -> str:
    """Clean one text.

    `repair`: called with a reason for every repair. Returns the text without white space at its
    ends, cut at `MAX_CHARACTERS`. Raises Fault if it holds NUL or half a surrogate pair, or nothing
    visible.
    """
    if "\0" in text:
        raise Fault(f"NUL character in {column!r}", f"at character {text.index(chr(0))}")
    cut = text[:MAX_CHARACTERS]
    if not cut.isascii():
        try:
            cut.encode()
        except UnicodeEncodeError as error:
            raise Fault(f"lone surrogate in {column!r}", f"at character {error.start}") from None
    if _VISIBLE.search(cut) is None:
        raise Fault(f"{column!r} is empty after cleaning", f"{len(text)} characters, none visible")
    if len(cut) < len(text):
        repair(f"text cut at {MAX_CHARACTERS} characters")
    stripped = cut.strip()
    if stripped.startswith("\ufeff"):
        stripped = stripped.lstrip("\ufeff").lstrip()
    if len(stripped) < len(cut):
        repair("white space at the ends removed")
    return stripped


def _pair(record: Mapping[str, Any], names: Mapping[str, str], lang: str, repair: Repair) -> Pair:
    query = _text(record, names.get("query", "query"), repair)
    positive = _text(record, names.get("positive", "positive"), repair)
    if query == positive:
        raise Fault("query equals its positive")
    column = names.get("negatives", "negatives")
    cell = record.get(column)
    if cell is None or cell == "" or cell == []:
        return Pair(query, positive, (), lang)
    negatives: list[str] = []
    for value in _negatives(cell, column):
        try:
            negative = clean_text(value, column, repair)
        except Fault as fault:
            repair(f"negative dropped: {fault.reason}")
            continue
        if negative in (query, positive):
            repair(
                f"negative dropped: it equals the {'query' if negative == query else 'positive'}"
            )
        elif negative in negatives:
            repair("negative dropped: given twice")
        else:
            negatives.append(negative)
    if not negatives:
        raise Fault("no usable negative left", f"of {len(cell) if isinstance(cell, list) else 1}")
    return Pair(query, positive, tuple(negatives), lang)


def _negatives(cell: Any, column: str) -> list[str]:
    """Accept a list of texts, one text, or in CSV a JSON list in one cell."""
    if isinstance(cell, str):
        if not cell.startswith("["):
            return [cell]
        parsed = parse_json('{"n": ' + cell + "}")
        if isinstance(parsed, Fault):
            return [cell]
        cell = parsed["n"]
    if not isinstance(cell, list) or not all(isinstance(value, str) for value in cell):
        kinds = (
            _kind(cell)
            if not isinstance(cell, list)
            else f"a list with {_kind(next(v for v in cell if not isinstance(v, str)))}"
        )
        raise Fault(f"{column!r} is no list of texts", f"it is {kinds}")
    return cell


def _score(record: Mapping[str, Any], column: str, bounds: tuple[float, float]) -> float:
    value = _value(record, column)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Fault(f"{column!r} is no number", f"it is {_kind(value)}")
    try:
        score = float(value)
    except (ValueError, OverflowError):
        raise Fault(
            f"{column!r} is no number",
            str(value)[:40] if isinstance(value, str) else "beyond floating point",
        ) from None
    if not math.isfinite(score):
        raise Fault(f"{column!r} is not a finite number", str(score))
    if not bounds[0] <= score <= bounds[1]:
        raise Fault(
            f"{column!r} is outside {bounds[0]:g}..{bounds[1]:g}",
            f"{score:g}; set score_range if the source has another scale",
        )
    return score


def _label(record: Mapping[str, Any], column: str, repair: Repair) -> str:
    value = _value(record, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Fault(f"{column!r} is no class", f"it is {_kind(value)}; one text or whole number")
    return clean_text(value, column, repair)


def _lang(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Fault(f"{column!r} is no text", f"it is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    words = {
        "dict": "an object",
        "list": "a list",
        "int": "a number",
        "float": "a number",
        "str": "a text",
        "bool": "true or false",
        "NoneType": "null",
    }
    return words.get(type(value).__name__, f"a {type(value).__name__}")
