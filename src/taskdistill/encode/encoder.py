"""The Encoder: texts in, vectors out, in input order and whatever the batch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from taskdistill.compress import truncate
from taskdistill.encode.batches import TOKEN_BUDGET, cores, run_batches, token_batches
from taskdistill.encode.shape import Shape, choose_shape
from taskdistill.errors import BadInput, Truncated, WorkFailed, nearest
from taskdistill.model.backbone import resolve
from taskdistill.model.folder import Model, read_model
from taskdistill.model.packed import pack
from taskdistill.model.student import StaticModel
from taskdistill.vocabulary import Precision, Role

WINDOW = 32_768
"""Texts tokenised and sorted together; bounds memory when a stream is encoded."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors and which texts were longer than the model reads."""

    vectors: np.ndarray
    truncated: np.ndarray


class Encoder:
    """A model ready to encode: one lock, so that calls from several threads take turns with the adapters."""

    def __init__(
        self, model: Model, *, threads: int | None = None, token_budget: int = TOKEN_BUDGET, default_task: str | None = None
    ) -> None:
        """Wrap a model in memory; `Encoder.load` reads one from a folder.

        Args:
            model: What `read_model` returns.
            threads: Workers; None for the cores of this machine.
            token_budget: Tokens of one batch.
            default_task: Task of a call that names none.

        Raises:
            BadInput: If the model has no adapter for the default task.
        """
        self.model = model
        self.default_task = default_task
        self.threads = threads or cores()
        self.token_budget = token_budget
        self._lock = threading.Lock()
        if default_task is not None:
            self.choose_task(default_task)

    @classmethod
    def load(
        cls, model: str | Path, *, threads: int | None = None, default_task: str | None = None, trust_remote_code: bool = False
    ) -> Encoder:
        """Read a model folder.

        Args:
            model: Our model folder, one in the published jina-v5 layout, any sentence-transformers folder, a Hub id, or
                `all-MiniLM-L6-v2` (embedded).
            threads: Workers; None for the cores of this machine.
            default_task: Task of a call that names none.
            trust_remote_code: Whether code named by the folder may run.

        Returns:
            The encoder.
        """
        folder = resolve(model)
        loaded = read_model(folder, trust_remote_code=trust_remote_code)
        if folder != Path(model):
            loaded.name = str(model)
        return cls(loaded, threads=threads, default_task=default_task)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have an adapter."""
        return tuple(self.model.module.tasks)

    @property
    def embedding_dim(self) -> int:
        """Size of an uncut vector."""
        return self.model.module.embedding_dim

    @property
    def matryoshka_dims(self) -> tuple[int, ...]:
        """Prefix sizes that the model was trained for."""
        return self.model.settings.matryoshka_dims

    @property
    def max_length(self) -> int:
        """Tokens of one text that the model reads."""
        return self.model.settings.max_length

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompt name to the text put before an input."""
        return self.model.settings.prompts

    @property
    def space_id(self) -> str:
        """Hash of everything that decides the base vectors."""
        return self.model.settings.space_id

    @property
    def model_hash(self) -> str:
        """Hash of every file of the model that decides vectors."""
        return self.model.hash

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = Role.DOCUMENT.value,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
        max_length: int | None = None,
        progress: Progress | None = None,
        refuse_truncation: bool = False,
    ) -> np.ndarray:
        """Turn texts into vectors: prompt, adapter, pooling, cut to size, unit length, precision (section 3.1).

        Texts longer than the model reads are cut with the warning `Truncated`, unless the call chose the limit itself.

        Args:
            texts: Strings.
            task: Adapter to use; None for the base.
            prompt_name: Which of the model's prompts goes before every text; None is read as `document`.
            prompt: A literal prompt instead.
            truncate_dim: Keep only the first coordinates, then scale to unit length.
            precision: float32, float16, int8 (by the model's stored ranges) or binary (packed sign bits).
            max_length: Most tokens of one text; None for the model's.
            progress: Called with (texts done, texts in all).
            refuse_truncation: Whether a text longer than `max_length` is an error.

        Returns:
            `(n, dim)` of float32, float16 or int8, or `(n, ceil(dim / 8))` of uint8 for binary.

        Raises:
            BadInput: If an argument is not one that this model knows, or a text has no token.
        """
        found = self.encode_reporting(
            texts,
            task=task,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate_dim=truncate_dim,
            precision=precision,
            max_length=max_length,
            progress=progress,
            refuse_truncation=refuse_truncation,
        )
        if max_length is None and found.truncated.any():
            told = f"{int(found.truncated.sum()):,} of {len(texts):,} texts are longer than the {self.max_length:,} tokens that {self.name} reads"
            warnings.warn(f"{told}; their ends were cut (encode_windows leaves nothing out)", Truncated, stacklevel=2)
        return found.vectors

    def encode_reporting(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = Role.DOCUMENT.value,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
        max_length: int | None = None,
        progress: Progress | None = None,
        refuse_truncation: bool = False,
    ) -> Encoded:
        """Encode as `encode` does, and say which texts were cut.

        Args:
            texts: Strings.
            task: See `encode`.
            prompt_name: See `encode`.
            prompt: See `encode`.
            truncate_dim: See `encode`.
            precision: See `encode`.
            max_length: See `encode`.
            progress: See `encode`.
            refuse_truncation: See `encode`.

        Returns:
            The vectors, and for each text whether its end was cut, `(n,)` of bool.

        Raises:
            BadInput: As `encode`, and for a text too long if truncation is refused.
        """
        if isinstance(texts, str):
            raise BadInput("encode takes a list of texts, got one string; put it into a list")
        head = self.prompt_text(prompt_name) if prompt is None else prompt
        limit = self._limit(max_length)
        task = self.choose_task(task)
        shape = choose_shape(self.model.settings, self.embedding_dim, task, truncate_dim, precision)
        out = np.zeros((len(texts), shape.width), dtype=shape.dtype)
        cut = np.zeros(len(texts), dtype=bool)
        for start in range(0, len(texts), WINDOW):
            window = list(texts[start : start + WINDOW])
            if wrong := next((i for i, text in enumerate(window) if not isinstance(text, str)), None):
                raise BadInput(f"text {start + wrong} is a {type(window[wrong]).__name__}, needs a string")
            tokens = self.model.tokenizer.ids(window, prompt=head, max_length=limit)
            stop = start + len(window)
            cut[start:stop] = tokens.truncated
            if refuse_truncation and tokens.truncated.any():
                first = start + int(tokens.truncated.argmax())
                raise BadInput(f"text {first} has more than {limit} tokens and truncation is refused; cut it or raise max_length")
            note = None if progress is None else _shifted(progress, start, len(texts))
            self._run(tokens.ids, task, shape, out[start:stop], start, note)
        return Encoded(out, cut)

    def encode_stream(self, texts: Iterable[str], *, window: int = WINDOW, **options: object) -> Iterator[np.ndarray]:
        """Encode a stream in bounded memory.

        Args:
            texts: Any iterable of strings.
            window: Texts held at once.
            **options: Keyword arguments of `encode`.

        Yields:
            Vectors of the next texts, in order.
        """
        source = iter(texts)
        while chunk := list(islice(source, window)):
            yield self.encode(chunk, **options)  # type: ignore[arg-type]

    def encode_ids(self, ids: Sequence[np.ndarray], *, task: str | None = None, progress: Progress | None = None) -> np.ndarray:
        """Encode texts that are tokens already, prompt and special tokens included.

        Args:
            ids: Token ids of each text, none longer than `max_length`.
            task: See `encode`.
            progress: See `encode`.

        Returns:
            float32 `(n, D)`, unit rows.

        Raises:
            BadInput: If a text has no token or too many.
        """
        if longest := max((len(row) for row in ids), default=0):
            self._limit(longest)
        task, shape = self.choose_task(task), Shape(self.embedding_dim, Precision.FLOAT32, None)
        out = np.zeros((len(ids), shape.width), dtype=shape.dtype)
        self._run(list(ids), task, shape, out, 0, progress)
        return out

    def token_states(self, ids: np.ndarray, *, task: str | None = None) -> torch.Tensor:
        """Give the state of every token of one text, from a single pass.

        Args:
            ids: Its token ids, at most `max_length`.
            task: See `encode`.

        Returns:
            `(tokens, D)` on the CPU, before pooling.

        Raises:
            BadInput: If there is no token or there are too many.
        """
        self._limit(len(ids))
        task, module = self.choose_task(task), self.model.module
        with self._lock, torch.inference_mode():
            module.select(task)
            try:
                if isinstance(module, StaticModel):
                    return module.table[torch.from_numpy(ids.astype(np.int64))]
                return module.hidden(pack([ids]).to(module.device)).float().cpu()
            finally:
                module.select(None)

    def prompt_text(self, prompt_name: str | None) -> str:
        """Look up a prompt.

        Args:
            prompt_name: Its name; None is read as `document`.

        Returns:
            The text put before an input; empty for a model without prompts.

        Raises:
            BadInput: If the model has prompts but none of this name.
        """
        name = prompt_name or Role.DOCUMENT.value
        if not self.prompts and name in tuple(Role):
            return ""
        if name not in self.prompts:
            raise BadInput(f"Unknown prompt_name: {name}{nearest(name, self.prompts or list(Role))}")
        return self.prompts[name]

    def choose_task(self, task: str | None) -> str | None:
        """Check a task, or choose the default one.

        Args:
            task: Name of an adapter, or None.

        Returns:
            The adapter to use; None for the base.

        Raises:
            BadInput: If the model has no such adapter, or needs a task and neither the call nor `default_task` names one.
        """
        chosen = self.default_task if task is None else task
        if chosen is None and self.model.settings.task_required:
            raise BadInput(
                f"model {self.name} needs a task ({', '.join(self.tasks)}): pass it with each call, encode(texts, task={self.tasks[0]!r}), "
                f"or once, Encoder.load({self.name!r}, default_task={self.tasks[0]!r}); on the command line, --task {self.tasks[0]}"
            )
        if chosen is not None and chosen not in self.tasks:
            hint = nearest(chosen, self.tasks) if self.tasks else "; this model has no adapters, so leave the task out"
            raise BadInput(f"Unknown task: {chosen}{hint}")
        return chosen

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Carry base vectors into the teacher's space through the stored projection.

        Args:
            vectors: float32 `(n, D)`, or prefixes `(n, k)`.

        Returns:
            float32 `(n, T)`, unit rows.

        Raises:
            BadInput: If the model folder holds no projection.
        """
        if self.model.projection is None:
            raise BadInput(f"model {self.name} has no projection.safetensors, so its vectors cannot be compared with its teacher's")
        with torch.inference_mode():
            return truncate(self.model.projection(torch.from_numpy(vectors)).numpy(), self.model.projection.weight.shape[0])

    def _limit(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_length
        if not 0 < max_length <= self.max_length:
            raise BadInput(f"max_length {max_length} is not between 1 and the {self.max_length} tokens that this model reads")
        return max_length

    def _run(self, ids: list[np.ndarray], task: str | None, shape: Shape, out: np.ndarray, start: int, progress: Progress | None) -> None:
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        if len(ids) and lengths.min() == 0:
            raise BadInput(f"text {start + int(lengths.argmin())} has no token this model knows; leave empty texts out")

        def work(batch: np.ndarray) -> None:
            with torch.inference_mode():
                vectors = self.model.module.embed([ids[i] for i in batch]).float().cpu().numpy()
            if not np.isfinite(vectors).all():
                raise WorkFailed(
                    f"the model gave values that are not finite for text {start + int(batch[0])} or a neighbour; its weights are damaged"
                )
            out[batch] = shape.finish(vectors)

        with self._lock:
            self.model.module.select(task)
            try:
                budget = self.token_budget if hasattr(self.model.module, "backbone") else 64 * self.token_budget
                run_batches(token_batches(lengths, budget), work, self.threads, progress)
            finally:
                self.model.module.select(None)


def _shifted(progress: Progress, start: int, total: int) -> Progress:
    return lambda done, _: progress(start + done, total)
