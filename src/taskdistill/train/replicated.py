"""Gradients where every process holds all weights: sums over its own texts, added up over the
processes at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taskdistill.train.gradient_step import GradientStep, MicroBatchOutput
from taskdistill.train.microbatch import MicroBatch
from taskdistill.train.timer import moment
from taskdistill.train.workers import GradientSums, looked_up_rows


@dataclass(slots=True, kw_only=True)
class ReplicatedGradients(GradientStep):
    """Every process holds all weights; what it summed of its own texts is added up over the
    processes at the end.
    """

    graphs: list[MicroBatchOutput] = field(default_factory=list)
    sums: GradientSums = field(init=False)
    table: nn.Parameter = field(init=False)
    inner: list[nn.Parameter] = field(init=False)
    rows: Tensor | None = None
    """Rows of the token table that the batch looks up."""
    exchanged_rows: Tensor | None = None

    def __post_init__(self) -> None:
        self.table = self.batch.model.backbone.get_input_embeddings().weight
        self.inner = [p for p in self.trained if p is not self.table]

    def first_pass(self, every: Sequence[Sequence[MicroBatch]], keep: bool) -> list[Tensor]:
        """Run this process's pieces forward, and back at once where the loss is a sum
        over texts.
        """
        self.sums, self.graphs = (
            GradientSums(len(self.inner), len(self.inner) < len(self.trained)),
            [],
        )

        def one(piece: MicroBatch) -> MicroBatchOutput:
            if self.loss.share is not None:
                micro = self.forward(piece, self.sums.table_trained)
                return self._carried_back(micro, self.loss.share(micro.vectors, piece.rows), None)
            with torch.set_grad_enabled(keep):
                return self.forward(piece, self.sums.table_trained)

        micros = self._each(one, every)
        self.graphs = micros if keep else []
        return [micro.vectors for micro in micros]

    def second_pass(
        self, every: Sequence[Sequence[MicroBatch]], upstream: Tensor, keep: bool
    ) -> None:
        """Carry the gradient of the vectors back through this process's pieces."""
        local_batches = every[self.batch.processes.rank]
        graphs, self.graphs = (
            (
                dict(zip((id(piece) for piece in local_batches), self.graphs, strict=True))
                if keep
                else {}
            ),
            [],
        )

        def one(piece: MicroBatch) -> MicroBatchOutput:
            micro = graphs.pop(id(piece)) if keep else self.forward(piece, self.sums.table_trained)
            micro.marks = [] if keep else micro.marks
            return self._carried_back(micro, micro.vectors, upstream[piece.rows])

        self._each(one, every)

    def finished(self) -> list[Tensor]:
        """Put this process's sums where the optimiser finds them; of the token table only the rows
        of the batch are exchanged.
        """
        for parameter, gradient in zip(
            self.inner, self.sums.inner or [torch.zeros_like(p) for p in self.inner], strict=True
        ):
            parameter.grad = gradient
        summed = [p.grad for p in self.inner if p.grad is not None]
        if not self.sums.table_trained:
            return summed
        self.rows = looked_up_rows(self.batch.ids, self.table)
        self.table.grad = self.batch.threads.table_gradient.all_reduce_(
            self.table, self.rows, self.sums.rows
        )
        self.sums.rows = []
        if self.batch.processes.size > 1:
            self.exchanged_rows = self.table.grad[self.rows]
            summed.append(self.exchanged_rows)
        return summed

    def exchanged(self) -> None:
        """Take the rows of the token table that were summed over the processes."""
        if (
            self.exchanged_rows is not None
            and self.table.grad is not None
            and self.rows is not None
        ):
            self.table.grad.index_copy_(0, self.rows, self.exchanged_rows)

    def _each(
        self, one: Callable[[MicroBatch], MicroBatchOutput], every: Sequence[Sequence[MicroBatch]]
    ) -> list[MicroBatchOutput]:
        """Run work on each of this process's pieces and add its gradients up."""
        micros = list[MicroBatchOutput]()
        for micro in self.batch.threads.map(one, every[self.batch.processes.rank]):
            if micro.gradients is not None:
                self.sums.add(micro.gradients, micro.ids)
                micro.gradients = None
            self.marks += micro.marks
            micros.append(micro)
        return micros

    def _carried_back(
        self, micro: MicroBatchOutput, outputs: Tensor, upstream: Tensor | None
    ) -> MicroBatchOutput:
        begun = moment(self.batch.model.device)
        inputs = [*self.inner, micro.tokens] if micro.tokens is not None else self.inner
        result = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g for p, g in zip(inputs, result, strict=True)
        ]
        mark = ("backward", begun, moment(self.batch.model.device))
        return MicroBatchOutput(
            vectors=micro.vectors.detach(),
            tokens=None,
            ids=micro.ids,
            gradients=filled,
            marks=[*micro.marks, mark],
        )
