"""Floating-point work of a training step, counted from the shapes of the matrices and the lengths
of the texts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import nn

from taskdistill.model.layers import layers_of
from taskdistill.model.student import StaticModel, TransformerModel


def matrix_parameters(model: TransformerModel, task: str | None = None) -> int:
    """Count the entries of the matrices that every token is multiplied with.

    `task`: whose adapter is on; None for the base. Returns entries of all matrices of the layers;
    other adapters are left out.
    """
    return sum(
        p.numel()
        for name, p in layers_of(model.backbone).named_parameters()
        if _acts(name, p, task)
    )


def step_flops(
    model: TransformerModel | StaticModel,
    lengths: np.ndarray,
    trained: Collection[nn.Parameter],
    task: str | None,
) -> float:
    """Count the work of one step, without what gradient caching does twice.

    A matrix is multiplied with every token in the forward pass, its transpose in the backward pass,
    and if it is trained there is a third product for its own gradient. Attention adds two products
    of L x L scores a text and layer, and twice that back. `lengths`: tokens of each text, `(n,)`.
    Returns Floating-point operations; 0 for a static model, which multiplies no matrices.
    """
    if isinstance(model, StaticModel):
        return 0.0
    ids, tokens = {id(p) for p in trained}, float(lengths.sum())
    adapter_flops = sum(
        p.numel()
        for name, p in layers_of(model.backbone).named_parameters()
        if id(p) in ids and _acts(name, p, task)
    )
    squares = float((lengths.astype(np.float64) ** 2).sum())
    attention = 4 * squares * model.embedding_dim * len(layers_of(model.backbone))
    return 2 * tokens * (2 * matrix_parameters(model, task) + adapter_flops) + 3 * attention


def _acts(name: str, parameter: nn.Parameter, task: str | None) -> bool:
    if parameter.ndim != 2:
        return False
    return ".lora_" not in name or (task is not None and f".{task}." in name)
