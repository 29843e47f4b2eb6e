"""From a record to a clean row: each is used as it is, repaired for a stated reason, or rejected
for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from taskdistill.data.rows import LabeledText, Pair, Row, ScoredPair, Text
from taskdistill.errors import RowError
from taskdistill.io.json import JsonError, read_object
from taskdistill.io.records import check_text, kind_of, text_of, value_of
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

Repair = Callable[[str], None]


def make_row(record: Mapping[str, Any], source: SourceConfig, repair: Repair) -> Row:
    """Turn one record into a clean row.

    `repair`: called with a reason for every repair. Raises RowError if the record must be rejected.
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


def _text(record: Mapping[str, Any], column: str, repair: Repair) -> str:
    """Return a text without white space at its ends, cut at `MAX_CHARACTERS`."""
    value = record.get(column)
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        check_text(value, column)
        record = {column: value[:MAX_CHARACTERS]}
        repair(f"text cut at {MAX_CHARACTERS} characters")
    text = text_of(record, column)
    stripped = text.strip()
    if stripped.startswith("\ufeff"):
        stripped = stripped.lstrip("\ufeff").lstrip()
    if len(stripped) < len(text):
        repair("white space at the ends removed")
    return stripped


def _pair(record: Mapping[str, Any], names: Mapping[str, str], lang: str, repair: Repair) -> Pair:
    query = _text(record, names.get("query", "query"), repair)
    positive = _text(record, names.get("positive", "positive"), repair)
    if query == positive:
        raise RowError("query equals its positive")
    column = names.get("negatives", "negatives")
    cell = record.get(column)
    if cell is None or cell == "" or cell == []:
        return Pair(query, positive, (), lang)
    negatives: list[str] = []
    for value in _negatives(cell, column):
        try:
            negative = _text({column: value}, column, repair)
        except RowError as error:
            repair(f"negative dropped: {error.reason}")
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
        raise RowError(
            "no usable negative left", f"of {len(cell) if isinstance(cell, list) else 1}"
        )
    return Pair(query, positive, tuple(negatives), lang)


def _negatives(cell: Any, column: str) -> list[str]:
    """Accept a list of texts, one text, or in CSV a JSON list in one cell."""
    if isinstance(cell, str):
        if not cell.startswith("["):
            return [cell]
        try:
            cell = read_object('{"n": ' + cell + "}")["n"]
        except JsonError:
            return [cell]
    if not isinstance(cell, list) or not all(isinstance(value, str) for value in cell):
        kinds = (
            kind_of(cell)
            if not isinstance(cell, list)
            else f"a list with {kind_of(next(v for v in cell if not isinstance(v, str)))}"
        )
        raise RowError(f"{column!r} is no list of texts", f"it is {kinds}")
    return cell


def _score(record: Mapping[str, Any], column: str, bounds: tuple[float, float]) -> float:
    value = value_of(record, column)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RowError(f"{column!r} is no number", f"it is {kind_of(value)}")
    try:
        score = float(value)
    except (ValueError, OverflowError):
        raise RowError(
            f"{column!r} is no number",
            str(value)[:40] if isinstance(value, str) else "beyond floating point",
        ) from None
    if not math.isfinite(score):
        raise RowError(f"{column!r} is not a finite number", str(score))
    if not bounds[0] <= score <= bounds[1]:
        raise RowError(
            f"{column!r} is outside {bounds[0]:g}..{bounds[1]:g}",
            f"{score:g}; set score_range if the source has another scale",
        )
    return score


def _label(record: Mapping[str, Any], column: str, repair: Repair) -> str:
    value = value_of(record, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError(
            f"{column!r} is no class", f"it is {kind_of(value)}; one text or whole number"
        )
    return _text(record, column, repair)


def _lang(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{column!r} is no text", f"it is {kind_of(value)}")
    return value
