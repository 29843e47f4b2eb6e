"""Pooling: per-token hidden states of a stream become one vector a text."""

from __future__ import annotations

import torch
from torch import Tensor

from taskdistill.model.packed import PackedBounds
from taskdistill.types import Pooling


def pool(hidden: Tensor, groups: PackedBounds, pooling: Pooling) -> Tensor:
    """Pool a packed stream.

    `hidden`: hidden states, `(tokens, D)`. `pooling`: `last` and `cls` take one token, `mean` all
    of a text (section 2.5). Returns `(texts, D)` in stream order, not normalised.
    """
    if pooling is Pooling.LAST:
        return hidden[groups.starts[1:].long() - 1]
    if pooling is Pooling.CLS:
        return hidden[groups.starts[:-1].long()]
    parts = torch.split(hidden, [count * length for _, count, length in groups.runs])
    return torch.cat(
        [
            part.view(n, length, -1).mean(1)
            for part, (_, n, length) in zip(parts, groups.runs, strict=True)
        ]
    )


def pool_padded(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool a padded batch, whichever side the padding is on.

    `hidden`: hidden states, `(B, L, D)`. `mask`: 1 for a real token, `(B, L)`. Returns `(B, D)`,
    not normalised.
    """
    if pooling is Pooling.MEAN:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device) * mask
    first = mask.to(torch.int64).argmax(1)
    index = places.argmax(1) if pooling is Pooling.LAST else first
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]
