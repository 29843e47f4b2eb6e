"""What a phase takes on a card: its token budgets and its memory, from the architecture alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

from taskdistill.model.flops import STATE_BYTES, adapter_size, count_parameters, held_bytes
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
        trained_weights(config, module),
        device=torch.device("cuda"),
        compute=_compute(precision),
        micro_batch_tokens=config.micro_batch_tokens,
        free=card.gigabytes * 10**9 - 4 * count_parameters(module.backbone),
    )


def card_memory(
    config: PhaseConfig | StaticConfig,
    module: TransformerModel,
    precision: str,
    *,
    budget: Budget | None,
    batch_tokens: float,
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
    frozen = count_parameters(module.backbone) if isinstance(config, AdapterConfig) else 0
    return (
        STATE_BYTES * trained_weights(config, module)
        + 4 * frozen
        + tokens * held_bytes(module.backbone, _compute(precision))
    )


def _compute(precision: str) -> torch.dtype | None:
    return torch.bfloat16 if precision in ("auto", "bfloat16") else None


def trained_weights(config: PhaseConfig, module: TransformerModel) -> int:
    """Count the weights that a phase trains: those of its adapter, or all."""
    if isinstance(config, AdapterConfig):
        return adapter_size(module.backbone, config.rank)
    return count_parameters(module.backbone)
