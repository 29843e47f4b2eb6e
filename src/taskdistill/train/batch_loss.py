"""The loss of a batch and its gradient with respect to the vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from taskdistill.model.student import StaticModel
from taskdistill.train.arithmetic import tf32_products, to_device
from taskdistill.train.timer import Timer
from taskdistill.train.workers import EmbeddingGradient, looked_up_rows

Loss = Callable[[Tensor], tuple[dict[str, Tensor], float]]
"""From the vectors of all texts, `(texts, D)`, to named terms and the masked share."""
Share = Callable[[Tensor, np.ndarray], Tensor]
"""From the vectors of some texts, `(n, D)`, and their places in the batch to their share of the
weighted sum."""
StepLosses = tuple[dict[str, float], float, float]
"""Each term's value, the weighted sum, and the masked share."""


@torch.no_grad()
def static_gradients(
    model: StaticModel,
    ids: Sequence[np.ndarray],
    loss: Loss,
    weights: Mapping[str, float],
    held: EmbeddingGradient,
    clock: Timer,
) -> StepLosses:
    """Set the gradient of a static student's token table.

    `loss`: from vectors `(texts, D)` to named terms and the masked share. `clock`: told the seconds
    of each part. Returns each term's value, the weighted sum, and the masked share.
    """
    with clock("forward"):
        leaf = model.embed(ids).requires_grad_()
    with clock("loss"), torch.enable_grad():
        losses = backward_loss(loss, weights, leaf)
    with clock("backward"):
        lengths = to_device(
            np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids)), leaf.device
        )
        upstream = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        rows = (upstream / lengths.clamp(min=1)[:, None]).repeat_interleave(lengths, dim=0)
        flat = to_device(np.concatenate(ids).astype(np.int64), leaf.device)
        model.table.grad = held.all_reduce_(
            model.table, looked_up_rows(ids, model.table), [(flat, rows)]
        )
    return losses


def backward_loss(loss: Loss, weights: Mapping[str, float], leaf: Tensor) -> StepLosses:
    """Take the loss, and add its gradient to those of vectors and heads.

    `loss`: from vectors `(texts, D)` to named terms and the masked share. `leaf`: the vectors,
    `(texts, D)`. Returns each term's value, the weighted sum, and the masked share.
    """
    with tf32_products(False):
        terms, masked = loss(leaf)
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
    return (
        {name: float(term.detach()) for name, term in terms.items()},
        float(total.detach()),
        masked,
    )
