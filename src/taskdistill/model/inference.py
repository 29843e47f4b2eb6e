"""A model in training as it will be when it is shipped: what decides which weights are kept must
score no other model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from taskdistill.model.student import StaticModel, TransformerModel


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of a backbone: their settings, and the module that has the frequencies."""

    parameters: Any
    frequencies: nn.Module | None


def read_rope(backbone: PreTrainedModel) -> Rope:
    """Remember the rotary positions in force.

    Returns what `put_rope` takes; empty for a backbone without rotary positions.
    """
    return Rope(
        copy.deepcopy(getattr(backbone.config, "rope_parameters", None)),
        getattr(backbone, "rotary_emb", None),
    )


def put_rope(backbone: PreTrainedModel, rope: Rope) -> None:
    """Put rotary positions back, to the bit, whatever was set meanwhile.

    `rope`: what `read_rope` returned for it.
    """
    if rope.frequencies is not None:
        backbone.config.rope_parameters = copy.deepcopy(rope.parameters)
        backbone.rotary_emb = rope.frequencies.to(backbone.device)


@contextmanager
def inference_view(module: TransformerModel | StaticModel, rope: Rope | None) -> Iterator[None]:
    """Let a model that is being trained compute as it will when it is shipped.

    Its rotary positions are those of inference, nothing is dropped out, and the passes compute in
    the type of its weights, whatever type training computes in. Afterwards everything is as it was,
    so that a run with scores has the weights of one without. `module`: the model; its weights stay
    where they are. `rope`: rotary positions of inference; None for a static model.
    """
    modes = [(part, part.training) for part in module.modules()]
    trained_at = read_rope(module.backbone) if isinstance(module, TransformerModel) else None
    device = next(module.parameters()).device.type
    try:
        if isinstance(module, TransformerModel) and rope is not None:
            put_rope(module.backbone, rope)
        module.eval()
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if isinstance(module, TransformerModel) and trained_at is not None:
            put_rope(module.backbone, trained_at)
        for part, mode in modes:
            part.training = mode
