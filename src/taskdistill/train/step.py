"""One optimiser step's gradients: micro-batches over worker threads, the loss over the whole batch.

The vectors of all micro-batches are joined, the loss is taken of them as leaves, and its gradient is carried back through
each micro-batch. If the batch is small enough the graphs of the first pass are kept; otherwise a second forward pass makes
them again (gradient caching). Where the loss is a sum over texts, each micro-batch is carried back at once and no graph outlives
it. Dropout masks come from a generator seeded by step and micro-batch, so all these ways give the same numbers, and so do one
and two workers; with more workers the micro-batches are cut differently.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.model.adapters import seed_dropout
from taskdistill.model.packed import pack
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.train.processes import ALONE, Processes

KEEP_TOKENS = 24_576
"""Tokens of a batch up to which the graphs of the first forward pass are kept; above, a second pass makes them again."""

PIECE_TOKENS = 192
"""A micro-batch is not made smaller than this only to give every worker one."""

Loss = Callable[[Tensor], tuple[dict[str, Tensor], float]]
"""From the vectors of all texts, `(texts, D)`, to named terms and the masked share."""
Share = Callable[[Tensor, np.ndarray], Tensor]
"""From the vectors of some texts, `(n, D)`, and their places in the batch to their share of the weighted sum."""


@dataclass(slots=True)
class Micro:
    """A micro-batch after its forward pass."""

    vectors: Tensor
    """Pooled, `(n, D)`, in the order of `micro_batches`."""
    tokens: Tensor | None
    """Rows of the token table that were looked up, as a leaf, `(tokens, hidden)`; None if the table is frozen."""
    ids: Tensor
    gradients: list[Tensor] | None = None
    """Of the trained parameters, and of `tokens` if that is there; set once the micro-batch is carried back."""


class Workers:
    """Threads that run micro-batches, one intra-op thread each, and what they use again from step to step."""

    def __init__(self, count: int) -> None:
        """Start the threads.

        Args:
            count: How many; 1 runs everything in the calling thread with all its intra-op threads.
        """
        self.count = count
        self.table_gradient = TableGradient()
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def map(self, work: Callable[[int], Micro], items: Sequence[int]) -> Iterator[Micro]:
        """Run work on some numbers and yield results in their order.

        Args:
            work: Called from any thread.
            items: The numbers.

        Yields:
            What work returned.
        """
        if self._pool is None:
            yield from map(work, items)
        else:
            yield from self._pool.map(work, items)

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Give worker threads and stop them at the end.

    Args:
        count: How many.

    Yields:
        The threads.
    """
    made, before = Workers(count), torch.get_num_threads()
    try:
        yield made
    finally:
        made.close()
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; otherwise it maps and clears the same pages again in every step.

    Peak memory is the same. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1)):  # arenas, mapping threshold, trimming threshold
            mallopt(parameter, value)


class TableGradient:
    """The gradient of a token table in one buffer, of which only the rows of the step before are cleared."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._filled = list[Tensor]()

    def of(self, table: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Add up the gradients of looked-up rows.

        Args:
            table: The table, `(vocabulary, D)`.
            parts: Token ids `(tokens,)` with the gradients of their rows `(tokens, D)`.

        Returns:
            `(vocabulary, D)`; valid until the next call.
        """
        if self._buffer is None or self._buffer.shape != table.shape or self._buffer.dtype != table.dtype:
            self._buffer, self._filled = torch.zeros_like(table), []
        for ids in self._filled:
            self._buffer.index_fill_(0, ids, 0.0)
        for ids, gradient in parts:
            self._buffer.index_add_(0, ids, gradient)
        self._filled = [ids for ids, _ in parts]
        return self._buffer


def micro_batches(lengths: np.ndarray, budget: int, workers: int) -> list[np.ndarray]:
    """Cut a batch into micro-batches of nearly equal token counts, as many as keep every worker busy.

    Args:
        lengths: Tokens of each text, `(n,)`.
        budget: Most tokens of a micro-batch; a single longer text is one of its own.
        workers: Threads of all processes together. One is treated as two, so that both cut alike.

    Returns:
        Places of the texts of each micro-batch, each in the order of `pack`: shortest texts first.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    total, together = int(ends[-1]), max(2, workers)
    pieces = -(-total // budget)
    pieces = max(pieces, min(-(-pieces // together) * together, total // PIECE_TOKENS))
    while True:
        middles = ends - lengths[order] / 2
        cuts = np.searchsorted(middles, np.arange(1, pieces) * total / pieces)
        found = [part for part in np.split(order, cuts) if len(part)]
        if pieces >= len(order) or all(len(part) == 1 or lengths[part].sum() <= budget for part in found):
            return [part[np.argsort(lengths[part], kind="stable")] for part in found]
        pieces += together


def gradients(
    model: TransformerModel | StaticModel,
    ids: Sequence[np.ndarray],
    loss: Loss,
    weights: Mapping[str, float],
    trained: Sequence[nn.Parameter],
    *,
    seed: int,
    threads: Workers,
    micro_batch_tokens: int = 1024,
    keep_tokens: int = KEEP_TOKENS,
    share: Share | None = None,
    heads: Sequence[nn.Parameter] = (),
    processes: Processes = ALONE,
) -> tuple[dict[str, float], float, float]:
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

    Returns:
        Each term's value, the weighted sum, and the masked share; the same on every process.
    """
    if isinstance(model, StaticModel):
        return _static_gradients(model, ids, loss, weights, threads.table_gradient)
    lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    batches = micro_batches(lengths, micro_batch_tokens, threads.count * processes.size)
    shares = [range(rank, len(batches), processes.size) for rank in range(processes.size)]
    mine = shares[processes.rank]
    keep = share is None and int(lengths[np.concatenate([batches[i] for i in mine])].sum() if mine else 0) <= keep_tokens
    table = model.backbone.get_input_embeddings().weight
    inner = [p for p in trained if p is not table]
    table_trained = len(inner) < len(trained)

    def forward(number: int) -> Micro:
        return _forward(model, ids, batches[number], seed * 1_000_003 + number, table_trained)

    def carried_back(micro: Micro, outputs: Tensor, upstream: Tensor | None) -> Micro:
        inputs = [*inner, micro.tokens] if micro.tokens is not None else inner
        found = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, found, strict=True)]
        return Micro(micro.vectors.detach(), None, micro.ids, filled)

    def first_pass(number: int) -> Micro:
        if share is not None:
            micro = forward(number)
            return carried_back(micro, share(micro.vectors, batches[number]), None)
        with torch.set_grad_enabled(keep):
            return forward(number)

    sums = _Sums(inner, table_trained)
    micros: dict[int, Micro] = {}
    for number, micro in zip(mine, threads.map(first_pass, mine), strict=True):
        sums.add(micro)
        micros[number] = micro
    own = torch.cat([micros[i].vectors.detach() for i in mine]) if mine else table.new_zeros(0, model.embedding_dim)
    joined = processes.gather(own, [sum(len(batches[i]) for i in part) for part in shares])
    order = torch.from_numpy(np.concatenate([batches[i] for part in shares for i in part])).to(joined.device)
    leaf = torch.empty_like(joined).index_copy_(0, order, joined).requires_grad_(share is None)
    terms, masked, total = _backward_loss(loss, weights, leaf)
    if share is None:
        upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)

        def backward(number: int) -> Micro:
            micro = micros.pop(number) if keep else forward(number)
            return carried_back(micro, micro.vectors, upstream[batches[number]])

        for micro in threads.map(backward, mine):
            sums.add(micro)
    for parameter, gradient in zip(inner, sums.inner or [torch.zeros_like(p) for p in inner], strict=True):
        parameter.grad = gradient
    if table_trained:
        table.grad = threads.table_gradient.of(table, sums.rows)
    moved = [p.grad for p in heads if p.grad is not None]
    for gradient in moved:
        gradient.div_(processes.size)
    processes.add_up([p.grad for p in trained if p.grad is not None] + moved)
    return terms, total, masked


class _Sums:
    """The gradients of micro-batches, added up in their order."""

    def __init__(self, inner: Sequence[nn.Parameter], table_trained: bool) -> None:
        self._count, self._table_trained = len(inner), table_trained
        self.inner: list[Tensor] = []
        self.rows: list[tuple[Tensor, Tensor]] = []

    def add(self, micro: Micro) -> None:
        if micro.gradients is None:
            return
        if self._table_trained:
            self.rows.append((micro.ids, micro.gradients[-1]))
        found = micro.gradients[: self._count]
        micro.gradients = None
        self.inner = [a.add_(b) for a, b in zip(self.inner, found, strict=True)] if self.inner else found


def _forward(model: TransformerModel, ids: Sequence[np.ndarray], rows: np.ndarray, seed: int, table_trained: bool) -> Micro:
    device = model.device
    packed = pack([ids[i] for i in rows]).to(device)
    seed_dropout(torch.Generator(device=device).manual_seed(seed))
    tokens = None
    if table_trained:
        tokens = model.token_vectors(packed).detach().requires_grad_()
    return Micro(model.pooled(packed, tokens), tokens, packed.ids)


@torch.no_grad()
def _static_gradients(
    model: StaticModel, ids: Sequence[np.ndarray], loss: Loss, weights: Mapping[str, float], held: TableGradient
) -> tuple[dict[str, float], float, float]:
    leaf = model.embed(ids).requires_grad_()
    with torch.enable_grad():
        terms, masked, total = _backward_loss(loss, weights, leaf)
    lengths = torch.tensor([len(row) for row in ids])
    upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    rows = (upstream / lengths.clamp(min=1)[:, None]).repeat_interleave(lengths, dim=0)
    model.table.grad = held.of(model.table, [(torch.from_numpy(np.concatenate(ids).astype(np.int64)), rows)])
    return terms, total, masked


def _backward_loss(loss: Loss, weights: Mapping[str, float], leaf: Tensor) -> tuple[dict[str, float], float, float]:
    terms, masked = loss(leaf)
    total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    return {name: float(term.detach()) for name, term in terms.items()}, masked, float(total.detach())
