"""One optimiser step's gradients: micro-batches over worker threads, the loss over the whole batch.

The vectors of all micro-batches are joined, the loss is taken of them as leaves, and its gradient is carried back through
each micro-batch. If the batch is small enough the graphs of the first pass are kept; otherwise a second forward pass makes
them again (gradient caching). Where the loss is a sum over texts, each micro-batch is carried back at once and no graph outlives
it. Dropout masks come from a generator seeded by step and micro-batch, so all these ways give the same numbers, and so do one
and two workers; with more workers the micro-batches are cut differently.
"""

from __future__ import annotations

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

KEEP_TOKENS = 24_576
"""Tokens of a batch up to which the graphs of the first forward pass are kept; above, a second pass makes them again."""

PIECE_TOKENS = 192
"""A micro-batch is not made smaller than this only to give every worker one."""

Loss = Callable[[Tensor], tuple[dict[str, Tensor], float]]


@dataclass(slots=True)
class Micro:
    """A micro-batch after its forward pass."""

    rows: np.ndarray
    """Which texts of the batch, `(n,)`, in stream order."""
    vectors: Tensor
    """Pooled, `(n, D)`."""
    tokens: Tensor | None
    """Rows of the token table that were looked up, as a leaf, `(tokens, hidden)`; None if the table is frozen."""
    ids: Tensor


class Workers:
    """Threads that run micro-batches, one intra-op thread each."""

    def __init__(self, count: int) -> None:
        """Start the threads.

        Args:
            count: How many; 1 runs everything in the calling thread with all its intra-op threads.
        """
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def map(self, work: Callable[[int], Micro | list[Tensor]], items: int) -> Iterator[Micro | list[Tensor]]:
        """Run work on 0 to items - 1 and yield results in that order.

        Args:
            work: Called from any thread.
            items: How many.

        Yields:
            What work returned.
        """
        if self._pool is None:
            yield from map(work, range(items))
        else:
            yield from self._pool.map(work, range(items))

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


def gradients(
    model: TransformerModel | StaticModel,
    ids: Sequence[np.ndarray],
    loss: Callable[[Tensor], tuple[dict[str, Tensor], float]],
    weights: Mapping[str, float],
    trained: Sequence[nn.Parameter],
    *,
    seed: int,
    threads: Workers,
    micro_batch_tokens: int = 1024,
    keep_tokens: int = KEEP_TOKENS,
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

    Returns:
        Each term's value, the weighted sum, and the masked share.
    """
    if isinstance(model, StaticModel):
        return _static_gradients(model, ids, loss, weights)
    lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    batches = even_batches(lengths, micro_batch_tokens)
    keep = int(lengths.sum()) <= keep_tokens
    table = model.backbone.get_input_embeddings().weight
    inner = [p for p in trained if p is not table]
    table_trained = len(inner) < len(trained)

    def forward(number: int) -> Micro:
        return _forward(model, ids, batches[number], seed * 1_000_003 + number, table_trained)

    def first_pass(number: int) -> Micro:
        with torch.set_grad_enabled(keep):
            return forward(number)

    micros: list[Micro] = list(threads.map(first_pass, len(batches)))  # type: ignore[arg-type]
    order = np.concatenate([micro.rows for micro in micros])
    joined = torch.cat([micro.vectors.detach() for micro in micros])
    leaf = torch.empty_like(joined).index_copy_(0, torch.from_numpy(order).to(joined.device), joined).requires_grad_()
    terms, masked, total = _backward_loss(loss, weights, leaf)
    upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)

    def backward(number: int) -> list[Tensor]:
        micro = micros[number] if keep else forward(number)
        inputs = [*inner, micro.tokens] if micro.tokens is not None else inner
        grads = torch.autograd.grad(micro.vectors, inputs, upstream[micro.rows], allow_unused=True)
        micros[number].tokens, micros[number].vectors, micros[number].ids = None, joined[:0], micro.ids
        return [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, grads, strict=True)]

    sums: list[Tensor] | None = None
    rows: list[tuple[Tensor, Tensor]] = []
    for number, grads in enumerate(threads.map(backward, len(batches))):
        assert isinstance(grads, list)
        if table_trained:
            rows.append((micros[number].ids, grads.pop()))
        sums = grads if sums is None else [a.add_(b) for a, b in zip(sums, grads, strict=True)]
    for parameter, gradient in zip(inner, sums or [], strict=True):
        parameter.grad = gradient
    if table_trained:
        table.grad = torch.zeros_like(table)
        for row_ids, gradient in rows:
            table.grad.index_add_(0, row_ids, gradient)
    return terms, total, masked


def even_batches(lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Cut a batch into micro-batches of nearly equal tokens, an even number of them, so that two workers end together.

    Args:
        lengths: Tokens of each text, `(n,)`.
        most: Tokens that a micro-batch shall not much exceed.

    Returns:
        Indices of the texts of each micro-batch, longest texts first; the same for any number of workers.
    """
    total = int(lengths.sum())
    count = min(len(lengths), 2 * -(-total // (2 * most)))
    order = np.argsort(-lengths, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    places = np.minimum(before * count // max(total, 1), count - 1)
    return [order[places == place] for place in np.unique(places)]


def _forward(model: TransformerModel, ids: Sequence[np.ndarray], rows: np.ndarray, seed: int, table_trained: bool) -> Micro:
    device = model.device
    packed = pack([ids[i] for i in rows]).to(device)
    seed_dropout(torch.Generator(device=device).manual_seed(seed))
    tokens = None
    if table_trained:
        tokens = model.token_vectors(packed).detach().requires_grad_()
    vectors = model.pooled(packed, tokens)
    return Micro(rows[packed.order.cpu().numpy()], vectors, tokens, packed.ids)


def _static_gradients(
    model: StaticModel, ids: Sequence[np.ndarray], loss: Callable[[Tensor], tuple[dict[str, Tensor], float]], weights: Mapping[str, float]
) -> tuple[dict[str, float], float, float]:
    model.table.grad = None
    vectors = model.embed(ids)
    leaf = vectors.detach().requires_grad_()
    terms, masked, total = _backward_loss(loss, weights, leaf)
    vectors.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return terms, total, masked


def _backward_loss(
    loss: Callable[[Tensor], tuple[dict[str, Tensor], float]], weights: Mapping[str, float], leaf: Tensor
) -> tuple[dict[str, float], float, float]:
    terms, masked = loss(leaf)
    total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return {name: float(term.detach()) for name, term in terms.items()}, masked, float(total.detach())
