"""Memory that a token takes in a transformer's passes, from the shapes of its linear maps."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from taskdistill.errors import BadInput
from taskdistill.model.layers import layers_of

KEPT_FLOAT32, KEPT_HALF = 7.6, 5.7
"""Bytes that a kept graph holds for each token and feature that goes into or comes out of a linear
map, passes in float32 and in bfloat16 by autocast. Measured with saved-tensor hooks on layers of
the shapes of MiniLM and Qwen3-0.6B, whole and with LoRA (rank 32, dropout 0.1): 5.6 to 7.6 and
4.0 to 5.7; the largest is taken.
"""


def layer_features(backbone: nn.Module) -> list[int]:
    """Count what goes into and comes out of the linear maps of each layer, adapters aside.

    `backbone`: a transformer; its weights may be on the meta device.
    """
    try:
        layers = list(layers_of(backbone))
    except (
        BadInput
    ):  # a family whose layers are not found is counted as one, which is on the safe side
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


def kept_bytes(backbone: nn.Module, compute: torch.dtype | None) -> float:
    """Estimate what the graph of a forward pass keeps for one token until it is carried back.

    `compute`: number type of the passes by autocast; None for that of the weights, float32.
    """
    return sum(layer_features(backbone)) * (KEPT_FLOAT32 if compute is None else KEPT_HALF)


def passing_bytes(backbone: nn.Module, dtype: torch.dtype) -> float:
    """Estimate what one token takes in a forward pass that keeps nothing: the widest
    layer at work.
    """
    return max(layer_features(backbone)) * dtype.itemsize


def _counts(name: str, module: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(module, nn.Linear) and ".lora_" not in name
