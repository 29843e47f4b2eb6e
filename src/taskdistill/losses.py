"""Losses: tensors in, scalar out. None of them knows a model.

Shape letters: B rows of the batch, M candidate documents, N texts, D embedding size, T teacher size.
Every loss is a mean over its items (paper, section 11.5) unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(vectors: Tensor) -> Tensor:
    """Scale rows to unit length; a zero row stays zero.

    Args:
        vectors: `(N, D)`.

    Returns:
        `(N, D)` with rows of Euclidean length 1.
    """
    return F.normalize(vectors, dim=-1)


def embedding_distance(projected: Tensor, targets: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Cosine distance to the teacher's vectors, `1 - cos` (section 4.2).

    Args:
        projected: Student vectors in the teacher's space, `(N, T)`, any length.
        targets: Teacher vectors, `(N, T)`, any length.
        reduction: `mean` over the N texts, or the `sum` that the paper prints.

    Returns:
        Scalar.
    """
    distances = 1 - (normalise(projected) * normalise(targets)).sum(-1)
    return distances.mean() if reduction == "mean" else distances.sum()


def info_nce(queries: Tensor, documents: Tensor, positives: Tensor, temperature: Tensor | float, excluded: Tensor | None = None) -> Tensor:
    """InfoNCE of queries against candidate documents (section 5.1).

    Large problems are computed by row chunks with the gradient taken in the forward pass; see `streaming_info_nce`.

    Args:
        queries: Unit rows, `(B, D)`.
        documents: Unit rows, `(M, D)`: every query's positive and all negatives.
        positives: Row of each query's positive in `documents`, `(B,)` of int64.
        temperature: Divisor of the similarities, a positive scalar.
        excluded: `(B, M)` of bool, true where a candidate is no negative; a query's positive is never excluded.

    Returns:
        Scalar, the mean over queries of minus the log-probability of the positive.
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
    """Compute the same value as `info_nce` in memory for `chunk` rows of similarities instead of all B.

    Args:
        queries: Unit rows, `(B, D)`.
        documents: Unit rows, `(M, D)`.
        positives: `(B,)` of int64.
        temperature: Positive scalar; learnable if it is a tensor that requires a gradient.
        excluded: `(B, M)` of bool, or None.
        chunk: Rows of similarities held at once.

    Returns:
        Scalar with gradients to queries, documents and temperature.
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
        for start in range(0, count, chunk):
            rows = slice(start, min(start + chunk, count))
            similarities = queries[rows] @ documents.T
            logits = similarities / tau
            if excluded is not None:
                logits.masked_fill_(_without_positives(excluded[rows], positives[rows]), -torch.inf)
            log_norm = torch.logsumexp(logits, dim=1)
            index = positives[rows, None]
            total += (log_norm - logits.gather(1, index)[:, 0]).sum()
            weights = logits.sub_(log_norm[:, None]).exp_()
            weights.scatter_add_(1, index, weights.new_full(index.shape, -1.0))
            weights /= count
            grad_tau -= (weights * similarities).sum() / tau**2
            weights /= tau
            grad_q[rows] = weights @ documents
            grad_d.addmm_(weights.T, queries[rows])
        ctx.save_for_backward(grad_q, grad_d, grad_tau)
        return total / count

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_d, grad_tau = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * grad_q, grads[0] * grad_d, None, grads[0] * grad_tau, None, None


def _without_positives(excluded: Tensor, positives: Tensor) -> Tensor:
    return excluded.scatter(1, positives[:, None], False)


def cosent(similarities: Tensor, scores: Tensor, temperature: float = 0.05) -> Tensor:
    """CoSENT: every pair of pairs in the wrong order costs (section 5.2, the standard form).

    Args:
        similarities: Cosine of each text pair, `(B,)`.
        scores: Gold score of each pair, `(B,)`.
        temperature: Divisor of the differences.

    Returns:
        Scalar: the log of one plus the sum of exponentials of `(similarity_j - similarity_i) / temperature` over all
        pairs with `score_i > score_j`; 0 if no such pair exists.
    """
    scaled = similarities / temperature
    differences = scaled[None, :] - scaled[:, None]
    ordered = scores[:, None] > scores[None, :]
    return torch.logsumexp(torch.cat([scaled.new_zeros(1), differences[ordered]]), dim=0)


def spread_out(vectors: Tensor) -> Tensor:
    """Global orthogonal regulariser (GOR): mean squared similarity of different rows (section 5.1).

    Only the second moment of the original spread-out regulariser: no squared mean, no hinge at 1/D.

    Args:
        vectors: Unit rows, `(B, D)`, B at least 2.

    Returns:
        Scalar between 0 and 1.
    """
    count = vectors.shape[0]
    squares = (vectors @ vectors.T).square()
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))


def relational_distance(student: Tensor, reference: Tensor, mean_gradient: bool = True) -> Tensor:
    """Match the distances among texts, each matrix divided by its own mean (section 5.4).

    Args:
        student: Unit rows with the adapter on, `(N, D)`.
        reference: Unit rows of the same texts without adapter, `(N, D')`; no gradient flows into them.
        mean_gradient: Whether the gradient flows through the mean of the student's matrix; the paper does not say.

    Returns:
        Scalar, the mean over all N x N entries of the squared difference. The means include the zero diagonal.
    """
    distances = 1 - student @ student.T
    targets = (1 - reference @ reference.T).detach()
    scale = distances.mean() if mean_gradient else distances.mean().detach()
    return (distances / scale - targets / targets.mean()).square().mean()


def score_distill(student: Tensor, teacher: Tensor, temperature: float = 0.02) -> Tensor:
    """Match softmaxed similarities among the texts of one side (section 7.1); sum this over both sides.

    Args:
        student: Unit rows, `(B, D)`.
        teacher: Unit rows of the same texts, `(B, T)`.
        temperature: Divisor of the similarities.

    Returns:
        Scalar: the sum over candidates of squared probability differences, averaged over the B rows.
    """
    got = torch.softmax(student @ student.T / temperature, dim=1)
    wanted = torch.softmax(teacher @ teacher.T / temperature, dim=1).detach()
    return (got - wanted).square().sum(1).mean()


def sign_straight_through(vectors: Tensor) -> Tensor:
    """Binary codes in the forward pass, the identity in the backward pass (quantisation-aware training; ours).

    Args:
        vectors: `(N, D)`.

    Returns:
        `(N, D)` of plus or minus one over the root of D, so that rows have unit length and a dot product is the share of equal bits,
        scaled to -1 to 1. The gradient is that of `vectors`.
    """
    codes: Tensor = torch.where(vectors > 0, 1.0, -1.0).to(vectors.dtype) / vectors.shape[-1] ** 0.5
    straight: Tensor = vectors + (codes - vectors).detach()
    return straight


def over_prefixes(loss: Callable[[int], Tensor], dims: Sequence[int]) -> Tensor:
    """Matryoshka: the equal-weight mean of a loss over prefix sizes (section 5.5, option 1).

    Args:
        loss: Prefix size to scalar.
        dims: Prefix sizes.

    Returns:
        Scalar.
    """
    return torch.stack([loss(dim) for dim in dims]).mean()
