"""The lines of evaluation files: JSONL and judgments, plain or gzip, refused with file and line
where they are damaged.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from taskdistill.errors import BadInput, RowError
from taskdistill.io.lines import decoded, read_lines
from taskdistill.io.records import check_text, is_visible, read_records

Item = TypeVar("Item")


def rows(path: Path, texts: Sequence[str], notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; rows with an empty text are left out and noted.

    `texts`: keys that must hold texts. Yields each row, with its line number under `#`. Raises
    BadInput if the file cannot be read, a line is no JSON object or lacks a text, or no row is
    left.
    """
    empty = []
    count = 0
    for number, row in read_records(path):
        if isinstance(row, RowError):
            refuse(path, number, str(row))
        for key in texts:
            if not isinstance(row.get(key), str):
                refuse(
                    path, number, f"needs a text under {key!r}; has {', '.join(row) or 'no keys'}"
                )
            _check(path, number, row[key], key)
        if all(is_visible(row[key]) for key in texts):
            count += 1
            yield {**row, "#": number}
        else:
            empty.append(f"line {number}")
    if not count:
        raise BadInput(f"{path} has no rows with text; it needs one JSON object a line")
    if empty:
        notes.append(
            f"{len(empty)} rows of {path.name} have an empty text and are left out:"
            f" {listing(empty)}"
        )


def first_row(path: Path) -> dict[str, Any]:
    """Return the first row of a file, with its line number under `#`."""
    return next(rows(path, (), []))


def texts_by_id(path: Path, notes: list[str]) -> dict[str, str]:
    """Read a corpus or queries file: id to text, the title before it where there is one, as mteb
    joins them.

    `path`: a file of `{"_id", "title"?, "text"}`. `notes`: takes a sentence about empty texts,
    which are left out. Returns id to text, in the order of the file. Raises BadInput if a row is
    damaged or an id stands for two different texts.
    """
    result: dict[str, str] = {}
    repeated = 0
    for row in rows(path, (), []):
        key, title, text = row.get("_id"), row.get("title") or "", row.get("text")
        if not isinstance(key, str) or not isinstance(text, str) or not isinstance(title, str):
            refuse(path, row["#"], "`_id` and `text` must be texts")
        for field, value in (("_id", key), ("title", title), ("text", text)):
            _check(path, row["#"], value, field)
        passage = f"{title} {text}".strip() if title else text.strip()
        repeated += key in result
        if result.setdefault(key, passage) != passage:
            refuse(path, row["#"], f"the id {key!r} was used before for another text")
    if repeated:
        notes.append(
            f"{repeated} rows of {path.name} repeat an id with the same text and count once"
        )
    if empty := [key for key, text in result.items() if not is_visible(text)]:
        notes.append(
            f"{len(empty)} texts of {path.name} are empty and are left out: {listing(empty)}"
        )
    return {key: text for key, text in result.items() if is_visible(text)}


def judgments(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield the lines of a qrels file.

    `path`: query id, document id and relevance separated by tabs, with a header. Raises BadInput if
    a line has another form.
    """
    for number, offset, raw in read_lines(path):
        try:
            line = decoded(raw, offset)
        except RowError as error:
            refuse(path, number, str(error))
        parts = line.rstrip("\r").split("\t")
        if (number == 1 and parts[0] == "query-id") or not line.strip():
            continue
        try:
            query, document, relevance = parts[0], parts[1], int(parts[2])
        except (IndexError, ValueError):
            refuse(
                path,
                number,
                f"{line.strip()!r} is not query-id, corpus-id and a whole-number score, separated"
                " by tabs",
            )
        yield number, query, document, relevance


def refuse(path: Path, line: int, fault: str) -> NoReturn:
    """Refuse a line. `line`: its number, from 1. Raises BadInput always."""
    raise BadInput(f"{path}:{line}: {fault}; correct or remove the line")


def sample(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """Keep at most so many items, in their order. `limit`: how many to keep; None keeps all."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def listing(names: Iterable[str]) -> str:
    """Name the first five things of many."""
    result = list(names)
    return ", ".join(result[:5]) + (", ..." if len(result) > 5 else "")


def _check(path: Path, number: int, text: str, key: str) -> None:
    try:
        check_text(text, key)
    except RowError as error:
        refuse(path, number, str(error))
