"""The model as the server uses it: tokenised in one thread, run by several, each with its own
choice of adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.joined_texts import JoinedTexts, join_texts
from taskdistill.errors import BadInput, WorkFailed

SHORT_WORKER_TOKENS = 256
"""Tokens of a batch of the express lane."""


class AdapterView(Protocol):
    """A model that one thread uses."""

    def embed(self, ids: Sequence[np.ndarray], task: str | None) -> np.ndarray:
        """Return float32 `(texts, dim)`, not cut and not scaled."""
        ...

    def embed_chunks(self, ids: np.ndarray, spans: np.ndarray, task: str | None) -> np.ndarray:
        """Return float32 `(chunks, dim)` of one text, not cut and not scaled."""
        ...


class Engine(Protocol):
    """What the queue needs of a model."""

    workers: int
    """Threads that compute batches of any texts."""
    has_short_worker: bool
    """Whether one more thread computes short texts while long ones occupy the others."""
    budget: int
    """Tokens of a batch."""
    embedding_dim: int

    def view(self) -> AdapterView:
        """Return the model for one more thread."""
        ...


class EncoderEngine:
    """An Encoder, shared by threads without turns.

    Every thread gets a copy of the model's modules that shares all weights, so that each has its
    own active adapter at no cost in memory. The Encoder itself stays free for whoever holds it.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder and bring its weights into memory.

        Weights are read through a memory map; were the file overwritten in place, the process would
        be killed by SIGBUS. Raises BadInput if it runs in another back end than torch.
        """
        module = encoder.model.module
        if encoder.backend is not module:
            raise BadInput(
                "the server runs its model in torch, each thread with an adapter of its own; load"
                " it without another back end"
            )
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
        static = not hasattr(module, "backbone")
        on_cpu = next(module.parameters()).device.type == "cpu"
        self._module = module
        self._encoder = encoder
        self.workers = encoder.threads if on_cpu else 1
        self.has_short_worker = on_cpu and not static
        self.budget = encoder.token_budget * (64 if static else 1)
        self.embedding_dim = encoder.embedding_dim

    def tokens(
        self, texts: Sequence[str], prompt: str, max_length: int
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Tokenise texts behind a prompt.

        `max_length`: most tokens of one text. Returns ids of each text, and which texts were cut,
        `(texts,)` of bool.
        """
        tokens = self._encoder.model.tokenizer.ids(texts, prompt=prompt, max_length=max_length)
        return tokens.ids, tokens.truncated

    def joined(self, texts: Sequence[str], prompt: str) -> JoinedTexts:
        """Tokenise texts as one document, for late chunking.

        Returns its ids and the tokens of each text.
        """
        return join_texts(self._encoder, texts, prompt)

    def view(self) -> TorchAdapterView:
        """Return the model for one more thread.

        Returns modules of their own around the same weights.
        """
        return TorchAdapterView(self._module)


class TorchAdapterView:
    """Modules of one thread around weights that all threads share."""

    def __init__(self, module: Any) -> None:
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self._module = copy.deepcopy(module, shared)
        self._task: str | None = None
        self._module.select(None)

    def embed(self, ids: Sequence[np.ndarray], task: str | None) -> np.ndarray:
        """Compute vectors.

        `task`: adapter, or None for the base. Returns float32 `(texts, dim)`, not cut and not
        scaled. Raises WorkFailed if a value is not finite.
        """
        self._select(task)
        with torch.inference_mode():
            return _finite(self._module.embed(ids))

    def embed_chunks(self, ids: np.ndarray, spans: np.ndarray, task: str | None) -> np.ndarray:
        """Compute the vectors of the chunks of one text, each of which has seen the rest of it.

        `spans`: first token and the one after the last of each chunk, `(chunks, 2)`. `task`:
        adapter, or None for the base. Returns float32 `(chunks, dim)`, not cut and not scaled.
        Raises WorkFailed if a value is not finite.
        """
        self._select(task)
        with torch.inference_mode():
            return _finite(JoinedTexts(ids, spans).embed(self._module))

    def _select(self, task: str | None) -> None:
        if task != self._task:
            self._module.select(task)
            self._task = task


def _finite(vectors: torch.Tensor) -> np.ndarray:
    array: np.ndarray = vectors.float().cpu().numpy()
    if not np.isfinite(array).all():
        raise WorkFailed("the model gave values that are not finite")
    return array
