"""Models that turn token ids into vectors: a transformer on the packed stream, and a static token table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskdistill.errors import BadInput, nearest
from taskdistill.model.adapters import active_adapter
from taskdistill.model.backbone import first_position
from taskdistill.model.packed import Packed, can_pack, pack
from taskdistill.model.pooling import pool
from taskdistill.vocabulary import Pooling


class TokenModel(Protocol):
    """What training and encoding need of a model."""

    tasks: list[str]
    embedding_dim: int

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors `(texts, D)`, in the order given, not normalised."""
        ...

    def select(self, task: str | None) -> None:
        """Switch to a task's adapter, or to the base."""
        ...


class TransformerModel(nn.Module):
    """Backbone, pooling and the adapters on it."""

    def __init__(self, backbone: PreTrainedModel, pooling: Pooling) -> None:
        """Join a backbone and a pooling.

        Args:
            backbone: Model whose attention implementation is the packed one.
            pooling: How tokens become one vector.
        """
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.tasks: list[str] = []
        self.embedding_dim: int = backbone.config.hidden_size
        self.first_position = first_position(backbone)
        self.packs = can_pack(backbone)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.backbone.device
        return device

    def select(self, task: str | None) -> None:
        """Switch to a task's adapter.

        Args:
            task: Name of an adapter, or None for the base.

        Raises:
            BadInput: If the model has no such adapter.
        """
        if task is not None and task not in self.tasks:
            hint = nearest(task, self.tasks) if self.tasks else "; it has no adapters, so leave the task out"
            raise BadInput(f"this model has no adapter for task {task!r}{hint}")
        active_adapter(self.backbone, task)

    def token_vectors(self, packed: Packed) -> Tensor:
        """Look up the token table.

        Args:
            packed: A stream.

        Returns:
            `(tokens, hidden size)`.
        """
        return self.backbone.get_input_embeddings()(packed.ids)  # type: ignore[no-any-return]

    def hidden(self, packed: Packed, token_vectors: Tensor | None = None) -> Tensor:
        """Run the backbone over a stream.

        Args:
            packed: The stream.
            token_vectors: Rows of the token table to use instead of looking them up.

        Returns:
            Hidden states `(tokens, D)`.
        """
        name, tokens = ("input_ids", packed.ids) if token_vectors is None else ("inputs_embeds", token_vectors)
        if self.packs:
            positions = packed.positions + self.first_position
            states = self.backbone(**{name: tokens[None]}, position_ids=positions[None], groups=packed.groups, use_cache=False)
            return states.last_hidden_state[0]  # type: ignore[no-any-return]
        runs = [tokens[first : first + n * length].view(n, length, *tokens.shape[1:]) for first, n, length in packed.groups.runs]
        return torch.cat([self.backbone(**{name: run}).last_hidden_state.flatten(0, 1) for run in runs])

    def pooled(self, packed: Packed, token_vectors: Tensor | None = None) -> Tensor:
        """Run the backbone and pool.

        Args:
            packed: The stream.
            token_vectors: See `hidden`.

        Returns:
            `(texts, D)` in stream order, not normalised.
        """
        return pool(self.hidden(packed, token_vectors), packed.groups, self.pooling)

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors.

        Args:
            ids: Token ids of each text.

        Returns:
            `(texts, D)` in the order given, not normalised.
        """
        packed = pack(ids).to(self.device)
        vectors = self.pooled(packed)
        return torch.empty_like(vectors).index_copy(0, packed.order, vectors)


class StaticModel(nn.Module):
    """One vector per token; a text is the mean of its tokens' vectors, whose lengths are the weights."""

    def __init__(self, table: Tensor) -> None:
        """Take a token table.

        Args:
            table: `(vocabulary, D)`.
        """
        super().__init__()
        self.table = nn.Parameter(table)
        self.tasks: list[str] = []
        self.embedding_dim: int = table.shape[1]

    def select(self, task: str | None) -> None:
        """Refuse a task: a static model has no adapters.

        Args:
            task: Must be None.

        Raises:
            BadInput: If a task is asked for.
        """
        if task is not None:
            raise BadInput(f"a static model has no adapter for task {task!r}; leave the task out")

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors.

        Args:
            ids: Token ids of each text.

        Returns:
            `(texts, D)`, not normalised; a text without tokens gives a zero vector.
        """
        lengths = np.fromiter((len(text) for text in ids), dtype=np.int64, count=len(ids))
        flat = np.concatenate(ids).astype(np.int64) if len(ids) else np.zeros(0, np.int64)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64))
        device = self.table.device
        return F.embedding_bag(torch.from_numpy(flat).to(device), self.table, offsets.to(device), mode="mean")
