"""Models that turn token ids into vectors: a transformer on the packed stream, and a static token
table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.model.backbone import first_position
from taskdistill.model.families import (
    Batching,
    batching_of,
    check_ids,
    embedding_scale,
    own_forward,
    tolerance_of,
)
from taskdistill.model.lora import set_active_adapter
from taskdistill.model.packed import PackedBatch, pack
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.pooling import pool
from taskdistill.types import Pooling

LIKE_LENGTHS = 0.75
"""The shortest text of a padded batch has at least this share of its longest one's tokens, which
bounds what is computed in vain.
"""

TRIED_LENGTH = 7
"""Tokens of the text on which training is tried."""


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

        `backbone`: a model of transformers; a family that can be packed is switched to the packed
        attention. `pooling`: how tokens become one vector.
        """
        super().__init__()
        self.batching = batching_of(backbone)
        if self.batching is Batching.PACKED and backbone.config._attn_implementation != ATTENTION:
            backbone.set_attn_implementation(ATTENTION)
        self.backbone = backbone
        self.pooling = pooling
        self.tasks: list[str] = []
        self.embedding_dim: int = backbone.config.hidden_size
        self.first_position = first_position(backbone)
        self.embedding_scale = embedding_scale(backbone)

    @property
    def packs(self) -> bool:
        """Whether texts share one stream."""
        return self.batching is Batching.PACKED

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.backbone.device
        return device

    def select(self, task: str | None) -> None:
        """Switch to a task's adapter.

        `task`: name of an adapter, or None for the base. Raises BadInput if the model has no such
        adapter.
        """
        if task is not None and task not in self.tasks:
            hint = (
                did_you_mean(task, self.tasks)
                if self.tasks
                else "; it has no adapters, so leave the task out"
            )
            raise BadInput(f"this model has no adapter for task {task!r}{hint}")
        set_active_adapter(self.backbone, task)

    def token_vectors(self, packed: PackedBatch) -> Tensor:
        """Look up the rows of the token table, as they stand there, for `hidden`.

        Returns `(tokens, hidden size)`.
        """
        return F.embedding(packed.ids, self.backbone.get_input_embeddings().weight)

    @torch.no_grad()
    def check_training(self, *, table: bool) -> None:
        """Try on a short text that training computes what encoding will.

        `table`: whether the token table is trained, by its rows instead of ids. Raises BadInput if
        the backbone does something at random in training, or rows give other states than ids
        because the family reads ids elsewhere too or norms what it looks up, so that no gradient of
        the table would be right.
        """
        packed = pack([check_ids(self.backbone, TRIED_LENGTH)[0].cpu().numpy()]).to(self.device)
        training, kind = self.training, type(self.backbone).__name__
        try:
            expected = self.eval().hidden(packed)
            random = not _near(self.train().hidden(packed), expected)
            rows = table and not _near(
                self.eval().hidden(packed, self.token_vectors(packed)), expected
            )
        finally:
            self.train(training)
        if random:
            raise BadInput(
                f"a {kind} does something at random in training that cannot be switched off here;"
                " take a family of docs/families.md"
            )
        if rows:
            raise BadInput(
                f"the token table of a {kind} cannot be trained here: the family reads token ids"
                " elsewhere too, or changes rows when it looks them up; train adapters only, or"
                " take a family of docs/families.md"
            )

    def hidden(self, packed: PackedBatch, token_vectors: Tensor | None = None) -> Tensor:
        """Run the backbone over a stream.

        `token_vectors`: rows of the token table to use instead of looking them up. Returns hidden
        states `(tokens, D)`.
        """
        tokens = packed.ids if token_vectors is None else token_vectors * self.embedding_scale
        if self.batching is Batching.PACKED:
            name = "input_ids" if token_vectors is None else "inputs_embeds"
            positions = packed.positions + self.first_position
            states = self.backbone(
                **{name: tokens[None]},
                position_ids=positions[None],
                groups=packed.groups,
                use_cache=False,
            )
            return states.last_hidden_state[0]  # type: ignore[no-any-return]
        if self.batching is Batching.PADDED:
            return torch.cat(
                [self._padded(tokens, runs) for runs in like_lengths(packed.groups.runs)]
            )
        runs = [
            tokens[first : first + n * length].view(n, length, *tokens.shape[1:])
            for first, n, length in packed.groups.runs
        ]
        return torch.cat([own_forward(self.backbone, run).flatten(0, 1) for run in runs])

    def _padded(self, tokens: Tensor, runs: Sequence[tuple[int, int, int]]) -> Tensor:
        """Run texts of like length as one batch, padded on the right by their own last tokens,
        which the mask hides.
        """
        lengths = torch.tensor(
            [length for _, count, length in runs for _ in range(count)], device=tokens.device
        )
        starts = lengths.cumsum(0) - lengths + runs[0][0]
        places = torch.arange(runs[-1][2], device=tokens.device)
        mask = places < lengths[:, None]
        states = own_forward(
            self.backbone,
            tokens[starts[:, None] + places.minimum(lengths[:, None] - 1)],
            mask.long(),
        )
        return states[mask]

    def pooled(self, packed: PackedBatch, token_vectors: Tensor | None = None) -> Tensor:
        """Run the backbone and pool. Returns `(texts, D)` in stream order, not normalised."""
        return pool(self.hidden(packed, token_vectors), packed.groups, self.pooling)

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors. Returns `(texts, D)` in the order given, not normalised."""
        packed = pack(ids).to(self.device)
        vectors = self.pooled(packed)
        return torch.empty_like(vectors).index_copy(0, packed.order, vectors)


def _near(result: Tensor, expected: Tensor) -> bool:
    return bool((result - expected).abs().max() <= tolerance_of(expected))


def like_lengths(runs: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Cut the runs of a stream, shortest texts first, into batches of like length."""
    batches: list[list[tuple[int, int, int]]] = []
    for run in runs:
        if batches and batches[-1][0][2] >= LIKE_LENGTHS * run[2]:
            batches[-1].append(run)
        else:
            batches.append([run])
    return batches


class StaticModel(nn.Module):
    """One vector per token; a text is the mean of its tokens' vectors, whose lengths are the
    weights.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.tasks: list[str] = []
        self.embedding_dim: int = table.shape[1]

    def select(self, task: str | None) -> None:
        """Refuse a task: a static model has no adapters. Raises BadInput if a task is asked for."""
        if task is not None:
            raise BadInput(f"a static model has no adapter for task {task!r}; leave the task out")

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors.

        Returns `(texts, D)`, not normalised; a text without tokens gives a zero vector.
        """
        lengths = np.fromiter((len(text) for text in ids), dtype=np.int64, count=len(ids))
        flat = np.concatenate(ids).astype(np.int64) if len(ids) else np.zeros(0, np.int64)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64))
        device = self.table.device
        return F.embedding_bag(
            torch.from_numpy(flat).to(device), self.table, offsets.to(device), mode="mean"
        )
