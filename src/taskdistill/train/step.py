"""One optimiser step's gradients: micro-batches over worker threads, the loss over the whole batch.

The vectors of all micro-batches are joined, the loss is taken of them as leaves, and its gradient is carried back through
each micro-batch. If the batch is small enough the graphs of the first pass are kept; otherwise a second forward pass makes
them again (gradient caching). Where the loss is a sum over texts, each micro-batch is carried back at once and no graph outlives
it. Dropout masks come from a generator seeded by step and micro-batch, so all these ways give the same numbers, and so do one
and two workers; with more workers the micro-batches are cut differently.

A step that does not fit into memory is run again with the same micro-batches in halves and no graph kept: the same masks, the
same sums, up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.errors import WorkFailed
from taskdistill.model.adapters import seed_dropout
from taskdistill.model.packed import pack
from taskdistill.model.pooling import pool
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.train.clock import Clock, Moment, moment
from taskdistill.train.cut import Piece, micro_batches, pieces
from taskdistill.train.device import tf32_products
from taskdistill.train.memory import OutOfMemory, free_memory, is_out_of_memory
from taskdistill.train.processes import ALONE, Processes
from taskdistill.train.sharded import is_sharded
from taskdistill.train.workers import TableGradient, Workers

KEEP_TOKENS = 24_576
"""Tokens of a batch up to which the graphs of the first forward pass are kept; above, a second pass makes them again."""

Loss = Callable[[Tensor], tuple[dict[str, Tensor], float]]
"""From the vectors of all texts, `(texts, D)`, to named terms and the masked share."""
Share = Callable[[Tensor, np.ndarray], Tensor]
"""From the vectors of some texts, `(n, D)`, and their places in the batch to their share of the weighted sum."""
Told = tuple[dict[str, float], float, float]
"""Each term's value, the weighted sum, and the masked share."""


@dataclass(slots=True)
class Micro:
    """A piece of a batch after its forward pass."""

    vectors: Tensor
    """Pooled, `(n, D)`, in the order of `micro_batches`."""
    tokens: Tensor | None
    """Rows of the token table that were looked up, as a leaf, `(tokens, hidden)`; None if the table is frozen."""
    ids: Tensor
    gradients: list[Tensor] | None = None
    """Of the trained parameters, and of `tokens` if that is there; set once the micro-batch is carried back."""
    marks: list[tuple[str, Moment, Moment]] = field(default_factory=list)
    """When its passes began and ended."""


def gradients(
    model: TransformerModel | StaticModel,
    ids: Sequence[np.ndarray],
    loss: Loss,
    weights: Mapping[str, float],
    trained: Sequence[nn.Parameter],
    *,
    seed: int,
    threads: Workers,
    micro_batch_tokens: int = 512,
    keep_tokens: int = KEEP_TOKENS,
    share: Share | None = None,
    heads: Sequence[nn.Parameter] = (),
    processes: Processes = ALONE,
    clock: Clock | None = None,
    compute: torch.dtype | None = None,
) -> Told:
    """Set the gradients of one step.

    Args:
        model: The model in training mode, with the right adapter selected.
        ids: Token ids of the batch's distinct texts.
        loss: From vectors `(texts, D)` to named terms and the masked share.
        weights: Term to weight; a term without one counts once.
        trained: The model's parameters that are trained; those of the heads get their gradients from the loss itself.
        seed: Decides this step's dropout masks.
        threads: Worker threads.
        micro_batch_tokens: Tokens of one forward pass.
        keep_tokens: Batches of more tokens are run twice instead of kept.
        share: For a loss that is a sum over texts: the part of some texts. Then each micro-batch is carried back at once.
        heads: Trained parameters that only the loss sees; needed where several processes work together.
        processes: Those that share the batch.
        clock: Told the seconds of the forward passes, the loss, the backward passes and the exchange.
        compute: Number type of the passes, such as bfloat16; None for that of the weights.

    Returns:
        Each term's value, the weighted sum, and the masked share; the same on every process.

    Raises:
        WorkFailed: If a single text does not fit into memory.
    """
    clock = clock or Clock()
    if isinstance(model, StaticModel):
        return _static_gradients(model, ids, loss, weights, threads.table_gradient, clock)
    lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    batches = micro_batches(lengths, micro_batch_tokens, threads.count * processes.size)
    step = _Step(model, ids, loss, weights, trained, seed, threads, share, heads, processes, clock, compute, lengths, batches)
    while True:
        try:
            return step.run(keep_tokens)
        except OutOfMemory:
            free_memory()
        if all(len(piece.rows) == 1 for piece in pieces(batches, range(len(batches)), lengths, threads.halvings)):
            raise WorkFailed(
                f"a step does not fit into memory even text by text (the longest of its {len(ids)} texts has {lengths.max()} tokens); "
                f"lower max_length or batch_size, or give the process more memory"
            )
        threads.halvings += 1


@dataclass(slots=True)
class _Step:
    """What the passes of one step share."""

    model: TransformerModel
    ids: Sequence[np.ndarray]
    loss: Loss
    weights: Mapping[str, float]
    trained: Sequence[nn.Parameter]
    seed: int
    threads: Workers
    share: Share | None
    heads: Sequence[nn.Parameter]
    processes: Processes
    clock: Clock
    compute: torch.dtype | None
    lengths: np.ndarray
    batches: list[np.ndarray]

    def run(self, keep_tokens: int) -> Told:
        """Run both passes and the loss between them.

        Args:
            keep_tokens: Batches of more tokens are run twice instead of kept.

        Returns:
            Terms, weighted sum, masked share.

        Raises:
            OutOfMemory: If memory ran out on some process; nothing but the heads' gradients has changed then.
        """
        processes, batches, halvings = self.processes, self.batches, self.threads.halvings
        shares = [range(rank, len(batches), processes.size) for rank in range(processes.size)]
        mine = pieces(batches, shares[processes.rank], self.lengths, halvings)
        keep = self.share is None and halvings == 0 and sum(int(self.lengths[piece.rows].sum()) for piece in mine) <= keep_tokens
        table = self.model.backbone.get_input_embeddings().weight
        inner = [p for p in self.trained if p is not table]
        if is_sharded(self.model):
            return self._run_sharded(mine, shares)
        sums = _Sums(inner, len(inner) < len(self.trained))
        for parameter in (*inner, *self.heads):  # the last step's gradients and this step's are never there together
            parameter.grad = None

        def carried_back(micro: Micro, outputs: Tensor, upstream: Tensor | None) -> Micro:
            begun = moment(self.model.device)
            inputs = [*inner, micro.tokens] if micro.tokens is not None else inner
            found = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, found, strict=True)]
            mark = ("backward", begun, moment(self.model.device))
            return Micro(micro.vectors.detach(), None, micro.ids, filled, [*micro.marks, mark])

        def first_pass(piece: Piece) -> Micro:
            if self.share is not None:
                micro = self._forward(piece, sums.table_trained)
                return carried_back(micro, self.share(micro.vectors, piece.rows), None)
            with torch.set_grad_enabled(keep):
                return self._forward(piece, sums.table_trained)

        micros = self._pass(first_pass, mine, sums)
        own = torch.cat([micro.vectors.detach() for micro in micros]) if mine else table.new_zeros(0, self.model.embedding_dim)
        leaf = self._gather(own, shares).requires_grad_(self.share is None)
        with self.clock("loss"):
            told = _backward_loss(self.loss, self.weights, leaf)
        if self.share is None:
            upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
            kept = dict(zip((id(piece) for piece in mine), micros, strict=True)) if keep else {}
            del micros

            def backward(piece: Piece) -> Micro:
                micro = kept.pop(id(piece)) if keep else self._forward(piece, sums.table_trained)
                micro.marks = [] if keep else micro.marks
                return carried_back(micro, micro.vectors, upstream[piece.rows])

            self._pass(backward, mine, sums)
        self._finish(inner, table, sums)
        return told

    def _run_sharded(self, mine: Sequence[Piece], shares: Sequence[range]) -> Told:
        """Carry each piece back at once; FSDP sums the gradients. Every process runs as many pieces as the busiest one."""
        assert self.share is not None, "only a loss that is a sum over texts is trained with divided weights"
        rounds = max(len(pieces(self.batches, part, self.lengths, self.threads.halvings)) for part in shares)
        spare = mine[0] if mine else pieces(self.batches, [0], self.lengths, self.threads.halvings)[0]
        for parameter in (*self.trained, *self.heads):
            parameter.grad = None
        own, marks, device = list[Tensor](), list[tuple[str, Moment, Moment]](), self.model.device
        with self.clock.shared(marks, device):
            for piece in [*mine, *[spare] * (rounds - len(mine))]:
                micro, begun = self._forward(piece, False), moment(device)
                leaf = micro.vectors.detach().requires_grad_()
                part = self.share(leaf, piece.rows) if len(own) < len(mine) else 0.0 * leaf.sum()
                micro.vectors.backward(torch.autograd.grad(part, leaf)[0])  # type: ignore[no-untyped-call]
                marks += [*micro.marks, ("backward", begun, moment(device))]
                if len(own) < len(mine):
                    own.append(micro.vectors.detach())
        rows = torch.cat(own) if own else torch.zeros(0, self.model.embedding_dim, device=device)
        joined = self._gather(rows, shares)
        with self.clock("loss"):
            told = _backward_loss(self.loss, self.weights, joined)
        moved = [p.grad for p in self.heads if p.grad is not None]
        for gradient in moved:
            gradient.div_(self.processes.size)
        with self._exchange():
            self.processes.add_up(moved)
        return told

    def _gather(self, own: Tensor, shares: Sequence[range]) -> Tensor:
        """Collect the vectors of all processes in the order of the batch."""
        with self._exchange():
            joined = self.processes.gather(own, [sum(len(self.batches[i]) for i in part) for part in shares])
        order = torch.from_numpy(np.concatenate([self.batches[i] for part in shares for i in part])).to(joined.device)
        return torch.empty_like(joined).index_copy_(0, order, joined)

    def _pass(self, work: Callable[[Piece], Micro], items: Sequence[Piece], sums: _Sums) -> list[Micro]:
        """Run work on every piece, add its gradients up, and stop together with the other processes where one is out of memory."""
        micros, failed = list[Micro](), False
        marks: list[tuple[str, Moment, Moment]] = []
        with self.clock.shared(marks, self.model.device):
            try:
                for micro in self.threads.map(work, items):
                    sums.add(micro)
                    marks += micro.marks
                    micros.append(micro)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
        if self.processes.any(failed):
            raise OutOfMemory
        return micros

    def _forward(self, piece: Piece, table_trained: bool) -> Micro:
        begun = moment(self.model.device)
        micro = _forward(self.model, self.ids, piece, self.seed * 1_000_003 + piece.number, table_trained, self.compute)
        micro.marks.append(("forward", begun, moment(self.model.device)))
        return micro

    def _finish(self, inner: Sequence[nn.Parameter], table: nn.Parameter, sums: _Sums) -> None:
        """Put the sums where the optimiser finds them, added up over the processes."""
        with self.clock("backward"):
            for parameter, gradient in zip(inner, sums.inner or [torch.zeros_like(p) for p in inner], strict=True):
                parameter.grad = gradient
            if sums.table_trained:
                table.grad = self.threads.table_gradient.of(table, sums.rows)
        moved = [p.grad for p in self.heads if p.grad is not None]
        for gradient in moved:
            gradient.div_(self.processes.size)
        with self._exchange():
            self.processes.add_up([p.grad for p in self.trained if p.grad is not None] + moved)

    def _exchange(self) -> AbstractContextManager[None]:
        return self.clock("exchange") if self.processes.size > 1 else nullcontext()


class _Sums:
    """The gradients of micro-batches, added up in their order."""

    def __init__(self, inner: Sequence[nn.Parameter], table_trained: bool) -> None:
        self._count, self.table_trained = len(inner), table_trained
        self.inner: list[Tensor] = []
        self.rows: list[tuple[Tensor, Tensor]] = []

    def add(self, micro: Micro) -> None:
        if micro.gradients is None:
            return
        if self.table_trained:
            self.rows.append((micro.ids, micro.gradients[-1]))
        found = micro.gradients[: self._count]
        micro.gradients = None
        self.inner = [a.add_(b) for a, b in zip(self.inner, found, strict=True)] if self.inner else found


def _forward(
    model: TransformerModel, ids: Sequence[np.ndarray], piece: Piece, seed: int, table_trained: bool, compute: torch.dtype | None
) -> Micro:
    device = model.device
    packed = pack([ids[i] for i in piece.rows]).to(device)
    seed_dropout(torch.Generator(device=device).manual_seed(seed), (piece.first, piece.whole) if model.packs else None)
    try:
        with torch.autocast(device.type, compute, enabled=compute is not None):
            tokens = None
            if table_trained:
                tokens = model.token_vectors(packed).detach().requires_grad_()
            hidden = model.hidden(packed, tokens)
    finally:
        seed_dropout(None)  # whatever this thread runs next drops nothing
    return Micro(pool(hidden if compute is None else hidden.float(), packed.groups, model.pooling), tokens, packed.ids)


@torch.no_grad()
def _static_gradients(
    model: StaticModel, ids: Sequence[np.ndarray], loss: Loss, weights: Mapping[str, float], held: TableGradient, clock: Clock
) -> Told:
    with clock("forward"):
        leaf = model.embed(ids).requires_grad_()
    with clock("loss"), torch.enable_grad():
        told = _backward_loss(loss, weights, leaf)
    with clock("backward"):
        lengths = torch.tensor([len(row) for row in ids])
        upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        rows = (upstream / lengths.clamp(min=1)[:, None]).repeat_interleave(lengths, dim=0)
        model.table.grad = held.of(model.table, [(torch.from_numpy(np.concatenate(ids).astype(np.int64)), rows)])
    return told


def _backward_loss(loss: Loss, weights: Mapping[str, float], leaf: Tensor) -> Told:
    with tf32_products(False):
        terms, masked = loss(leaf)
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
    return {name: float(term.detach()) for name, term in terms.items()}, float(total.detach()), masked
