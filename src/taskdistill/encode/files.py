"""Encode a file of texts into a file of vectors, streaming, with every row accounted for."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from taskdistill.encode.encoder import WINDOW, Encoder
from taskdistill.encode.long_files import Long, encode_long
from taskdistill.encode.running import Asked, Progress
from taskdistill.encode.writers import WRITERS, Writer
from taskdistill.errors import BadInput
from taskdistill.folders import sync
from taskdistill.strict_json import JsonFault, read_object

EXAMPLES = 5
LONG_WINDOW = 256
"""Texts held at once where each may be long and have many vectors."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where texts are read from."""

    source: str
    """Path of a .txt, .jsonl, .csv or .parquet file (the first three gzip too), or `-` for lines on standard input."""
    column: str = "text"


@dataclass(slots=True)
class Counts:
    """What became of every row: `read` = `used` + `rejected`."""

    read: int = 0
    used: int = 0
    rejected: int = 0
    truncated: int = 0
    vectors: int = 0
    windows: int = 0
    """Passes of the model over parts of texts, where long texts are read whole."""
    examples: list[str] = field(default_factory=list)

    def reject(self, where: str, why: str) -> None:
        """Count one rejected row.

        Args:
            where: File and line.
            why: What is wrong with it.
        """
        self.rejected += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {why}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data.

        Returns:
            The counts.
        """
        return asdict(self)


def encode_file(
    encoder: Encoder,
    reading: Reading,
    out: Path,
    *,
    task: str | None,
    prompt_name: str,
    truncate_dim: int | None = None,
    precision: str = "float32",
    max_length: int | None = None,
    refuse_truncation: bool = False,
    long: Long | None = None,
    progress: Progress | None = None,
    window: int = WINDOW,
) -> Counts:
    """Encode every text of a file.

    Rows without a usable text are rejected and counted, and have no vector; .parquet and .jsonl outputs name each vector's
    row, so that nothing shifts. A .npy output is refused if a row had to be rejected, or has a vector for each chunk.

    Args:
        encoder: The model.
        reading: Where the texts are.
        out: .npy, .parquet or .jsonl; written beside and renamed.
        task: See `Encoder.encode`.
        prompt_name: See `Encoder.encode`.
        truncate_dim: See `Encoder.encode`.
        precision: See `Encoder.encode`.
        max_length: See `Encoder.encode`.
        refuse_truncation: Whether a text that is too long is an error.
        long: How texts longer than the model reads are read whole; None cuts their ends. `max_length` is then the length of one pass.
        progress: Called with (rows encoded, rows read so far).
        window: Texts held at once.

    Returns:
        The counts.

    Raises:
        BadInput: If input or output cannot be used; nothing is written then.
    """
    if out.suffix not in WRITERS:
        raise BadInput(f"{out}: vectors are written as {', '.join(WRITERS)}; give --out one of these endings")
    if not out.parent.is_dir():
        raise BadInput(f"{out.parent} is no folder; make it first or give another --out")
    if long is not None and refuse_truncation:
        raise BadInput("refuse_truncation has no effect where texts are read whole, in windows or chunks; leave one of them out")
    if long is not None and long.chunk_tokens is not None and out.suffix == ".npy":
        raise BadInput(f"{out}: a .npy file cannot say which characters a chunk has; write .parquet or .jsonl")
    counts = Counts()
    texts = _texts(reading, counts)
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        writer: Writer | None = None
        said: Asked = {
            "task": task,
            "prompt_name": prompt_name,
            "truncate_dim": truncate_dim,
            "precision": precision,
            "max_length": max_length,
        }
        if long is None:
            said["refuse_truncation"] = refuse_truncation
            parts = _cut(encoder, texts, window, said, progress)
        else:
            parts = _whole(encoder, texts, min(window, LONG_WINDOW), long, said, progress)
        for part in parts:
            if writer is None:
                writer = WRITERS[out.suffix](beside)
            writer.add(part.rows, part.vectors, part.spans)
            counts.used += part.texts
            counts.vectors += len(part.vectors)
            counts.truncated += part.truncated
            counts.windows += part.passes
        if writer is None:
            why = f" ({counts.examples[0]})" if counts.examples else ""
            raise BadInput(f"{reading.source} has no row with a usable text{why}; give a file with texts")
        writer.close()
        if out.suffix == ".npy" and counts.rejected:
            raise BadInput(
                f"{reading.source}: {counts.rejected} rows have no usable text ({counts.examples[0]}); a .npy file cannot say which "
                f"rows are missing: write .parquet or .jsonl, or repair the rows"
            )
        sync(beside)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return counts


@dataclass(frozen=True, slots=True)
class _Part:
    """Vectors of the next texts."""

    rows: np.ndarray
    vectors: np.ndarray
    spans: np.ndarray | None
    texts: int
    truncated: int
    passes: int


def _cut(encoder: Encoder, texts: Iterator[tuple[int, str]], size: int, said: Asked, progress: Progress | None) -> Iterator[_Part]:
    """Encode texts whose ends may be cut; the next ones are read and tokenised meanwhile."""
    waiting: deque[np.ndarray] = deque()

    def chunks() -> Iterator[list[str]]:
        while chunk := list(islice(texts, size)):
            waiting.append(np.array([row for row, _ in chunk]))
            yield [text for _, text in chunk]

    for encoded in encoder.stream_reporting(chunks(), progress=progress, **said):
        yield _Part(waiting.popleft(), encoded.vectors, None, len(encoded.vectors), int(encoded.truncated.sum()), 0)


def _whole(
    encoder: Encoder, texts: Iterator[tuple[int, str]], size: int, long: Long, said: Asked, progress: Progress | None
) -> Iterator[_Part]:
    """Encode texts whole, however long."""
    done = 0
    while chunk := list(islice(texts, size)):
        told = None if progress is None else _after(progress, done)
        found = encode_long(encoder, [text for _, text in chunk], long, progress=told, **said)  # type: ignore[arg-type, misc]
        rows = np.array([row for row, _ in chunk])[found.texts]
        yield _Part(rows, found.vectors, found.spans, len(chunk), 0, found.passes)
        done += len(chunk)


def _after(progress: Progress, before: int) -> Progress:
    return lambda done, total: progress(before + done, before + total)


def _texts(reading: Reading, counts: Counts) -> Iterator[tuple[int, str]]:
    """Yield row numbers from 0 and texts; count every row."""
    path = Path(reading.source)
    if reading.source != "-" and not path.is_file():
        raise BadInput(f"no file {path}; give a .txt, .jsonl, .csv or .parquet file, or - for standard input")
    name = path.name.removesuffix(".gz")
    kind = ".txt" if reading.source == "-" else Path(name).suffix
    if kind not in READERS:
        raise BadInput(f"{path}: texts are read from {', '.join(READERS)}; convert the file or give it the right ending")
    for row, value in enumerate(READERS[kind](path, reading.column)):
        counts.read += 1
        fault = _fault(value)
        if fault is not None:
            counts.reject(f"{reading.source}:{row + 1}", fault)
        else:
            yield row, value


def _fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return str(value) if isinstance(value, _Fault) else f"the text is {type(value).__name__}, needs a string"
    if not value.strip():
        return "empty text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "a lone surrogate, which is no character"
    return None


class _Fault(Exception):
    """A row that cannot be read."""


def _lines(path: Path) -> Iterator[str | _Fault]:
    with _opened(path) as stream:
        for number, line in enumerate(stream):
            raw = line.rstrip(b"\r\n")
            try:
                yield raw.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                yield _Fault(f"not UTF-8 at byte {error.start} of the line")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        yield sys.stdin.buffer
    else:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream  # type: ignore[misc]


def _text_lines(path: Path, _: str) -> Iterator[Any]:
    yield from _lines(path)


def _json_lines(path: Path, column: str) -> Iterator[Any]:
    for line in _lines(path):
        if isinstance(line, str) and line.strip():
            try:
                row = read_object(line)
            except JsonFault as fault:
                yield _Fault(str(fault))
                continue
            if column in row:
                yield row[column]
            else:
                yield _Fault(f"no field {column!r}; found {', '.join(list(row)[:6])}; name another with --column")
        elif isinstance(line, _Fault):
            yield line


def _csv_rows(path: Path, column: str) -> Iterator[Any]:
    with _opened(path) as stream:
        rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
        if column not in (rows.fieldnames or []):
            raise BadInput(f"{path} has the columns {rows.fieldnames}, none called {column!r}; name one with --column")
        for row in rows:
            yield row[column]


def _parquet_rows(path: Path, column: str) -> Iterator[Any]:
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is no Parquet file ({error})") from None
    if column not in table.schema_arrow.names:
        raise BadInput(f"{path} has the columns {table.schema_arrow.names}, none called {column!r}; name one with --column")
    for batch in table.iter_batches(columns=[column]):
        yield from batch.column(0).to_pylist()


READERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    ".txt": _text_lines,
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
