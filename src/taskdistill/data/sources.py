"""A recipe's source to a data set: every file below the root, every row used, repaired or rejected,
and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from taskdistill.data.cleaning import OPTIONAL, REQUIRED, make_row
from taskdistill.data.rows import Dataset, LabeledText, ScoredPair, hash_rows, row_texts
from taskdistill.errors import BadInput, RowError, did_you_mean
from taskdistill.io.folders import check_listed
from taskdistill.io.records import ALL_SUFFIXES, SUFFIXES, ReadStats, Record, read_hub, read_records
from taskdistill.recipe.data import SourceConfig
from taskdistill.seeding import hash_64
from taskdistill.types import RowKind

HUB = "hub:"
DUPLICATE = "duplicate"
LONELY = "class with one example"
NO_FAULT = frozenset({DUPLICATE, LONELY})
"""Rejections that are no faults of the rows; they do not count against `max_bad`."""


def load_source(
    root: Path,
    name: str,
    source: SourceConfig,
    *,
    max_bad: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read one source of a recipe.

    `source`: path or glob below the root (or `hub:owner/name`), kind, columns, languages and limit.
    `max_bad`: share of faulty rows among those read above which the source is refused; exact
    duplicates and classes with one example are rejected but are no faults. `seed`: with
    `source.limit`, decides which rows are drawn. `progress`: called with files done and files in
    all. Returns the data set. Its rows are in file order; with `source.limit` they are a part of
    the rows counted. Raises BadInput if a file is missing, empty or damaged, a column is missing,
    too many rows are faulty, scores are all equal (CoSENT has no pairs then), or there is one class
    only.
    """
    _check_columns(name, source)
    counts, rows, seen, repaired = ReadStats(), list[Any](), set[Any](), dict[int, str]()
    inputs = _inputs(root, name, source)
    for done, (label, records) in enumerate(inputs):
        _read(label, records, source, counts, rows, seen, repaired)
        if progress is not None:
            progress(done + 1, len(inputs))
    where = f"source {name!r} ({source.path})"
    if counts.read == 0:
        raise BadInput(f"no rows in {where}" + _languages(source, counts))
    faults = sum(number for reason, number in counts.rejected.items() if reason not in NO_FAULT)
    if faults > max_bad * counts.read:
        raise BadInput(
            f"{where}: {faults} of {counts.read} rows are faulty, more than"
            f" data.max_bad={max_bad:g} allows; mend them or raise data.max_bad. The first"
            f" {len(counts.examples)}: " + "; ".join(counts.examples)
        )
    if source.kind is RowKind.LABELLED:
        rows = _drop_lonely(rows, counts, where, repaired)
    if source.kind is RowKind.SCORED and len({row.score for row in rows}) < 2:
        raise BadInput(
            f"{where}: all {len(rows)} scores are equal, so CoSENT has no pairs; use the source as"
            " pairs or give graded scores"
        )
    counts.repaired.update(repaired.values())
    counts.used = counts.read - counts.rejected.total() - counts.repaired.total()
    rows = _draw(rows, source.limit, seed, name)
    return Dataset(
        name=name,
        kind=source.kind,
        rows=tuple(rows),
        counts=counts,
        sha256=hash_rows(rows),
        teacher_reads=source.teacher_reads,
    )


def _check_columns(name: str, source: SourceConfig) -> None:
    known = (*REQUIRED[source.kind], *OPTIONAL[source.kind])
    for field in source.columns:
        if field not in known:
            raise BadInput(
                f"data.sources.{name}.columns names {field!r}, no field of {source.kind.value}"
                f" rows{did_you_mean(field, known)}"
            )


def _inputs(root: Path, name: str, source: SourceConfig) -> list[tuple[str, Iterator[Record]]]:
    if source.path.startswith(HUB):
        return list(_hub_inputs(source))
    requested = {
        source.columns.get(field, field)
        for field in (*REQUIRED[source.kind], *OPTIONAL[source.kind])
    }
    files = resolve(root, name, source.path)
    for path in files:
        check_listed(path)
    return [(path.name, read_records(path, requested)) for path in files]


def _hub_inputs(source: SourceConfig) -> Iterator[tuple[str, Iterator[Record]]]:
    """Read a Hub data set, or one subset after the other where each language has its own."""
    name = source.path.removeprefix(HUB)
    if not isinstance(source.subset, dict):
        yield source.path, read_hub(name, source.split, source.revision, source.subset)
        return
    lang = source.columns.get("lang", "lang")
    for language, subset in source.subset.items():
        if source.languages is None or language in source.languages:
            records = read_hub(name, source.split, source.revision, subset)
            yield f"{source.path}/{subset}", _in_language(records, lang, language)


def _in_language(records: Iterator[Record], column: str, language: str) -> Iterator[Record]:
    for number, record in records:
        yield number, record if isinstance(record, RowError) else record | {column: language}


def resolve(root: Path, name: str, pattern: str) -> list[Path]:
    """Find the files of a source.

    Raises BadInput if there is none; names the nearest file that exists.
    """
    if not any(sign in pattern for sign in "*?["):
        path = root / pattern
        if not path.exists():
            raise BadInput(f"source {name!r}: no file {path}" + _near(root, pattern))
        return [path]
    if Path(pattern).is_absolute():
        raise BadInput(
            f"source {name!r}: the glob {pattern} is absolute; globs start from data.root ({root})"
        )
    # A text file beside the data, such as a read-me, is not meant unless the pattern says so.
    endings = ALL_SUFFIXES if pattern.lower().endswith((".txt", ".txt.gz")) else SUFFIXES
    result = sorted(
        path
        for path in root.glob(pattern)
        if path.is_file() and path.name.lower().endswith(endings)
    )
    if not result:
        raise BadInput(
            f"source {name!r}: no file of rows matches {pattern} below {root}"
            + _near(root, pattern)
        )
    return result


def _near(root: Path, pattern: str) -> str:
    if not root.is_dir():
        return f"; the folder {root} does not exist"
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.glob("*/*")
        if path.name.lower().endswith(SUFFIXES)
    )
    return did_you_mean(pattern, names[:200]) if names else f"; {root} holds no file of rows"


def _languages(source: SourceConfig, counts: ReadStats) -> str:
    return (
        f": none of its {counts.filtered} rows is in the languages {source.languages}"
        if counts.filtered
        else ""
    )


def _read(
    label: str,
    records: Iterator[Record],
    source: SourceConfig,
    counts: ReadStats,
    rows: list[Any],
    seen: set[Any],
    repaired: dict[int, str],
) -> None:
    columns: list[str] | None = None
    missing: Counter[str] = Counter()
    before = counts.read
    required = [source.columns.get(field, field) for field in REQUIRED[source.kind]]
    repairs: list[str] = []
    lang = source.columns.get("lang", "lang")
    for number, record in records:
        if isinstance(record, RowError):
            counts.read += 1
            counts.reject(f"{label}:{number}", record)
            continue
        if columns is None:
            columns = [str(key) for key in record]
            known = {
                source.columns.get(field, field)
                for field in (*REQUIRED[source.kind], *OPTIONAL[source.kind])
            }
            counts.ignored_columns += [
                key for key in columns if key not in known and key not in counts.ignored_columns
            ]
        if source.languages is not None:
            if lang in columns or lang in record:
                if record.get(lang) not in source.languages:
                    counts.filtered += 1
                    continue
            elif len(source.languages) == 1:
                record = record | {lang: source.languages[0]}
        counts.read += 1
        repairs.clear()
        try:
            row = make_row(record, source, repairs.append)
        except RowError as error:
            missing.update(column for column in required if column not in record)
            counts.reject(f"{label}:{number}", error)
            continue
        key = (
            *row_texts(row),
            row.score if isinstance(row, ScoredPair) else None,
            row.label if isinstance(row, LabeledText) else None,
        )
        if key in seen:
            counts.reject(f"{label}:{number}", RowError(DUPLICATE))
            continue
        seen.add(key)
        if repairs:
            repaired[len(rows)] = repairs[0]
        rows.append(row)
    if columns is None and counts.read == before:
        raise BadInput(f"no rows in {label}: the file is empty or has blank lines only")
    _check_missing(label, missing, counts.read - before, columns or [], source)


def _check_missing(
    label: str, missing: Counter[str], read: int, columns: list[str], source: SourceConfig
) -> None:
    lost = [column for column, number in missing.items() if number == read]
    if not lost:
        return
    field = next(
        field for field in REQUIRED[source.kind] if source.columns.get(field, field) == lost[0]
    )
    raise BadInput(
        f"{label}: no column {lost[0]!r} for the field {field!r} of {source.kind.value} rows;"
        f" columns found: {', '.join(columns[:20])}; name the right one in the recipe, under the"
        f" source: columns: {{{field}: <column>}}"
    )


def _drop_lonely(
    rows: list[Any], counts: ReadStats, where: str, repaired: dict[int, str]
) -> list[Any]:
    sizes = Counter(row.label for row in rows)
    if len(sizes) < 2:
        raise BadInput(
            f"{where}: one class only ({next(iter(sizes), 'none')!r}); classification needs rows of"
            " two classes or more"
        )
    rows_left = [row for row in rows if sizes[row.label] > 1]
    left = {label for label, size in sizes.items() if size > 1}
    if len(left) < 2:
        raise BadInput(
            f"{where}: {len(sizes)} classes, but only {len(left)} of them has two examples or more;"
            " give more rows per class"
        )
    for index, row in enumerate(rows):
        if sizes[row.label] == 1:
            repaired.pop(index, None)
            counts.reject(where, RowError(LONELY, row.label[:60]))
    return rows_left


def _draw(rows: list[Any], limit: int | None, seed: int, name: str) -> list[Any]:
    if limit is None or limit >= len(rows):
        return rows
    import numpy as np

    key = hash_64(f"{seed}:{name}:limit")
    chosen = np.random.default_rng(key).permutation(len(rows))[:limit]
    return [rows[i] for i in sorted(chosen.tolist())]
