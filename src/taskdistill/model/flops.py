"""What a model costs, by the shapes of its matrices: weights, floating-point work, and the bytes
that its passes and its optimizer take. Weights may be on the meta device.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from taskdistill.errors import BadInput
from taskdistill.model.layers import layers_of
from taskdistill.model.lora import linear_names
from taskdistill.model.student import StaticModel, TransformerModel

HELD_FLOAT32, HELD_HALF = 7.6, 5.7
"""Bytes that a kept graph holds for each token and feature that goes into or comes out of a linear
map, passes in float32 and in bfloat16 by autocast. Measured with saved-tensor hooks on layers of
the shapes of MiniLM and Qwen3-0.6B, whole and with LoRA (rank 32, dropout 0.1): 5.6 to 7.6 and
4.0 to 5.7; the largest is taken.
"""

STATE_BYTES = 16
"""Bytes a trained weight: itself, its gradient and AdamW's two moments, all in float32."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What decides the cost of a backbone."""

    parameters: int
    matrix: int
    """Weights of the linear maps of all layers: those that every token is multiplied with."""
    layers: int
    width: int
    attention: int
    """Query heads times head size, of all layers together."""
    causal: bool

    def forward(self, tokens: float) -> float:
        """Count the floating-point operations of one text's forward pass: two for each weight and
        token, and four for each pair of tokens that attend, head size and head.
        """
        pairs = tokens * tokens * (0.5 if self.causal else 1.0)
        return 2.0 * self.matrix * tokens + 4.0 * self.attention * pairs


def size_of(backbone: PreTrainedModel) -> ModelSize:
    """Measure an architecture."""
    config = backbone.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = len(layers_of(backbone))
    return ModelSize(
        parameters=count_parameters(backbone),
        matrix=sum(p.numel() for p in _linear_weights(backbone)),
        layers=layers,
        width=config.hidden_size,
        attention=layers * config.num_attention_heads * head,
        causal=config.model_type in ("qwen3", "llama", "mistral")
        and getattr(config, "is_causal", True) is not False,
    )


def count_parameters(module: nn.Module) -> int:
    """Count the weights of a model, adapters among them."""
    return sum(p.numel() for p in module.parameters())


def adapter_size(backbone: PreTrainedModel, rank: int) -> int:
    """Count the weights of a LoRA adapter on every linear map."""
    return sum(rank * (p.shape[0] + p.shape[1]) for p in _linear_weights(backbone))


def _linear_weights(backbone: PreTrainedModel) -> list[nn.Parameter]:
    names = set(linear_names(backbone))
    return [
        p
        for name, p in layers_of(backbone).named_parameters()
        if p.ndim == 2 and name.rsplit(".", 2)[-2] in names
    ]


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
    """Count the floating-point operations of one step, without what gradient caching does twice.

    `lengths`: tokens of each text, `(n,)`. Returns 0 for a static model, which multiplies no
    matrices.
    """
    if isinstance(model, StaticModel):
        return 0.0
    ids, tokens = {id(p) for p in trained}, float(lengths.sum())
    # A matrix is multiplied with every token in the forward pass and its transpose in the backward
    # pass; where it is trained, a third product makes its own gradient.
    trained_entries = sum(
        p.numel()
        for name, p in layers_of(model.backbone).named_parameters()
        if id(p) in ids and _acts(name, p, task)
    )
    # Two products of L x L scores a text and layer, and twice that on the way back.
    squares = float((lengths.astype(np.float64) ** 2).sum())
    attention = 4 * squares * model.embedding_dim * len(layers_of(model.backbone))
    return 2 * tokens * (2 * matrix_parameters(model, task) + trained_entries) + 3 * attention


def _acts(name: str, parameter: nn.Parameter, task: str | None) -> bool:
    if parameter.ndim != 2:
        return False
    return ".lora_" not in name or (task is not None and f".{task}." in name)


def layer_features(backbone: nn.Module) -> list[int]:
    """Count what goes into and comes out of the linear maps of each layer, adapters aside."""
    try:
        layers = list(layers_of(backbone))
    except BadInput:
        # A family whose layers are not found is counted as one, which is on the safe side.
        layers = [backbone]
    return [
        max(
            1,
            sum(
                linear.in_features + linear.out_features
                for name, linear in layer.named_modules()
                if _counts(name, linear)
            ),
        )
        for layer in layers
    ]


def held_bytes(backbone: nn.Module, compute: torch.dtype | None) -> float:
    """Estimate what the graph of a forward pass keeps for one token until it is carried back.

    `compute`: number type of the passes by autocast; None for that of the weights, float32.
    """
    return sum(layer_features(backbone)) * (HELD_FLOAT32 if compute is None else HELD_HALF)


def passing_bytes(backbone: nn.Module, dtype: torch.dtype) -> float:
    """Estimate what one token takes in a forward pass that keeps nothing: the widest
    layer at work.
    """
    return max(layer_features(backbone)) * dtype.itemsize


def _counts(name: str, module: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(module, nn.Linear) and ".lora_" not in name
