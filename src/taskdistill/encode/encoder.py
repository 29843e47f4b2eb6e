"""The Encoder: texts in, vectors out, in input order and whatever the batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from taskdistill.device import AUTO, CPU, placement
from taskdistill.encode.backends import automatic, choose_place, open_backend
from taskdistill.encode.batches import cores
from taskdistill.encode.output_format import resolve_output
from taskdistill.encode.placement import default_budget, to_device
from taskdistill.encode.properties import ModelProperties
from taskdistill.encode.runner import (
    EncodedTexts,
    EncodeOptions,
    EncodeRequest,
    Progress,
    Runner,
    TaskChoice,
    check_limit,
    chunks_of,
    token_states,
    tokenized,
)
from taskdistill.errors import BadInput, TruncationWarning, did_you_mean
from taskdistill.model.backbone import resolve
from taskdistill.model.folder import read_model
from taskdistill.model.model import Model
from taskdistill.model.student import StaticModel
from taskdistill.quantization import truncate
from taskdistill.tasks import Role
from taskdistill.types import Backend, Precision

WINDOW = 8_192
"""Texts tokenised and sorted together; bounds memory when a stream is encoded."""

STATIC_FACTOR = 64
"""How many times more tokens a batch of a static model has: it only looks rows up."""


class Encoder(ModelProperties):
    """A model ready to encode: one lock, so that calls from several threads take turns with the
    adapters.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None = None,
        token_budget: int | None = None,
        default_task: str | None = None,
        backend: str = Backend.TORCH.value,
        calibration: Sequence[str] | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        """Wrap a model in memory, where it is; `Encoder.load` reads one from a folder.

        `threads`: workers on a CPU; None for the cores of this machine. `token_budget`: tokens of
        one batch; None for what suits the device and its free memory. `default_task`: task of a
        call that names none. `compute`: arithmetic of the passes by autocast, for a model whose
        weights must stay as they are; None for that of the weights. Raises BadInput if the model
        has no adapter for the default task, or cannot run in the back end.
        """
        self.model = model
        self.default_task = default_task
        self.adapter_tasks, self.extends = model.settings.adapter_tasks, model.earlier_hashes
        self.threads = threads or cores()
        self._backend_name = automatic(model).value if backend == Backend.AUTO else backend
        self.backend = open_backend(backend, model, threads=self.threads, calibration=calibration)
        workers = self.threads if self.device == CPU else 1
        self.token_budget = token_budget or default_budget(model.module, workers)
        budget = self.token_budget * (STATIC_FACTOR if isinstance(model.module, StaticModel) else 1)
        self._runner = Runner(
            backend=self.backend,
            threads=workers,
            budget=budget,
            autocast=None if compute is None else (self.device, compute),
        )
        self._compute = compute
        if default_task is not None:
            self.choose_task(default_task)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        threads: int | None = None,
        token_budget: int | None = None,
        default_task: str | None = None,
        backend: str = Backend.TORCH.value,
        calibration: Sequence[str] | None = None,
        device: str = AUTO,
        dtype: str = AUTO,
        trust_remote_code: bool = False,
    ) -> Encoder:
        """Read a model folder.

        `model`: our model folder, one in the published jina-v5 layout, any sentence-transformers
        folder, a Hub id, or `all-MiniLM-L6-v2` (embedded). `threads`: workers on a CPU; None for
        the cores of this machine. `token_budget`: tokens of one batch; None for what suits the
        device and its free memory. `default_task`: task of a call that names none. `backend`:
        torch, int8 (rounded weights and inputs: other vectors, see `encode.check.int8_cosines`),
        onnxruntime, openvino, or auto, the fastest that gives the model's own vectors.
        `calibration`: texts like those to be encoded, for int8; None for fixed ones. `device`: auto
        (an accelerator where there is one; the CPU for static models and other back ends), or any
        that torch knows. `dtype`: arithmetic of the weights: bfloat16 or float16 where the hardware
        has it; auto is float32 everywhere. `trust_remote_code`: whether code named by the folder
        may run.
        """
        (place, kind), folder = choose_place(device, dtype, backend), resolve(model)
        loaded = read_model(folder, trust_remote_code=trust_remote_code)
        if folder != Path(model):
            loaded.name = str(model)
        to_device(
            loaded.module,
            CPU if device == AUTO and isinstance(loaded.module, StaticModel) else place,
            kind,
        )
        return cls(
            loaded,
            threads=threads,
            token_budget=token_budget,
            default_task=default_task,
            backend=backend,
            calibration=calibration,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of its passes."""
        return self._compute or next(self.model.module.parameters()).dtype

    @property
    def placement(self) -> str:
        """Device, arithmetic, and the back end where it is not torch, in a few words."""
        return placement(self.device, self.dtype) + (
            "" if self.backend is self.model.module else f", back end {self._backend_name}"
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: TaskChoice = None,
        prompt_name: str | None = Role.DOCUMENT.value,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
        max_length: int | None = None,
        progress: Progress | None = None,
        refuse_truncation: bool = False,
    ) -> np.ndarray:
        """Turn texts into vectors: prompt, adapter, pooling, cut to size, unit length, precision
        (section 3.1).

        Texts longer than the model reads are cut with the warning `Truncated`, unless the call
        chose the limit itself. `task`: adapter to use; None for the base; or a list with one a
        text, which are encoded task by task. `prompt_name`: which of the model's prompts goes
        before every text; None is read as `document`. `truncate_dim`: keep only the first
        coordinates, then scale to unit length. `precision`: float32, float16, int8 (by the model's
        stored ranges) or binary (packed sign bits). `max_length`: most tokens of one text; None for
        the model's. `progress`: called with (texts done, texts in all). `refuse_truncation`:
        whether a text longer than `max_length` is an error. Returns `(n, dim)` of float32, float16
        or int8, or `(n, ceil(dim / 8))` of uint8 for binary. Raises BadInput if an argument is not
        one that this model knows, or a text has no token.
        """
        result = self.encode_reporting(
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
        if max_length is None and result.truncated.any():
            warning = (
                f"{int(result.truncated.sum()):,} of {len(texts):,} texts are longer than the"
                f" {self.max_length:,} tokens that {self.name} reads"
            )
            warnings.warn(
                f"{warning}; their ends were cut (encode_windows leaves nothing out)",
                TruncationWarning,
                stacklevel=2,
            )
        return result.vectors

    def encode_reporting(
        self,
        texts: Sequence[str],
        *,
        progress: Progress | None = None,
        **options: Unpack[EncodeOptions],
    ) -> EncodedTexts:
        """Encode as `encode` does, and say which texts were cut.

        Returns the vectors, and for each text whether its end was cut, `(n,)` of bool. Raises
        BadInput as `encode`.
        """
        if isinstance(texts, str):
            raise BadInput("encode takes a list of texts, got one string; put it into a list")
        call = self._call(len(texts), **options)
        out, cut = call.empty(len(texts)), np.zeros(len(texts), dtype=bool)
        chunks = (list(texts[start : start + WINDOW]) for start in range(0, len(texts), WINDOW))
        note = None if progress is None else lambda done, _: progress(done, len(texts))
        for start, tokens in tokenized(self.model.tokenizer, chunks, call):
            stop = start + len(tokens.ids)
            cut[start:stop] = tokens.truncated
            self._runner.run(tokens.ids, call, out[start:stop], start, note)
        return EncodedTexts(out, cut)

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        window: int = WINDOW,
        progress: Progress | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[np.ndarray]:
        """Encode a stream in bounded memory; the next texts are read and tokenised while the ones
        before are encoded.

        `progress`: called with (texts done, texts read so far). `**options`: see `encode`; one task
        for all. Yields vectors of the next texts, in order.
        """
        for encoded in self.stream_reporting(
            chunks_of(texts, window), progress=progress, **options
        ):
            yield encoded.vectors

    def stream_reporting(
        self,
        chunks: Iterable[list[str]],
        *,
        progress: Progress | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[EncodedTexts]:
        """Encode chunk after chunk, as `encode_stream`.

        `progress`: called with (texts done, texts read so far). `**options`: see `encode`; one task
        for all. Yields vectors of each chunk, and which of its texts were cut. Raises BadInput as
        `encode`.
        """
        if not isinstance(options.get("task"), str | None):
            raise BadInput(
                "a stream has one task for all its texts; encode a list to give each text its own"
            )
        call = self._call(0, **options)
        for start, tokens in tokenized(self.model.tokenizer, chunks, call):
            out = call.empty(len(tokens.ids))
            self._runner.run(tokens.ids, call, out, start, progress)
            yield EncodedTexts(out, tokens.truncated)

    def encode_ids(
        self, ids: Sequence[np.ndarray], *, task: str | None = None, pooled: bool = False
    ) -> np.ndarray:
        """Encode texts that are tokens already, prompt and special tokens included.

        `ids`: token ids of each text, none longer than `max_length`. Returns float32 `(n, D)`; unit
        rows unless `pooled`. Raises BadInput if a text has no token or too many.
        """
        if longest := max((len(row) for row in ids), default=0):
            check_limit(longest, self.max_length)
        call = self._call(0, task=task, prompt="")
        out = call.empty(len(ids))
        self._runner.run(list(ids), call.pooled() if pooled else call, out, 0, None)
        return out

    def token_states(self, ids: np.ndarray, *, task: str | None = None) -> torch.Tensor:
        """Give the state of every token of one text, from a single pass, in the back end torch.

        `ids`: its token ids, at most `max_length`. Returns `(tokens, D)` on the CPU, before
        pooling.
        """
        check_limit(len(ids), self.max_length)
        with self._runner.turn(self.choose_task(task)), torch.inference_mode():
            return token_states(self.backend, ids)

    def prompt_text(self, prompt_name: str | None) -> str:
        """Look up a prompt.

        `prompt_name`: its name; None is read as `document`. Returns the text put before an input;
        empty for a model without prompts. Raises BadInput if the model has prompts but none of this
        name.
        """
        name = prompt_name or Role.DOCUMENT.value
        if not self.prompts and name in tuple(Role):
            return ""
        if name not in self.prompts:
            raise BadInput(
                f"Unknown prompt_name: {name}{did_you_mean(name, self.prompts or list(Role))}"
            )
        return self.prompts[name]

    def choose_task(self, task: str | None) -> str | None:
        """Check a task, or choose the default one.

        `task`: name of an adapter, or None. Returns the adapter to use; None for the base. Raises
        BadInput if the model has no such adapter, or needs a task and neither the call nor
        `default_task` names one.
        """
        chosen = self.default_task if task is None else task
        if chosen is None and self.model.settings.task_required:
            raise BadInput(
                f"model {self.name} needs a task ({', '.join(self.tasks)}): pass it with each call,"
                f" encode(texts, task={self.tasks[0]!r}), or once, Encoder.load({self.name!r},"
                f" default_task={self.tasks[0]!r}); on the command line, --task {self.tasks[0]}"
            )
        if chosen is not None and chosen not in self.tasks:
            hint = (
                did_you_mean(chosen, self.tasks)
                if self.tasks
                else "; this model has no adapters, so leave the task out"
            )
            raise BadInput(f"Unknown task: {chosen}{hint}")
        return chosen

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Carry base vectors into the teacher's space through the stored projection.

        `vectors`: float32 `(n, D)`, or prefixes `(n, k)`. Returns float32 `(n, T)`, unit rows.
        Raises BadInput if the model folder holds no projection.
        """
        if self.model.projection is None:
            raise BadInput(
                f"model {self.name} has no projection.safetensors, so its vectors cannot be"
                " compared with its teacher's"
            )
        with torch.inference_mode():
            return truncate(
                self.model.projection(torch.from_numpy(vectors)).numpy(),
                self.model.projection.weight.shape[0],
            )

    def _call(
        self,
        count: int,
        *,
        task: TaskChoice = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
        max_length: int | None = None,
        refuse_truncation: bool = False,
    ) -> EncodeRequest:
        """Check every argument of a call before the first text is touched; a name that is none of
        `EncodeOptions` is a TypeError, as in any call.
        """
        if task is None or isinstance(task, str):
            tasks, names = None, [self.choose_task(task)]
        else:
            if len(task) != count:
                raise BadInput(
                    f"{count} texts came with {len(task)} tasks; give one task for all, or one a"
                    " text"
                )
            tasks = [self.choose_task(name) for name in task]
            names = list(dict.fromkeys(tasks)) or [self.choose_task(None)]
        head = self.prompt_text(prompt_name) if prompt is None else prompt
        return EncodeRequest(
            head=head,
            limit=check_limit(max_length, self.max_length, self.model.tokenizer, head),
            tasks=tasks,
            shapes={
                name: resolve_output(
                    self.model.settings,
                    self.embedding_dim,
                    name,
                    truncate_dim,
                    precision,
                    prompt_name,
                )
                for name in names
            },
            refuse_truncation=refuse_truncation,
        )
