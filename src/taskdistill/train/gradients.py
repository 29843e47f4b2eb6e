"""One optimiser step's gradients: micro-batches over worker threads, the loss over the whole batch.

The vectors of all micro-batches are joined, the loss is taken of them as leaves, and its gradient
is carried back through each micro-batch. If the batch is small enough the graphs of the first pass
are kept; otherwise a second forward pass makes them again (gradient caching). Where the loss is a
sum over texts, each micro-batch is carried back at once and no graph outlives it. Dropout masks
come from a generator seeded by step and micro-batch, and a batch is cut into the same micro-batches
whatever the number of workers; so all these ways give the same numbers, and so does any number of
threads and processes.

A step that does not fit into memory is run again with the same micro-batches in halves and no graph
kept: the same masks, the same sums, up to the order of additions. Everything that can run out of
memory on one process runs inside `Processes.together`, so that all processes leave it alike;
exchanges stand outside, and what they need is allocated before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.model.lora import seed_dropout
from taskdistill.model.packed import pack
from taskdistill.model.pooling import pool
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.seeding import MICRO_BATCH_STRIDE, derive_seed
from taskdistill.train.batch_loss import Loss, Share, Told, backward_loss, static_gradients
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.fsdp import can_start_again, is_sharded
from taskdistill.train.memory import OutOfMemory
from taskdistill.train.microbatch import MicroBatch
from taskdistill.train.shared_batch import LossTooLarge, SharedBatch
from taskdistill.train.timer import Moment, Timer, moment
from taskdistill.train.workers import GradientSums, WorkerPool, looked_up_rows

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


def gradients(
    model: TransformerModel | StaticModel,
    ids: Sequence[np.ndarray],
    loss: Loss,
    weights: Mapping[str, float],
    trained: Sequence[nn.Parameter],
    *,
    seed: int,
    threads: WorkerPool,
    micro_batch_tokens: int = 512,
    keep_tokens: int = KEEP_TOKENS,
    share: Share | None = None,
    heads: Sequence[nn.Parameter] = (),
    processes: ProcessGroup = SINGLE,
    clock: Timer | None = None,
    compute: torch.dtype | None = None,
) -> Told:
    """Set the gradients of one step.

    `model`: the model in training mode, with the right adapter selected. `loss`: from vectors
    `(texts, D)` to named terms and the masked share. `weights`: term to weight; a term without one
    counts once. `trained`: the model's parameters that are trained; those of the heads get their
    gradients from the loss itself. `micro_batch_tokens`: tokens of one forward pass. `keep_tokens`:
    batches of more tokens on one process are run twice instead of kept. `share`: for a loss that is
    a sum over texts: the part of some texts. Then each micro-batch is carried back at once.
    `heads`: trained parameters that only the loss sees; needed where several processes work
    together. `clock`: told the seconds of the forward passes, the loss, the backward passes and the
    exchange. `compute`: number type of the passes, such as bfloat16; None for that of the weights.
    Returns each term's value, the weighted sum, and the masked share; the same on every process.
    Raises WorkFailed if a single text, or the loss by itself, does not fit into memory.
    """
    clock = clock or Timer()
    if isinstance(model, StaticModel):
        return static_gradients(model, ids, loss, weights, threads.table_gradient, clock)
    batch = SharedBatch(
        model=model,
        ids=ids,
        threads=threads,
        processes=processes,
        micro_batch_tokens=micro_batch_tokens,
    )
    kind = _DividedGradients if is_sharded(model) else _ReplicatedGradients

    def run() -> (
        Told
    ):  # each attempt has a step of its own, so that nothing of a failed one is held in the next
        step = kind(
            batch=batch,
            loss=loss,
            weights=weights,
            trained=trained,
            heads=heads,
            seed=seed,
            share=share,
            clock=clock,
            compute=compute,
        )
        return step.run(keep_tokens)

    return batch.until_it_fits(run)


@dataclass(slots=True, kw_only=True)
class _GradientStep(ABC):
    """What the passes of one step share, and their order."""

    batch: SharedBatch
    loss: Loss
    weights: Mapping[str, float]
    trained: Sequence[nn.Parameter]
    heads: Sequence[nn.Parameter]
    seed: int
    share: Share | None
    clock: Timer
    compute: torch.dtype | None
    marks: Marks = field(default_factory=list)

    def run(self, keep_tokens: int) -> Told:
        """Run both passes and the loss between them."""
        batch, processes = self.batch, self.batch.processes
        every = batch.pieces()
        keep = (
            self.share is None
            and batch.threads.halvings == 0
            and batch.most_tokens(every) <= keep_tokens
        )
        for parameter in (
            *self.trained,
            *self.heads,
        ):  # the last step's gradients and this step's are never there together
            parameter.grad = None
        with self._passes():
            held = batch.prepare(self.first_pass(every, keep), every)
        with self._exchange():
            batch.gather(held)
        try:
            with processes.together(), self.clock("loss"):
                leaf = batch.ordered(held, every).requires_grad_(self.share is None)
                losses = backward_loss(self.loss, self.weights, leaf)
                upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        except OutOfMemory:
            raise LossTooLarge from None
        if self.share is None:
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
        seed = derive_seed(self.seed, piece.number, MICRO_BATCH_STRIDE)
        micro = _forward(self.batch.model, self.batch.ids, piece, seed, table_trained, self.compute)
        micro.marks.append(("forward", begun, moment(self.batch.model.device)))
        return micro

    def _heads_once(self) -> list[Tensor]:
        """Return the heads' gradients for a sum over the processes: each has the whole of them, and
        only that of the first counts.
        """
        moved = [p.grad for p in self.heads if p.grad is not None]
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


@dataclass(slots=True, kw_only=True)
class _ReplicatedGradients(_GradientStep):
    """Every process holds all weights; what it summed of its own texts is added up over the
    processes at the end.
    """

    kept: list[MicroBatchOutput] = field(default_factory=list)
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
        self.sums, self.kept = (
            GradientSums(len(self.inner), len(self.inner) < len(self.trained)),
            [],
        )

        def one(piece: MicroBatch) -> MicroBatchOutput:
            if self.share is not None:
                micro = self.forward(piece, self.sums.table_trained)
                return self._carried_back(micro, self.share(micro.vectors, piece.rows), None)
            with torch.set_grad_enabled(keep):
                return self.forward(piece, self.sums.table_trained)

        micros = self._each(one, every)
        self.kept = micros if keep else []
        return [micro.vectors for micro in micros]

    def second_pass(
        self, every: Sequence[Sequence[MicroBatch]], upstream: Tensor, keep: bool
    ) -> None:
        """Carry the gradient of the vectors back through this process's pieces."""
        local_batches = every[self.batch.processes.rank]
        graphs, self.kept = (
            (
                dict(zip((id(piece) for piece in local_batches), self.kept, strict=True))
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


@dataclass(slots=True, kw_only=True)
class _DividedGradients(_GradientStep):
    """Weights are divided (FSDP2): every pass is an exchange, so all processes run as many as the
    busiest one.

    FSDP sums gradients where their shares live, at the end of each backward pass. They could be
    summed once a step instead (`set_requires_gradient_sync`), but then every process would hold the
    gradients of all weights, which dividing them is to avoid.
    """

    kept: list[MicroBatchOutput] = field(default_factory=list)

    def first_pass(self, every: Sequence[Sequence[MicroBatch]], keep: bool) -> list[Tensor]:
        """Run as many passes as the busiest process, in surplus ones with a short text whose
        vectors do not count.
        """
        local_batches, vectors = every[self.batch.processes.rank], list[Tensor]()
        self.kept = []
        for number, piece in enumerate(self._rounds(every)):
            with torch.set_grad_enabled(keep or self.share is not None):
                micro = self.forward(piece, False)
            self.marks += micro.marks
            if self.share is not None:
                leaf = micro.vectors.detach().requires_grad_()
                part = (
                    self.share(leaf, piece.rows)
                    if number < len(local_batches)
                    else 0.0 * leaf.sum()
                )
                self._carry_back(micro, torch.autograd.grad(part, leaf)[0])
            if keep:
                self.kept.append(micro)
            if number < len(local_batches):
                vectors.append(micro.vectors.detach())
        return vectors

    def second_pass(
        self, every: Sequence[Sequence[MicroBatch]], upstream: Tensor, keep: bool
    ) -> None:
        """Carry the gradient of the vectors back, of surplus passes one of zeros."""
        local_batches, graphs = every[self.batch.processes.rank], self.kept[::-1]
        self.kept = []
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
