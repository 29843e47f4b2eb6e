"""InfoNCE: of pairs, of quantized vectors, in row chunks, and with weights on what is hard."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from taskdistill.losses.term import PAIR_ROWS, LossTerm, normalize
from taskdistill.tasks import Task
from taskdistill.types import RowKind


def info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None = None,
) -> Tensor:
    """InfoNCE of queries against candidate documents (section 5.1).

    Large problems are computed by row chunks with the gradient taken in the forward pass; see
    `streaming_info_nce`. `queries`: unit rows, `(B, D)`. `documents`: unit rows, `(M, D)`: every
    query's positive and all negatives. `positives`: row of each query's positive in `documents`,
    `(B,)` of int64. `excluded`: `(B, M)` of bool, true where a candidate is no negative; a query's
    positive is never excluded. Returns scalar, the mean over queries of minus the log-probability
    of the positive.
    """
    if queries.shape[0] * documents.shape[0] > STREAM_ABOVE:
        return streaming_info_nce(queries, documents, positives, temperature, excluded)
    logits = queries @ documents.T / temperature
    if excluded is not None:
        logits = logits.masked_fill(_without_positives(excluded, positives), -torch.inf)
    return F.cross_entropy(logits, positives)


STREAM_ABOVE = 4096 * 4096
"""Similarities above which `info_nce` streams; below, one matrix is quicker or equal."""


def streaming_info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None = None,
    chunk: int = 512,
) -> Tensor:
    """`info_nce` in memory for `chunk` rows of similarities instead of all B.

    `queries`: unit rows, `(B, D)`. `documents`: unit rows, `(M, D)`. `temperature`: positive
    scalar; learnable if it is a tensor that requires a gradient. `excluded`: `(B, M)` of bool, or
    None.
    """
    tau = temperature if isinstance(temperature, Tensor) else queries.new_tensor(temperature)
    value: Tensor = _StreamingInfoNCE.apply(queries, documents, positives, tau, excluded, chunk)  # type: ignore[no-untyped-call]
    return value


class _StreamingInfoNCE(torch.autograd.Function):
    """Scores, softmax and all gradients of one row chunk at a time; backward only multiplies."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        queries: Tensor,
        documents: Tensor,
        positives: Tensor,
        tau: Tensor,
        excluded: Tensor | None,
        chunk: int,
    ) -> Tensor:
        grad_q, grad_d = torch.empty_like(queries), torch.zeros_like(documents)
        grad_tau, total = torch.zeros_like(tau), queries.new_zeros(())
        count = queries.shape[0]
        held = queries.new_empty((min(chunk, count), documents.shape[0]))
        for start in range(0, count, chunk):
            rows = slice(start, min(start + chunk, count))
            logits = torch.mm(queries[rows] / tau, documents.T, out=held[: rows.stop - start])
            if excluded is not None:
                logits.masked_fill_(_without_positives(excluded[rows], positives[rows]), -torch.inf)
            index = positives[rows, None]
            # The positive is read before the logits turn into weights in the same memory.
            row_max, positive_logit = logits.amax(1, keepdim=True), logits.gather(1, index)
            weights = logits.sub_(row_max).exp_()
            norm = weights.sum(1, keepdim=True)
            total += (row_max + norm.log() - positive_logit).sum()
            weights *= 1 / (norm * count)
            weights.scatter_add_(1, index, weights.new_full(index.shape, -1 / count))
            torch.mm(weights, documents, out=grad_q[rows])
            # d logit / d tau is -q.d / tau^2, so the gradient of the queries already holds it.
            grad_tau -= (grad_q[rows] * queries[rows]).sum() / tau**2
            grad_d.addmm_(weights.T, queries[rows])
        grad_q /= tau
        grad_d /= tau
        ctx.save_for_backward(grad_q, grad_d, grad_tau)
        return total / count

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        # In place: the gradients are the largest tensors here. A second pass backward is refused by
        # autograd itself.
        grad_q, grad_d, grad_tau = ctx.saved_tensors  # type: ignore[attr-defined]
        return (
            grad_q.mul_(grads[0]),
            grad_d.mul_(grads[0]),
            None,
            grad_tau.mul_(grads[0]),
            None,
            None,
        )


def _without_positives(excluded: Tensor, positives: Tensor) -> Tensor:
    return excluded.scatter(1, positives[:, None], False)


def sharpened_info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None = None,
    *,
    focal: float = 0.0,
    hardness: float = 0.0,
    hard: Tensor | None = None,
    mixed: Tensor | None = None,
) -> Tensor:
    """InfoNCE that looks harder at what is hard.

    With every setting at zero it is `losses.info_nce`. `queries`: unit rows, `(B, D)`. `documents`:
    unit rows, `(M, D)`. `positives`: row of each query's positive, `(B,)`. `excluded`: `(B, M)` of
    bool, true where a candidate is no negative. `focal`: exponent g of the weight `(1 - p)^g` of a
    query, p the probability of its positive (KaLM); the weights carry gradients. `hardness`: factor
    a of the weight `exp(a similarity)` of a hard negative in the sum, without gradient
    (EmbeddingGemma). `hard`: `(B, M)` of bool, true where a document is a hard negative of the
    query's own; needed with `hardness`. `mixed`: further negatives of each query's own, unit rows,
    `(B, S, D)`, from `mixed_negatives`.
    """
    similarities = queries @ documents.T
    logits = similarities / temperature
    if hardness and hard is not None:
        logits = logits + hardness * similarities.detach() * hard
    if excluded is not None:
        logits = logits.masked_fill(excluded.scatter(1, positives[:, None], False), -torch.inf)
    if mixed is not None:
        mixed_logits = torch.einsum("bd,bsd->bs", queries, mixed)
        weighted = mixed_logits / temperature + (
            hardness * mixed_logits.detach() if hardness else 0.0
        )
        present = mixed.detach().abs().sum(-1) > 0
        logits = torch.cat([logits, weighted.masked_fill(~present, -torch.inf)], 1)
    log_p = torch.log_softmax(logits, 1).gather(1, positives[:, None])[:, 0]
    return (-((1 - log_p.exp()).clamp_min(0) ** focal) * log_p).mean() if focal else -log_p.mean()


def mixed_negatives(
    documents: Tensor,
    owners: Tensor,
    count: int,
    *,
    mixes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Make negatives between negatives.

    Of each query, two of its hard negatives mixed by a draw from Beta(2, 2) (KaLM). `documents`:
    hard negatives, unit rows, `(H, D)`. `owners`: query of each, `(H,)`. `mixes`: negatives made
    for each query. `generator`: source of the draws; None for torch's own. Returns unit rows `(B,
    mixes, D)`; zero where a query has fewer than two hard negatives. Gradients flow into both sides
    of a mix.
    """
    out = documents.new_zeros(count, mixes, documents.shape[1])
    rows, places = list[Tensor](), list[tuple[int, int]]()
    for query in range(count):
        own_rows = torch.nonzero(owners == query)[:, 0]
        if len(own_rows) < 2:
            continue
        for mix in range(mixes):
            first, second = own_rows[
                torch.randperm(len(own_rows), generator=generator)[:2].to(own_rows.device)
            ]
            share = _beta(generator)
            rows.append(share * documents[first] + (1 - share) * documents[second])
            places.append((query, mix))
    if not rows:
        return out
    at = torch.tensor(places, device=out.device)
    return out.index_put((at[:, 0], at[:, 1]), normalize(torch.stack(rows)))


def _beta(generator: torch.Generator | None) -> float:
    """Draw from Beta(2, 2), which is the middle one of three uniform numbers."""
    return float(torch.rand(3, generator=generator).median())


def sign_straight_through(vectors: Tensor) -> Tensor:
    """Binary codes forward, the identity backward (quantisation-aware training; ours).

    Returns `(N, D)` of plus or minus one over the root of D, so that rows have unit length and a
    dot product is the share of equal bits, scaled to -1 to 1. The gradient is that of `vectors`.
    """
    codes: Tensor = torch.where(vectors > 0, 1.0, -1.0).to(vectors.dtype) / vectors.shape[-1] ** 0.5
    straight: Tensor = vectors + (codes - vectors).detach()
    return straight


INT8_STEPS = 255
"""Steps between the smallest and the largest code of int8."""


def int8_straight_through(vectors: Tensor) -> Tensor:
    """Int8 codes forward, the identity backward (quantisation-aware training; ours).

    Each dimension has the range of the batch, as stored vectors have that of the calibration texts
    (`compress.Int8Ranges`). Returns `(N, D)`: what the codes of the unit rows stand for, scaled to
    unit length. The gradient is that of `vectors` scaled to unit length.
    """
    unit = normalize(vectors)
    low, high = unit.detach().amin(0), unit.detach().amax(0)
    step = ((high - low) / INT8_STEPS).clamp_min(torch.finfo(unit.dtype).tiny)
    codes = ((unit.detach() - low) / step).round() * step + low
    straight: Tensor = unit + (normalize(codes) - unit).detach()
    return straight


TERMS = (
    LossTerm(
        name="info_nce",
        order=1,
        formula=info_nce,
        shape=normalize,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLASSIFICATION),
        rows=(RowKind.PAIRS, RowKind.LABELLED),
        needs=frozenset({"several_rows"}),
    ),
    LossTerm(
        name="binary_info_nce",
        order=6,
        formula=info_nce,
        shape=sign_straight_through,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING),
        rows=PAIR_ROWS,
        needs=frozenset({"several_rows"}),
    ),
    LossTerm(
        name="int8_info_nce",
        order=7,
        formula=info_nce,
        shape=int8_straight_through,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING),
        rows=PAIR_ROWS,
        needs=frozenset({"several_rows"}),
    ),
)
