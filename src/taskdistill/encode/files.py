"""Encode a file of texts into a file of vectors, streaming, with every row accounted for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from taskdistill.encode.encoder import WINDOW, Encoder
from taskdistill.encode.long_text_files import LongTextOptions, encode_long
from taskdistill.encode.runner import EncodeOptions, PassOptions, Progress
from taskdistill.encode.texts import EncodeStats, TextReader, nothing_usable
from taskdistill.errors import BadInput
from taskdistill.io.outputs import check_output, output
from taskdistill.io.records import TextSource
from taskdistill.io.vector_files import REPLACEABLE, WRITERS, Writer
from taskdistill.types import Precision

LONG_WINDOW = 256
"""Texts held at once where each may be long and have many vectors."""


def encode_file(
    encoder: Encoder,
    source: TextSource,
    out: Path,
    options: EncodeOptions,
    *,
    long: LongTextOptions | None = None,
    progress: Progress | None = None,
    window: int = WINDOW,
) -> EncodeStats:
    """Encode every text of a file.

    Rows without a usable text are rejected and counted, and have no vector; .parquet and .jsonl
    outputs name each vector's row, so that nothing shifts. A .npy output is refused if a row had to
    be rejected, or has a vector for each chunk. `source`: where the texts are. `out`: .npy,
    .parquet or .jsonl; written beside and renamed. `options`: as for `Encoder.encode`. `long`: how
    texts longer than the model reads are read whole; None cuts their ends; `max_length` is then the
    length of one pass. `progress`: called with (rows encoded, rows read so far). Raises BadInput if
    input or output cannot be used; nothing is written then.
    """
    if out.suffix not in WRITERS:
        raise BadInput(
            f"{out}: vectors are written as {', '.join(WRITERS)}; give --out one of these endings"
        )
    if not out.parent.is_dir():
        raise BadInput(f"{out.parent} is no folder; make it first or give another --out")
    if long is not None and options.get("refuse_truncation"):
        raise BadInput(
            "refuse_truncation has no effect where texts are read whole, in windows or chunks;"
            " leave one of them out"
        )
    if long is not None and long.chunk_tokens is not None and out.suffix == ".npy":
        raise BadInput(
            f"{out}: a .npy file cannot say which characters a chunk has; write .parquet or .jsonl"
        )
    check_output(out, REPLACEABLE[out.suffix])
    counts = EncodeStats()
    rows = TextReader(source)
    texts = rows.take(counts)
    with closing(rows), output(out, REPLACEABLE[out.suffix]) as beside:
        writer: Writer | None = None
        if long is None:
            parts = _cut(encoder, texts, window, options, progress)
        else:
            parts = _whole(encoder, texts, min(window, LONG_WINDOW), long, options, progress)
        for part in parts:
            if writer is None:
                writer = WRITERS[out.suffix](beside)
            writer.add(part.rows, part.vectors, part.spans)
            counts.used += part.texts
            counts.vectors += len(part.vectors)
            counts.truncated += part.truncated
            counts.windows += part.passes
        if writer is None:
            raise nothing_usable(source, counts)
        writer.close()
        if out.suffix == ".npy" and counts.rejected:
            raise BadInput(
                f"{source.path}: {counts.rejected} rows have no usable text"
                f" ({counts.examples[0]}); a .npy file cannot say which rows are missing: write"
                " .parquet or .jsonl, or repair the rows"
            )
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _FilePart:
    """Vectors of the next texts."""

    rows: np.ndarray
    vectors: np.ndarray
    spans: np.ndarray | None
    texts: int
    truncated: int
    passes: int


def _cut(
    encoder: Encoder,
    texts: Iterator[tuple[int, str]],
    size: int,
    options: EncodeOptions,
    progress: Progress | None,
) -> Iterator[_FilePart]:
    """Encode texts whose ends may be cut; the next ones are read and tokenised meanwhile."""
    waiting: deque[np.ndarray] = deque()

    def chunks() -> Iterator[list[str]]:
        while chunk := list(islice(texts, size)):
            waiting.append(np.array([row for row, _ in chunk]))
            yield [text for _, text in chunk]

    for encoded in encoder.stream_reporting(chunks(), progress=progress, **options):
        yield _FilePart(
            rows=waiting.popleft(),
            vectors=encoded.vectors,
            spans=None,
            texts=len(encoded.vectors),
            truncated=int(encoded.truncated.sum()),
            passes=0,
        )


def _whole(
    encoder: Encoder,
    texts: Iterator[tuple[int, str]],
    size: int,
    long: LongTextOptions,
    options: EncodeOptions,
    progress: Progress | None,
) -> Iterator[_FilePart]:
    """Encode texts whole, however long."""
    done, task = 0, options.get("task")
    if not isinstance(task, str | None):
        raise BadInput("a file has one task for all its texts")
    if options.get("prompt") is not None:
        raise BadInput(
            "texts that are read whole take a prompt by its name; give prompt_name instead of"
            " prompt"
        )
    passes = PassOptions(
        prompt_name=options.get("prompt_name"),
        truncate_dim=options.get("truncate_dim"),
        precision=options.get("precision", Precision.FLOAT32.value),
        max_length=options.get("max_length"),
    )
    while chunk := list(islice(texts, size)):
        report = None if progress is None else _after(progress, done)
        result = encode_long(
            encoder, [text for _, text in chunk], long, task=task, progress=report, **passes
        )
        rows = np.array([row for row, _ in chunk])[result.texts]
        yield _FilePart(
            rows=rows,
            vectors=result.vectors,
            spans=result.spans,
            texts=len(chunk),
            truncated=0,
            passes=result.passes,
        )
        done += len(chunk)


def _after(progress: Progress, before: int) -> Progress:
    return lambda done, total: progress(before + done, before + total)
