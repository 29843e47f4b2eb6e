"""Long documents: many chunk vectors from one pass over the text (late chunking), and one vector
from many windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

import numpy as np
import torch

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.output_format import OutputFormat, resolve_output
from taskdistill.encode.runner import PassOptions, VectorOptions
from taskdistill.errors import BadInput
from taskdistill.model.student import TransformerModel
from taskdistill.quantization import normalize
from taskdistill.tasks import Role
from taskdistill.types import Pooling, Precision

_DOCUMENT = Role.DOCUMENT.value

TOKENS_AT_ONCE = 1 << 18
"""Tokens of documents whose windows are encoded together."""


@dataclass(frozen=True, slots=True)
class ChunkVectors:
    """Vectors of the chunks of one document."""

    vectors: np.ndarray
    """`(chunks, dim)` in the precision asked for; float32 has unit rows."""
    spans: np.ndarray
    """First character and the one after the last of each chunk, `(chunks, 2)` of int64."""
    tokens: int
    """Tokens of the document, prompt and special tokens left out."""
    passes: int
    """Passes of the model: 1 unless the document is longer than the model reads."""


@dataclass(frozen=True, slots=True)
class WindowVectors:
    """Vectors of documents that may be longer than the model reads."""

    vectors: np.ndarray
    """`(n, dim)` in the precision asked for; float32 has unit rows."""
    windows: np.ndarray
    """How many windows each document was read in, `(n,)` of int64; no part of it is left out."""


@dataclass(frozen=True, slots=True)
class _TokenizedDocument:
    """A tokenised text: special tokens and prompt before, the text itself, special tokens after."""

    lead: np.ndarray
    body: np.ndarray
    trail: np.ndarray
    starts: np.ndarray
    """First character of each token of the body."""

    def cut(self, room: int, overlap: int) -> list[tuple[int, int]]:
        """Cut the body into windows of `room` tokens, each beginning `overlap` tokens before the
        end of the one before.
        """
        first, windows = 0, []
        while True:
            last = min(first + room, len(self.body))
            windows.append((first, last))
            if last == len(self.body):
                return windows
            first = last - overlap

    def states_of(self, start: int, stop: int) -> tuple[int, int]:
        """Find the states, of all tokens in a row, of a chunk: of the tokens that begin within it,
        or the one that it lies within.
        """
        first, last = (
            int(np.searchsorted(self.starts, edge, side="left")) for edge in (start, stop)
        )
        if first == last:
            first, last = max(first - 1, 0), max(first, 1)
        begin = 0 if first == 0 else len(self.lead) + first
        end = len(self.lead) + last + (len(self.trail) if last == len(self.body) else 0)
        return begin, end

    def ids(self, first: int, last: int) -> np.ndarray:
        """Give the ids of one window, with what stands around every text."""
        return np.concatenate([self.lead, self.body[first:last], self.trail])


def encode_chunks(
    encoder: Encoder,
    text: str,
    *,
    spans: Sequence[tuple[int, int]] | None = None,
    chunk_tokens: int = 256,
    overlap: int | None = None,
    task: str | None = None,
    **options: Unpack[PassOptions],
) -> ChunkVectors:
    """Encode the chunks of a document so that each has seen the rest of it: one pass, then pooling
    chunk by chunk.

    A chunk is pooled as the model pools a text: by its last token for last-token models, otherwise
    by the mean of its tokens. The first chunk also takes the prompt, the last one the special
    tokens at the end; a single chunk is the text's own vector.

    Args:
        spans: Extents of the chunks in characters, each not empty; None cuts after every
            `chunk_tokens` tokens.
        chunk_tokens: Tokens of a chunk if no spans are given.
        overlap: Tokens that a pass reads again as context where the document needs several; None
            for an eighth of a pass.
        **options: As for `Encoder.encode`; `max_length` is in tokens of one pass.

    Returns:
        Vectors and extents of the chunks, in order.

    Raises:
        BadInput: If the text has no token, or a span or size is outside what there is.
    """
    task = encoder.choose_task(task)
    form = {name: value for name, value in options.items() if name != "max_length"}
    shape = _shape(encoder, task, **cast(VectorOptions, form))
    document = _document(encoder, text, options.get("prompt_name", _DOCUMENT))
    room = _room(encoder, document, options.get("max_length"))
    again = room // 8 if overlap is None else overlap
    if not 0 <= again < room:
        raise BadInput(
            f"overlap {overlap} is not between 0 and the {room} tokens of text that one pass reads"
        )
    extents = (
        _even_spans(document, chunk_tokens, len(text))
        if spans is None
        else np.array(spans, dtype=np.int64).reshape(-1, 2)
    )
    if (
        len(extents) == 0
        or (extents[:, 0] < 0).any()
        or (extents[:, 1] > len(text)).any()
        or (extents[:, 0] >= extents[:, 1]).any()
    ):
        raise BadInput(
            f"every span must be a non-empty part of the {len(text)} characters of the text"
        )
    pool = _ChunkPooler(encoder, document, extents)
    windows = document.cut(room, again)
    for first, last in windows:
        states = encoder.token_states(document.ids(first, last), task=task)
        skip = len(document.lead) + again if first else 0
        keep = len(states) if last == len(document.body) else len(states) - len(document.trail)
        pool.add(states[skip:keep])
    return ChunkVectors(shape.finish(pool.vectors()), extents, len(document.body), len(windows))


def encode_windows(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    window: int | None = None,
    overlap: int = 0,
    task: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[VectorOptions],
) -> WindowVectors:
    """Encode documents of any length: windows of tokens encoded apart, their unit vectors averaged
    by length.

    A document that fits into one window has the same vector as from `Encoder.encode`, to the bit.

    Args:
        window: Tokens of a window, prompt and special tokens included; None for all that the model
            reads.
        overlap: Tokens that a window shares with the one before.
        progress: Called with (documents done, documents in all).
        **options: As for `Encoder.encode`.

    Raises:
        BadInput: If a text has no token, or the window or overlap leaves no room.
    """
    if isinstance(texts, str):
        raise BadInput("encode_windows takes a list of texts, got one string; put it into a list")
    task = encoder.choose_task(task)
    shape = _shape(encoder, task, **options)
    prompt_name = options.get("prompt_name", _DOCUMENT)
    vectors, counts = (
        np.zeros((len(texts), encoder.embedding_dim), np.float32),
        np.zeros(len(texts), np.int64),
    )
    done = 0
    for parts in _batches(encoder, texts, window, overlap, prompt_name):
        pooled = encoder.encode_ids(
            [document.ids(*extent) for document, extents in parts for extent in extents],
            task=task,
            pooled=True,
        )
        place = 0
        for i, (_, extents) in enumerate(parts, done):
            window_vectors, weights = (
                pooled[place : place + len(extents)],
                np.array([last - first for first, last in extents], np.float64),
            )
            # A mean of one unit vector is scaled twice, which moves last bits and with them the
            # codes of some coordinates.
            vectors[i] = (
                window_vectors[0]
                if len(window_vectors) == 1
                else (weights[:, None] * normalize(window_vectors)).sum(0) / weights.sum()
            )
            counts[i] = len(extents)
            place += len(extents)
        done += len(parts)
        if progress is not None:
            progress(done, len(texts))
    return WindowVectors(shape.finish(vectors), counts)


def _shape(
    encoder: Encoder,
    task: str | None,
    *,
    prompt_name: str | None = _DOCUMENT,
    truncate_dim: int | None = None,
    precision: str = Precision.FLOAT32.value,
) -> OutputFormat:
    """Resolve `VectorOptions`; a name that is none of them is a TypeError, as in any call."""
    return resolve_output(
        encoder.model.settings, encoder.embedding_dim, task, truncate_dim, precision, prompt_name
    )


def _batches(
    encoder: Encoder,
    texts: Sequence[str],
    window: int | None,
    overlap: int,
    prompt_name: str | None,
) -> Iterator[list[tuple[_TokenizedDocument, list[tuple[int, int]]]]]:
    """Cut documents into windows, and give as many documents at once as have `TOKENS_AT_ONCE`
    tokens.
    """
    held: list[tuple[_TokenizedDocument, list[tuple[int, int]]]] = []
    tokens = 0
    for i, text in enumerate(texts):
        document = _document(encoder, text, prompt_name, f"text {i}")
        room = _room(encoder, document, window)
        if not 0 <= overlap < room:
            raise BadInput(
                f"overlap {overlap} is not between 0 and the {room} tokens of text in a window"
            )
        held.append((document, document.cut(room, overlap)))
        tokens += len(document.body)
        if tokens >= TOKENS_AT_ONCE:
            yield held
            held, tokens = [], 0
    if held:
        yield held


def _document(
    encoder: Encoder, text: str, prompt_name: str | None, which: str = "the document"
) -> _TokenizedDocument:
    if not isinstance(text, str):
        raise BadInput(f"{which} is a {type(text).__name__}, needs a string")
    ids, places = encoder.model.tokenizer.offsets(text, prompt=encoder.prompt_text(prompt_name))
    inside = np.flatnonzero(places[:, 1] >= 0)
    if len(inside) == 0:
        raise BadInput(f"{which} has no token this model knows; leave empty texts out")
    first, last = int(inside[0]), int(inside[-1]) + 1
    starts = np.maximum.accumulate(np.maximum(places[first:last, 0], 0))
    return _TokenizedDocument(ids[:first], ids[first:last], ids[last:], starts)


def _room(encoder: Encoder, document: _TokenizedDocument, limit: int | None) -> int:
    pass_tokens = encoder.max_length if limit is None else limit
    surrounding = len(document.lead) + len(document.trail)
    if not surrounding < pass_tokens <= encoder.max_length:
        raise BadInput(
            f"a pass of {pass_tokens} tokens must be more than the {surrounding} around every text"
            f" and at most the model's {encoder.max_length}"
        )
    return pass_tokens - surrounding


def _even_spans(document: _TokenizedDocument, chunk_tokens: int, characters: int) -> np.ndarray:
    if chunk_tokens < 1:
        raise BadInput(f"chunk_tokens is {chunk_tokens}, needs at least 1")
    starts = [int(document.starts[i]) for i in range(0, len(document.body), chunk_tokens)]
    edges = np.array(sorted({0, *starts[1:], characters}), dtype=np.int64)
    return np.stack([edges[:-1], edges[1:]], axis=1)


class _ChunkPooler:
    """Pools chunks from the states of one pass after the other, so that no more than one pass is
    held.
    """

    def __init__(self, encoder: Encoder, document: _TokenizedDocument, extents: np.ndarray) -> None:
        module = encoder.model.module
        self._last = isinstance(module, TransformerModel) and module.pooling is Pooling.LAST
        self._ranges = [document.states_of(int(start), int(stop)) for start, stop in extents]
        self._sums = torch.zeros(len(extents), encoder.embedding_dim)
        self._place = 0

    def add(self, states: torch.Tensor) -> None:
        begin, end = self._place, self._place + len(states)
        self._place = end
        for i, (first, stop) in enumerate(self._ranges):
            first = stop - 1 if self._last else first
            if first < end and stop > begin:
                self._sums[i] += states[max(first - begin, 0) : stop - begin].sum(0)

    def vectors(self) -> np.ndarray:
        sizes = [1 if self._last else stop - first for first, stop in self._ranges]
        return (self._sums / torch.tensor(sizes)[:, None]).numpy()
