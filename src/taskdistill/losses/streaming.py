"""InfoNCE in the memory of a few rows: similarities and gradients of one chunk after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from taskdistill.losses.vectors import without_positives


def streaming_info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    *,
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
                logits.masked_fill_(without_positives(excluded[rows], positives[rows]), -torch.inf)
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
