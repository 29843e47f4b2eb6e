"""Token ids of a batch, and what its vectors are compared with.

The teacher's vectors, or the base's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.recipe.phases import MICRO_BATCH_TOKENS
from taskdistill.teacher.protocol import View
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.base_vectors import base_vectors
from taskdistill.train.collate import TrainBatch
from taskdistill.train.objective import Targets

if TYPE_CHECKING:
    from taskdistill.train.context import Phase, TrainContext


class TargetLookup:
    """Gives each step its token ids and signals."""

    def __init__(
        self,
        phase: Phase,
        model: TransformerModel | StaticModel,
        ctx: TrainContext,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    ) -> None:
        """Remember where they come from.

        `model`: for the vectors without adapter. `ctx`: for tokenizer, prompts, and the device that
        signals are put on. `micro_batch_tokens`: tokens of a pass without adapter.
        """
        self.phase, self.model, self.ctx = phase, model, ctx
        self.micro_batch_tokens = micro_batch_tokens

    def ids(self, prepared: TrainBatch) -> list[np.ndarray]:
        """Tokenise a batch; several processes share the work.

        Returns token ids of each of its texts, behind the prompt of its role.
        """
        processes, count = self.ctx.processes, len(prepared.texts)
        local_ids = self._tokenised(prepared, range(processes.rank, count, processes.size))
        if processes.size == 1:
            return local_ids
        shares = [range(rank, count, processes.size) for rank in range(processes.size)]
        sizes = torch.tensor([[len(row)] for row in local_ids], dtype=torch.int64).reshape(-1, 1)
        lengths = processes.gather(sizes, [len(share) for share in shares])[:, 0]
        totals = [
            int(part.sum()) for part in torch.split(lengths, [len(share) for share in shares])
        ]
        flat = torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *local_ids]))[:, None]
        rows = torch.split(processes.gather(flat, totals)[:, 0], lengths.tolist())
        places = [place for share in shares for place in share]
        return [
            row.numpy() for _, row in sorted(zip(places, rows, strict=True), key=lambda at: at[0])
        ]

    def _tokenised(self, prepared: TrainBatch, places: range) -> list[np.ndarray]:
        _, length = self.phase.settings.long_sources.get(
            prepared.batch.dataset, (0, self.phase.settings.max_length)
        )
        out: dict[int, np.ndarray] = {}
        for role in dict.fromkeys(prepared.texts[i][0] for i in places):
            role_places = [i for i in places if prepared.texts[i][0] == role]
            tokenized = self.ctx.tokenizer.ids(
                [prepared.texts[i][1] for i in role_places],
                prompt=self.ctx.prompts.get(role, ""),
                max_length=length,
            )
            out.update(zip(role_places, tokenized.ids, strict=True))
        return [out[i] for i in places]

    def of(self, prepared: TrainBatch, ids: list[np.ndarray]) -> Targets:
        """Look up what a batch is compared with."""
        result = Targets()
        if prepared.distilled:
            with (
                self.ctx.processes.together()
            ):  # a store that one process cannot read must not leave the others waiting
                result.teacher = teacher_vectors(self.phase, prepared)
                if self.phase.needs_similarities and prepared.positive_idx is not None:
                    count = len(prepared.query_idx)
                    unit = torch.nn.functional.normalize(result.teacher.nan_to_num(), dim=1).numpy()
                    result.teacher_similarities = unit[:count] @ unit[count : 2 * count].T
        if self.phase.needs_base:
            result.base = self._without_adapter(ids)
        if (
            result.teacher is not None and self.model is not None
        ):  # losses compare what is of one device and one number type
            weight = next(self.model.parameters())
            result.teacher = result.teacher.to(weight.device, weight.dtype, non_blocking=True)
        return result

    def _without_adapter(self, ids: list[np.ndarray]) -> Tensor:
        """Embed with the base; micro-batches follow from the batch alone, for equal bits."""
        assert isinstance(self.model, TransformerModel), (
            "only a transformer has adapters to be left out"
        )
        self.model.select(None)
        return base_vectors(
            self.model,
            ids,
            threads=self.ctx.threads,
            micro_batch_tokens=self.micro_batch_tokens,
            processes=self.ctx.processes,
            compute=self.ctx.arithmetic.compute,
        )


def teacher_vectors(phase: Phase, prepared: TrainBatch) -> Tensor:
    """Look up the teachers' vectors of a batch.

    Returns `(n, T)`, in the order of `prepared.distilled`; of several teachers side by side, not a
    number where one has none.
    """
    texts, every = prepared.teacher_texts(), [phase.stores, *phase.further]
    if len(every) == 1:
        return _read(every[0], texts, partial=False)
    allowed = phase.readers.get(prepared.batch.dataset, range(len(every)))
    parts = []
    for place, stores in enumerate(every):
        if place in allowed:
            parts.append(_read(stores, texts, partial=True))
        else:
            parts.append(torch.full((len(texts), phase.heads.widths[place]), torch.nan))
    return torch.cat(parts, dim=1)


def _read(
    stores: Mapping[View, TeacherStore], requested: list[tuple[View, str]], *, partial: bool
) -> Tensor:
    """Read one teacher's vectors.

    With `partial` a text without one gets a row that is not a number.
    """
    out: Tensor | None = None
    for view in dict.fromkeys(view for view, _ in requested):
        rows = np.array([i for i, (other, _) in enumerate(requested) if other == view])
        places = stores[view].locate([requested[i][1] for i in rows])
        if partial:
            rows, places = rows[places >= 0], places[places >= 0]
        vectors = stores[view].take(places)
        if out is None:
            out = torch.full((len(requested), vectors.shape[1]), torch.nan)
        out[torch.from_numpy(rows)] = torch.from_numpy(vectors.astype(np.float32))
    assert out is not None
    return out
