"""One call of the encoder as it runs: chunks tokenised one ahead, texts grouped by task, batches
given to workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypedDict, TypeVar

import numpy as np
import torch

from taskdistill.encode.batches import run_batches, token_batches
from taskdistill.encode.output_format import OutputFormat
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.folder_check import prompt_tokens
from taskdistill.model.packed import pack
from taskdistill.model.student import StaticModel, TokenModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer, TokenizedTexts

Progress = Callable[[int, int], None]
TaskChoice = str | Sequence[str | None] | None
"""One task for all texts, or one a text; None is the base."""

Input = TypeVar("Input")
Output = TypeVar("Output")


class VectorOptions(TypedDict, total=False):
    """What decides the form of a vector, whatever is encoded."""

    prompt_name: str | None
    truncate_dim: int | None
    precision: str


class PassOptions(VectorOptions, total=False):
    """`VectorOptions`, and how much of a text one pass reads."""

    max_length: int | None


class EncodeOptions(PassOptions, total=False):
    """Arguments of `Encoder.encode`."""

    task: TaskChoice
    prompt: str | None
    refuse_truncation: bool


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Vectors and which texts were longer than the model reads."""

    vectors: np.ndarray
    truncated: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
    """What is asked for, checked before the first text is touched."""

    head: str
    """Prompt."""
    limit: int
    """Most tokens of one text."""
    tasks: list[str | None] | None
    """Task of each text, or None where all have the same."""
    shapes: dict[str | None, OutputFormat]
    """Each task to the shape of its vectors; all have one size and type."""
    refuse_truncation: bool

    def empty(self, texts: int) -> np.ndarray:
        """Make room for the vectors of some texts. Returns zeros `(texts, width)`."""
        shape = next(iter(self.shapes.values()))
        return np.zeros((texts, shape.width), dtype=shape.dtype)

    def pooled(self) -> EncodeRequest:
        """Return the same call for vectors as the model gives them."""
        return replace(
            self, shapes={name: replace(shape, pooled=True) for name, shape in self.shapes.items()}
        )

    def groups(self, start: int, count: int) -> Iterator[tuple[str | None, np.ndarray]]:
        """Group some of the texts by task.

        Yields a task, and which of these texts have it, `(n,)`, ascending.
        """
        if self.tasks is None:
            yield next(iter(self.shapes)), np.arange(count)
            return
        group_tasks = self.tasks[start : start + count]
        for task in dict.fromkeys(group_tasks):
            yield task, np.array([i for i, name in enumerate(group_tasks) if name == task])


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A back end, its workers, and the lock with which calls from several threads take turns."""

    backend: TokenModel
    threads: int
    budget: int
    """Tokens of one batch."""
    autocast: tuple[torch.device, torch.dtype] | None = None
    """Where and in which arithmetic passes run, if not in that of the weights."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def turn(self, task: str | None) -> Iterator[None]:
        """Take the back end for one task, alone. `task`: adapter; None for the base."""
        with self.lock:
            self.backend.select(task)
            try:
                yield
            finally:
                self.backend.select(None)

    def run(
        self,
        ids: list[np.ndarray],
        call: EncodeRequest,
        out: np.ndarray,
        start: int,
        progress: Progress | None,
    ) -> None:
        """Encode tokenised texts, task by task.

        `out`: filled with the vectors, `(texts, width)`, in order. `progress`: called with (texts
        of the call done, texts of the call so far). Raises BadInput if a text has no token.
        """
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        if len(ids) and lengths.min() == 0:
            raise BadInput(
                f"text {start + int(lengths.argmin())} has no token this model knows; leave empty"
                " texts out"
            )
        done = start
        for task, rows in call.groups(start, len(ids)):
            note = None if progress is None else _shifted(progress, done, start + len(ids))
            self._run_task(task, rows, ids, lengths[rows], call.shapes[task], out, start, note)
            done += len(rows)

    def _run_task(
        self,
        task: str | None,
        rows: np.ndarray,
        ids: list[np.ndarray],
        lengths: np.ndarray,
        shape: OutputFormat,
        out: np.ndarray,
        start: int,
        progress: Progress | None,
    ) -> None:
        def work(batch: np.ndarray) -> None:
            chosen = rows[batch]
            with torch.inference_mode(), self._arithmetic():
                vectors = self.backend.embed([ids[i] for i in chosen]).float().cpu().numpy()
            if not np.isfinite(vectors).all():
                first = start + int(chosen[0])
                raise WorkFailed(
                    f"the model gave values that are not finite for text {first} or a neighbour;"
                    " its weights are damaged"
                )
            out[chosen] = shape.finish(vectors)

        with self.turn(task):
            run_batches(token_batches(lengths, self.budget), work, self.threads, progress)

    def _arithmetic(self) -> AbstractContextManager[object]:
        """Give the context of a pass; autocast belongs to a thread, so each batch enters it."""
        return (
            nullcontext()
            if self.autocast is None
            else torch.autocast(self.autocast[0].type, self.autocast[1])
        )


def check_limit(
    max_length: int | None,
    model_limit: int,
    tokenizer: TextTokenizer | None = None,
    prompt: str = "",
) -> int:
    """Check the most tokens of one text, and that a prompt leaves some of them to the text: all
    would have one vector otherwise.

    `max_length`: what was asked for; None for all that the model reads. `model_limit`: tokens that
    the model reads. `tokenizer`: the model's, where there is a prompt. Raises BadInput if the model
    does not read that many, or prompt and special tokens fill them.
    """
    limit = model_limit if max_length is None else max_length
    if not 0 < limit <= model_limit:
        raise BadInput(
            f"max_length {max_length} is not between 1 and the {model_limit} tokens that this model"
            " reads"
        )
    if tokenizer is not None and (tokens := prompt_tokens(tokenizer, prompt)) >= limit:
        raise BadInput(
            f"the prompt takes {tokens:,} tokens with those around every text, and {limit:,} are"
            " read: nothing of a text would be left; give a shorter prompt or a larger max_length"
        )
    return limit


def tokenized(
    tokenizer: TextTokenizer, chunks: Iterable[list[str]], call: EncodeRequest
) -> Iterator[tuple[int, TokenizedTexts]]:
    """Tokenise chunk after chunk, one ahead of the caller.

    Yields how many texts came before a chunk, and its tokens. Raises BadInput if a text is no
    string, or too long where truncation is refused.
    """

    def tokenise(chunk: tuple[int, list[str]]) -> tuple[int, TokenizedTexts]:
        start, texts = chunk
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise BadInput(f"text {start + i} is a {type(text).__name__}, needs a string")
        tokens = tokenizer.ids(texts, prompt=call.head, max_length=call.limit)
        if call.refuse_truncation and tokens.truncated.any():
            first = start + int(tokens.truncated.argmax())
            raise BadInput(
                f"text {first} has more than {call.limit} tokens and truncation is refused; cut it"
                " or raise max_length"
            )
        return start, tokens

    yield from prefetch(_counted(chunks), tokenise)


def _counted(chunks: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    start = 0
    for chunk in chunks:
        yield start, chunk
        start += len(chunk)


def chunks_of(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut a stream into lists."""
    source = iter(texts)
    while chunk := list(islice(source, size)):
        yield chunk


def prefetch(items: Iterable[Input], work: Callable[[Input], Output]) -> Iterator[Output]:
    """Do a piece of work on each item, in a thread, while the caller handles the result of the one
    before.

    `work`: called with each, in order. Yields the results, in order; at most two are there at once.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            coming = pool.submit(work, item)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def token_states(backend: TokenModel, ids: np.ndarray) -> torch.Tensor:
    """Give the state of every token of one text, from a single pass.

    Returns `(tokens, D)` on the CPU, before pooling. Raises BadInput if the back end gives vectors
    of whole texts only.
    """
    if isinstance(backend, StaticModel):
        return (
            backend.table[torch.from_numpy(ids.astype(np.int64)).to(backend.table.device)]
            .float()
            .cpu()
        )
    if not isinstance(backend, TransformerModel):
        raise BadInput(
            "states of single tokens come from the back end torch only; load the model with it"
        )
    return backend.hidden(pack([ids]).to(backend.device)).float().cpu()


def _shifted(progress: Progress, start: int, total: int) -> Progress:
    return lambda done, _: progress(start + done, total)
