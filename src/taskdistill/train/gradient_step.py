"""The passes of one optimiser step and their order, whoever holds the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.model.lora import seed_dropout
from taskdistill.model.packed import pack
from taskdistill.model.pooling import pool
from taskdistill.model.student import TransformerModel
from taskdistill.seeding import MICRO_BATCH_STRIDE, derive_seed
from taskdistill.train.batch_loss import Loss, Share, StepLosses, backward_loss
from taskdistill.train.memory import OutOfMemory
from taskdistill.train.microbatch import MicroBatch
from taskdistill.train.shared_batch import LossTooLarge, SharedBatch
from taskdistill.train.timer import Moment, Timer, moment

KEEP_TOKENS = 24_576
"""Tokens of a batch up to which the graphs of the first forward pass are kept; above, a second pass
makes them again.
"""

Marks = list[tuple[str, Moment, Moment]]
"""What a thread did, and when it began and ended."""


@dataclass(slots=True, kw_only=True)
class MicroBatchOutput:
    """A piece of a batch after its forward pass."""

    vectors: Tensor
    """Pooled, `(n, D)`, in the order of the piece."""
    tokens: Tensor | None
    """Rows of the token table that were looked up, as a leaf, `(tokens, hidden)`; None if the table
    is frozen.
    """
    ids: Tensor
    gradients: list[Tensor] | None = None
    """Of the trained parameters, and of `tokens` if that is there; set once the piece is carried
    back.
    """
    marks: Marks = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """The loss of one step, as far as its gradients need to know it."""

    terms: Loss
    """From vectors `(texts, D)` to named terms and the masked share."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Term to weight; a term without one counts once."""
    share: Share | None = None
    """For a loss that is a sum over texts: the part of some texts. Then each micro-batch is carried
    back at once.
    """
    heads: Sequence[nn.Parameter] = ()
    """Trained parameters that only the loss sees; needed where several processes work together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How a batch goes through the model."""

    seed: int
    """Of the dropout masks."""
    micro_batch_tokens: int = 512
    """Tokens of one forward pass."""
    keep_tokens: int = KEEP_TOKENS
    """Batches of more tokens on one process are run twice instead of kept."""
    compute: torch.dtype | None = None
    """Number type, such as bfloat16; None for that of the weights."""


@dataclass(slots=True, kw_only=True)
class GradientStep(ABC):
    """What the passes of one step share, and their order."""

    batch: SharedBatch
    loss: StepLoss
    trained: Sequence[nn.Parameter]
    passes: Passes
    clock: Timer
    marks: Marks = field(default_factory=list)

    def run(self) -> StepLosses:
        """Run both passes and the loss between them."""
        batch, processes = self.batch, self.batch.processes
        every = batch.pieces()
        keep = (
            self.loss.share is None
            and batch.threads.halvings == 0
            and batch.most_tokens(every) <= self.passes.keep_tokens
        )
        # The last step's gradients and this step's are never there together.
        for parameter in (*self.trained, *self.loss.heads):
            parameter.grad = None
        with self._passes():
            held = batch.prepare(self.first_pass(every, keep), every)
        with self._exchange():
            batch.gather(held)
        try:
            with processes.together(), self.clock("loss"):
                leaf = batch.ordered(held, every).requires_grad_(self.loss.share is None)
                losses = backward_loss(self.loss.terms, self.loss.weights, leaf)
                upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        except OutOfMemory:
            raise LossTooLarge from None
        if self.loss.share is None:
            with self._passes():
                self.second_pass(every, upstream, keep)
        with processes.together(), self.clock("backward"):
            summed = [*self.finished(), *self._heads_once()]
            room = processes.sum_room(summed)
        with self._exchange():
            processes.all_reduce_(summed, room)
        with processes.together():
            self.exchanged()
        return losses

    @abstractmethod
    def first_pass(self, every: Sequence[Sequence[MicroBatch]], keep: bool) -> list[Tensor]:
        """Run this process's pieces forward, and back at once where the loss is a sum over texts;
        return their vectors.
        """

    @abstractmethod
    def second_pass(
        self, every: Sequence[Sequence[MicroBatch]], upstream: Tensor, keep: bool
    ) -> None:
        """Carry the loss's gradient with respect to the vectors, `(texts, D)`, back through this
        process's pieces.
        """

    @abstractmethod
    def finished(self) -> list[Tensor]:
        """Put this process's sums where the optimiser finds them, and return what is to be summed
        over the processes.
        """

    @abstractmethod
    def exchanged(self) -> None:
        """Take what was summed over the processes."""

    def forward(self, piece: MicroBatch, table_trained: bool) -> MicroBatchOutput:
        """Run one piece forward."""
        begun = moment(self.batch.model.device)
        # Masks follow from the micro-batch, not from the piece: a piece has those of its place in
        # it.
        seed = derive_seed(self.passes.seed, piece.number, MICRO_BATCH_STRIDE)
        micro = _forward(
            self.batch.model, self.batch.ids, piece, seed, table_trained, self.passes.compute
        )
        micro.marks.append(("forward", begun, moment(self.batch.model.device)))
        return micro

    def _heads_once(self) -> list[Tensor]:
        """Return the heads' gradients for a sum over the processes: each has the whole of them, and
        only that of the first counts.
        """
        moved = [p.grad for p in self.loss.heads if p.grad is not None]
        if not self.batch.processes.is_main:
            for gradient in moved:
                gradient.zero_()
        return moved

    @contextmanager
    def _passes(self) -> Iterator[None]:
        self.marks = []
        with (
            self.batch.processes.together(votes=self.votes()),
            self.clock.shared(self.marks, self.batch.model.device),
        ):
            yield

    def votes(self) -> bool:
        """Say whether a failure in the middle of the passes can be voted on."""
        return True

    def _exchange(self) -> AbstractContextManager[None]:
        return self.clock("exchange") if self.batch.processes.size > 1 else nullcontext()


def _forward(
    model: TransformerModel,
    ids: Sequence[np.ndarray],
    piece: MicroBatch,
    seed: int,
    table_trained: bool,
    compute: torch.dtype | None,
) -> MicroBatchOutput:
    device = model.device
    packed = pack([ids[i] for i in piece.rows]).to(device)
    seed_dropout(
        torch.Generator(device=device).manual_seed(seed),
        (piece.first, piece.whole) if model.packs else None,
    )
    try:
        with torch.autocast(device.type, compute, enabled=compute is not None):
            tokens = None
            if table_trained:
                tokens = model.token_vectors(packed).detach().requires_grad_()
            hidden = model.hidden(packed, tokens)
    finally:
        seed_dropout(None)  # whatever this thread runs next drops nothing
    return MicroBatchOutput(
        vectors=pool(hidden if compute is None else hidden.float(), packed.groups, model.pooling),
        tokens=tokens,
        ids=packed.ids,
    )
