"""Floating-point work and memory of a transformer, from its architecture alone."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from taskdistill.model.adapters import linear_names
from taskdistill.model.backbone import layers_of

CARDS = {"h100": (989e12, 80), "h200": (989e12, 141), "a100": (312e12, 80), "l40s": (362e12, 48), "a10": (125e12, 24)}
"""Card to its dense bf16 rate in operations a second, by its maker's data sheet, and its memory in GB."""

CARD_REACHED = 0.4
"""Share of a card's bf16 rate that a plan counts with; an assumption, to be replaced by a measurement where there is one."""

ACTIVATION_BYTES = 31_000 / 384
"""Measured activation bytes per token, layer and hidden unit of a kept forward pass in float32; half of it in bf16."""

STATE_BYTES = 16
"""Bytes a trained weight: itself, its gradient and AdamW's two moments, all in float32."""


@dataclass(frozen=True)
class Size:
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

        Args:
            tokens: Tokens of the text.

        Returns:
            Floating-point operations: two for each weight and token, and four for each pair of tokens that attend, head size and head.
        """
        pairs = tokens * tokens * (0.5 if self.causal else 1.0)
        return 2.0 * self.matrix * tokens + 4.0 * self.attention * pairs


def size_of(backbone: PreTrainedModel) -> Size:
    """Measure an architecture; weights may be on the meta device.

    Args:
        backbone: The model.

    Returns:
        Its size.
    """
    config, layers, names = backbone.config, layers_of(backbone), set(linear_names(backbone))
    matrix = sum(p.numel() for name, p in layers.named_parameters() if p.ndim == 2 and name.rsplit(".", 2)[-2] in names)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Size(
        sum(p.numel() for p in backbone.parameters()),
        matrix,
        len(layers),
        config.hidden_size,
        len(layers) * config.num_attention_heads * head,
        config.model_type in ("qwen3", "llama", "mistral") and getattr(config, "is_causal", True) is not False,
    )


def adapter_parameters(backbone: PreTrainedModel, rank: int) -> int:
    """Count the weights of a LoRA adapter on every linear map.

    Args:
        backbone: The model.
        rank: Of the adapter.

    Returns:
        Number of weights.
    """
    names = set(linear_names(backbone))
    maps = [p for name, p in layers_of(backbone).named_parameters() if p.ndim == 2 and name.rsplit(".", 2)[-2] in names]
    return sum(rank * (p.shape[0] + p.shape[1]) for p in maps)
