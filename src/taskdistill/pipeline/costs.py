"""Floating-point work and memory of a transformer, from its architecture alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from taskdistill.model.activations import kept_bytes
from taskdistill.model.layers import layers_of
from taskdistill.model.lora import linear_names
from taskdistill.model.student import TransformerModel
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.train.budget import Budget, choose_budget


class Gpu(NamedTuple):
    """What the maker's data sheet says of a card.

    Dense operations a second by number type, and memory.
    """

    bfloat16: float
    gigabytes: int
    tf32: float
    float32: float

    def rate(self, precision: str) -> float:
        """Return the rate of a number type, in operations a second."""
        return {"tf32": self.tf32, "float32": self.float32}.get(precision, self.bfloat16)


CARDS = {
    "h100": Gpu(989e12, 80, 494e12, 67e12),
    "h200": Gpu(989e12, 141, 494e12, 67e12),
    "a100": Gpu(312e12, 80, 156e12, 19.5e12),
    "l40s": Gpu(362e12, 48, 183e12, 91.6e12),
    "a10": Gpu(125e12, 24, 62.5e12, 31.2e12),
}

CARD_REACHED = 0.4
"""Share of a card's rate that a plan counts with; an assumption, to be replaced by a measurement
where there is one.
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
        """Count the work of one text's forward pass.

        Returns floating-point operations: two for each weight and
        token, and four for each pair of tokens that attend, head size and head.
        """
        pairs = tokens * tokens * (0.5 if self.causal else 1.0)
        return 2.0 * self.matrix * tokens + 4.0 * self.attention * pairs


def size_of(backbone: PreTrainedModel) -> ModelSize:
    """Measure an architecture; weights may be on the meta device."""
    config, layers, names = backbone.config, layers_of(backbone), set(linear_names(backbone))
    matrix = sum(
        p.numel()
        for name, p in layers.named_parameters()
        if p.ndim == 2 and name.rsplit(".", 2)[-2] in names
    )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in backbone.parameters()),
        matrix=matrix,
        layers=len(layers),
        width=config.hidden_size,
        attention=len(layers) * config.num_attention_heads * head,
        causal=config.model_type in ("qwen3", "llama", "mistral")
        and getattr(config, "is_causal", True) is not False,
    )


def adapter_parameters(backbone: PreTrainedModel, rank: int) -> int:
    """Count the weights of a LoRA adapter on every linear map."""
    names = set(linear_names(backbone))
    maps = [
        p
        for name, p in layers_of(backbone).named_parameters()
        if p.ndim == 2 and name.rsplit(".", 2)[-2] in names
    ]
    return sum(rank * (p.shape[0] + p.shape[1]) for p in maps)


def card_budget(
    config: PhaseConfig | StaticConfig, module: TransformerModel, card: Gpu, precision: str
) -> Budget | None:
    """Choose a phase's token budgets as a run on an empty card does.

    `module`: the student, which may have no weights. `precision`: of the recipe; `auto` is
    bfloat16. Returns the budgets; None for the static student, which has no graphs.
    """
    if isinstance(config, StaticConfig):
        return None
    return choose_budget(
        module,
        _trained(config, module),
        device=torch.device("cuda"),
        compute=_compute(precision),
        micro_batch_tokens=config.micro_batch_tokens,
        free=card.gigabytes * 10**9 - 4 * _weights(module),
    )


def card_memory(
    config: PhaseConfig | StaticConfig,
    module: TransformerModel,
    budget: Budget | None,
    batch_tokens: float,
    precision: str,
) -> float:
    """Estimate what a phase takes on a card.

    Weights, gradients and moments, and the graphs that are there at once.

    `module`: the student, which may have no weights. `batch_tokens`: tokens of its largest batch.
    `precision`: of the recipe; `auto` is bfloat16. Returns bytes; 0 for the static student, which
    is trained on the CPU.
    """
    if isinstance(config, StaticConfig) or budget is None:
        return 0.0
    longest = max(config.max_length, *(length for _, length in config.long_sources.values()), 0)
    tokens = (
        batch_tokens
        if batch_tokens <= budget.keep_tokens
        else max(budget.micro_batch_tokens, longest)
    )
    frozen = _weights(module) if isinstance(config, AdapterConfig) else 0
    return (
        STATE_BYTES * _trained(config, module)
        + 4 * frozen
        + tokens * kept_bytes(module.backbone, _compute(precision))
    )


def _compute(precision: str) -> torch.dtype | None:
    return torch.bfloat16 if precision in ("auto", "bfloat16") else None


def _trained(config: PhaseConfig, module: TransformerModel) -> int:
    return (
        adapter_parameters(module.backbone, config.rank)
        if isinstance(config, AdapterConfig)
        else _weights(module)
    )


def _weights(module: TransformerModel) -> int:
    return sum(p.numel() for p in module.backbone.parameters())
