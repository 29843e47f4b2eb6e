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


def normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length; a zero row stays zero.

    Returns:
        `(N, D)` with rows of Euclidean length 1.
    """
    return F.normalize(vectors, dim=-1)


def embedding_distance(
    projected: Tensor, targets: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cosine distance to the teacher's vectors, `1 - cos` (section 4.2).

    Args:
        projected: Student vectors in the teacher's space, `(N, T)`, any length.
        targets: Teacher vectors, `(N, T)`, any length.
        reduction: `mean` over the N texts, or the `sum` that the paper prints.
    """
    distances = 1 - (normalize(projected) * normalize(targets)).sum(-1)
    return distances.mean() if reduction == "mean" else distances.sum()


def teachers_distance(
    projected: Tensor,
    targets: Tensor,
    widths: Sequence[int],
    *,
    apart: bool,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cosine distance to the vectors of several teachers, of which some may have none for some texts (ours).

    Args:
        projected: Student vectors in the teachers' spaces side by side, `(N, T1 + T2 + ...)`.
        targets: The teachers' vectors side by side; a part that is not a number is a vector that its teacher has not.
        apart: Whether each teacher has a cosine of its own, of which the mean is taken; otherwise the unit vectors side by side are one target.
        reduction: `mean` over the N texts, or `sum`.

    Returns:
        Scalar. Only the parts that a text has count; a text that has none gives 0.
    """
    student_parts, teacher_parts = (
        torch.split(projected, list(widths), dim=1),
        torch.split(targets, list(widths), dim=1),
    )
    known = torch.stack([~part.isnan().any(1) for part in teacher_parts], dim=1)
    unit = [normalize(part.nan_to_num()) for part in teacher_parts]
    if apart:
        cosines = torch.stack(
            [
                (normalize(student) * one).sum(1)
                for student, one in zip(student_parts, unit, strict=True)
            ],
            dim=1,
        )
        cosine = (cosines * known).sum(1) / known.sum(1).clamp_min(1)
    else:
        mask = known.repeat_interleave(torch.tensor(list(widths), device=known.device), dim=1)
        cosine = (normalize(projected * mask) * normalize(torch.cat(unit, dim=1) * mask)).sum(1)
    distances = (1 - cosine) * known.any(1)
    return distances.mean() if reduction == "mean" else distances.sum()


def info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None = None,
) -> Tensor:
    """InfoNCE of queries against candidate documents (section 5.1).

    Large problems are computed by row chunks with the gradient taken in the forward pass; see `streaming_info_nce`.

    Args:
        queries: Unit rows, `(B, D)`.
        documents: Unit rows, `(M, D)`: every query's positive and all negatives.
        positives: Row of each query's positive in `documents`, `(B,)` of int64.
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
        temperature: Positive scalar; learnable if it is a tensor that requires a gradient.
        excluded: `(B, M)` of bool, or None.
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
            row_max, positive_logit = logits.amax(1, keepdim=True), logits.gather(1, index)
            weights = logits.sub_(row_max).exp_()
            norm = weights.sum(1, keepdim=True)
            total += (row_max + norm.log() - positive_logit).sum()
            weights *= 1 / (norm * count)
            weights.scatter_add_(1, index, weights.new_full(index.shape, -1 / count))
            torch.mm(weights, documents, out=grad_q[rows])
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
        # In place: the gradients are the largest tensors here. A second pass backward is refused by autograd itself.
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


def cosent(similarities: Tensor, scores: Tensor, temperature: float = 0.05) -> Tensor:
    """CoSENT: every pair of pairs in the wrong order costs (section 5.2, the standard form).

    Args:
        similarities: Cosine of each text pair, `(B,)`.
        scores: Gold score of each pair, `(B,)`.

    Returns:
        Scalar: the log of one plus the sum of exponentials of `(similarity_j - similarity_i) / temperature` over all
        pairs with `score_i > score_j`; 0 if no such pair exists.
    """
    scaled = similarities / temperature
    differences = scaled[None, :] - scaled[:, None]
    ordered = scores[:, None] > scores[None, :]
    return torch.logsumexp(torch.cat([scaled.new_zeros(1), differences[ordered]]), dim=0)


def gor(vectors: Tensor) -> Tensor:
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


def gor_hinged(vectors: Tensor) -> Tensor:
    """Spread-out regulariser with its mean and its hinge (arXiv 1708.06320), as sentence-transformers has it; `spread_out` has neither.

    Args:
        vectors: Unit rows, `(B, D)`, B at least 2.

    Returns:
        Scalar: the squared mean of the similarities of different rows, plus by how much the mean of their squares exceeds 1 / D, the
        value of random directions.
    """
    count, width = vectors.shape
    similarities = vectors @ vectors.T
    others = count * (count - 1)
    mean = (similarities.sum() - similarities.diagonal().sum()) / others
    return mean.square() + F.relu(gor(vectors) - 1 / width)


def mean_vector_penalty(vectors: Tensor) -> Tensor:
    """Squared length of the mean of unit rows: how far they lie to one side (ours).

    Sign bits tell texts apart only where a coordinate is above zero for some and below for others. Queries and documents have
    means of their own, so this is taken of each side.

    Args:
        vectors: Unit rows, `(B, D)`.

    Returns:
        Scalar between 0 and 1; for random directions 1 / B.
    """
    return vectors.mean(0).square().sum()


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

    Returns:
        Scalar: the sum over candidates of squared probability differences, averaged over the B rows.
    """
    got = torch.softmax(student @ student.T / temperature, dim=1)
    requested = torch.softmax(teacher @ teacher.T / temperature, dim=1).detach()
    return (got - requested).square().sum(1).mean()


def sign_straight_through(vectors: Tensor) -> Tensor:
    """Binary codes in the forward pass, the identity in the backward pass (quantisation-aware training; ours).

    Returns:
        `(N, D)` of plus or minus one over the root of D, so that rows have unit length and a dot product is the share of equal bits,
        scaled to -1 to 1. The gradient is that of `vectors`.
    """
    codes: Tensor = torch.where(vectors > 0, 1.0, -1.0).to(vectors.dtype) / vectors.shape[-1] ** 0.5
    straight: Tensor = vectors + (codes - vectors).detach()
    return straight


INT8_STEPS = 255
"""Steps between the smallest and the largest code of int8."""


def int8_straight_through(vectors: Tensor) -> Tensor:
    """Int8 codes in the forward pass, the identity in the backward pass (quantisation-aware training; ours).

    Each dimension has the range of the batch, as stored vectors have that of the calibration texts (`compress.Int8Ranges`).

    Returns:
        `(N, D)`: what the codes of the unit rows stand for, scaled to unit length. The gradient is that of `vectors` scaled to unit length.
    """
    unit = normalize(vectors)
    low, high = unit.detach().amin(0), unit.detach().amax(0)
    step = ((high - low) / INT8_STEPS).clamp_min(torch.finfo(unit.dtype).tiny)
    codes = ((unit.detach() - low) / step).round() * step + low
    straight: Tensor = unit + (normalize(codes) - unit).detach()
    return straight


def over_prefixes(loss: Callable[[int], Tensor], dims: Sequence[int]) -> Tensor:
    """Matryoshka: the equal-weight mean of a loss over prefix sizes (section 5.5, option 1)."""
    return torch.stack([loss(dim) for dim in dims]).mean()
