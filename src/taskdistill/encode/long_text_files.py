"""Texts of a file read whole, however long: one vector from windows, or a vector for each chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.long_text import encode_chunks, encode_windows
from taskdistill.encode.runner import PassOptions
from taskdistill.errors import BadInput
from taskdistill.types import Precision


@dataclass(frozen=True, slots=True)
class LongTextOptions:
    """How texts that may be longer than the model reads are read whole."""

    chunk_tokens: int | None = None
    """Tokens of a chunk, each with a vector of its own (late chunking); None gives one vector a
    text, from windows.
    """
    overlap: int | None = None
    """Tokens that a pass reads again; None for none between windows, and an eighth of a pass for
    chunks.
    """


@dataclass(frozen=True, slots=True)
class LongTextVectors:
    """Vectors of texts read whole."""

    vectors: np.ndarray
    texts: np.ndarray
    """Which text each vector belongs to, `(n,)` of int64."""
    spans: np.ndarray | None
    """First character and the one after the last of each chunk, `(n, 2)` of int64; None where a
    vector stands for a whole text.
    """
    passes: int


def encode_long(
    encoder: Encoder,
    texts: Sequence[str],
    long: LongTextOptions,
    *,
    task: str | None,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[PassOptions],
) -> LongTextVectors:
    """Encode texts whole.

    `progress`: called with (texts done, texts in all). `options`: as for `Encoder.encode`;
    `max_length` is in tokens of one pass. Returns vectors, in the order of the texts.
    """
    if long.chunk_tokens is None:
        result = encode_windows(
            encoder,
            texts,
            window=options.get("max_length"),
            overlap=long.overlap or 0,
            task=task,
            progress=progress,
            prompt_name=options.get("prompt_name"),
            truncate_dim=options.get("truncate_dim"),
            precision=options.get("precision", Precision.FLOAT32.value),
        )
        return LongTextVectors(
            result.vectors, np.arange(len(texts)), None, int(result.windows.sum())
        )
    parts = []
    for done, text in enumerate(texts, 1):
        try:
            chunks = encode_chunks(
                encoder,
                text,
                chunk_tokens=long.chunk_tokens,
                overlap=long.overlap,
                task=task,
                **options,
            )
        except BadInput as error:
            raise BadInput(f"text {done - 1}: {error}") from None
        parts.append(chunks)
        if progress is not None:
            progress(done, len(texts))
    return LongTextVectors(
        np.concatenate([part.vectors for part in parts]),
        np.repeat(np.arange(len(parts)), [len(part.vectors) for part in parts]),
        np.concatenate([part.spans for part in parts]),
        sum(part.passes for part in parts),
    )
