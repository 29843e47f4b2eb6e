"""Gradients where the weights are divided over the processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskdistill.train.fsdp import can_start_again
from taskdistill.train.gradient_step import GradientStep, MicroBatchOutput
from taskdistill.train.microbatch import MicroBatch
from taskdistill.train.timer import moment


@dataclass(slots=True, kw_only=True)
class DividedGradients(GradientStep):
    """Weights are divided (FSDP2): every pass is an exchange, so all processes run as many as the
    busiest one.

    FSDP sums gradients where their shares live, at the end of each backward pass. They could be
    summed once a step instead (`set_requires_gradient_sync`), but then every process would hold the
    gradients of all weights, which dividing them is to avoid.
    """

    graphs: list[MicroBatchOutput] = field(default_factory=list)

    def first_pass(self, every: Sequence[Sequence[MicroBatch]], keep: bool) -> list[Tensor]:
        """Run as many passes as the busiest process, in surplus ones with a short text whose
        vectors do not count.
        """
        local_batches, vectors = every[self.batch.processes.rank], list[Tensor]()
        self.graphs = []
        for number, piece in enumerate(self._rounds(every)):
            with torch.set_grad_enabled(keep or self.loss.share is not None):
                micro = self.forward(piece, False)
            self.marks += micro.marks
            if self.loss.share is not None:
                leaf = micro.vectors.detach().requires_grad_()
                part = (
                    self.loss.share(leaf, piece.rows)
                    if number < len(local_batches)
                    else 0.0 * leaf.sum()
                )
                self._carry_back(micro, torch.autograd.grad(part, leaf)[0])
            if keep:
                self.graphs.append(micro)
            if number < len(local_batches):
                vectors.append(micro.vectors.detach())
        return vectors

    def second_pass(
        self, every: Sequence[Sequence[MicroBatch]], upstream: Tensor, keep: bool
    ) -> None:
        """Carry the gradient of the vectors back, of surplus passes one of zeros."""
        local_batches, graphs = every[self.batch.processes.rank], self.graphs[::-1]
        self.graphs = []
        for number, piece in enumerate(self._rounds(every)):
            if keep:
                micro = graphs.pop()
            else:
                micro = self.forward(piece, False)
                self.marks += micro.marks
            self._carry_back(
                micro,
                (
                    upstream[piece.rows]
                    if number < len(local_batches)
                    else torch.zeros_like(micro.vectors)
                ),
            )

    def finished(self) -> list[Tensor]:
        """FSDP has put the sums where they belong."""
        return []

    def exchanged(self) -> None:
        """Nothing beside the heads was exchanged."""

    def votes(self) -> bool:
        """Say whether the exchanges of this torch's FSDP vote."""
        return can_start_again(self.batch.model)

    def _rounds(self, every: Sequence[Sequence[MicroBatch]]) -> list[MicroBatch]:
        local_batches = every[self.batch.processes.rank]
        spare = min(
            (piece for each in every for piece in each),
            key=lambda piece: int(self.batch.lengths[piece.rows].sum()),
        )
        return [*local_batches, *[spare] * (max(map(len, every)) - len(local_batches))]

    def _carry_back(self, micro: MicroBatchOutput, upstream: Tensor) -> None:
        begun = moment(self.batch.model.device)
        micro.vectors.backward(upstream)  # type: ignore[no-untyped-call]
        self.marks.append(("backward", begun, moment(self.batch.model.device)))
