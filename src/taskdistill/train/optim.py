"""The optimiser and its learning-rate schedule: AdamW, warm-up, then linear, cosine or constant."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from taskdistill.recipe.phases import PhaseConfig
from taskdistill.train.fsdp import all_reduce_scalar, local_tensor


@dataclass(frozen=True, kw_only=True)
class HeadSchedule:
    """Where the heads (projection, temperature) are trained otherwise than the model; None takes
    the phase's value.
    """

    lr: float | None = None
    """Peak learning rate."""
    warmup: float | None = None
    """Share of the steps that warms up."""
    weight_decay: float | None = None


def make_optimizer(
    phase: PhaseConfig,
    model: Mapping[str, nn.Parameter],
    heads: Mapping[str, nn.Parameter],
    schedule: HeadSchedule | None = None,
    undecayed: Collection[str] = (),
) -> torch.optim.AdamW:
    """Build AdamW with weight decay on matrices only.

    `schedule`: of the heads; None for the phase's. `undecayed`: matrices of the model without
    weight decay. Returns the optimiser; each group keeps its peak rate as `peak` and its warm-up
    share as `warmup`.
    """
    head_schedule = schedule or HeadSchedule()
    decay = phase.weight_decay if head_schedule.weight_decay is None else head_schedule.weight_decay
    warmup = phase.warmup if head_schedule.warmup is None else head_schedule.warmup
    groups = []
    for named, rate, warm, weight_decay in (
        (model, phase.lr, phase.warmup, phase.weight_decay),
        (heads, head_schedule.lr or phase.lr, warmup, decay),
    ):
        for decays in (True, False):
            chosen = [
                p for name, p in named.items() if (p.ndim >= 2 and name not in undecayed) is decays
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "peak": rate,
                        "warmup": warm,
                        "weight_decay": weight_decay if decays else 0.0,
                    }
                )
    return torch.optim.AdamW(groups, betas=phase.betas, fused=True)


def rate_factor(phase: PhaseConfig, step: int, warmup: float | None = None) -> float:
    """Return the share of the peak learning rate at a step.

    `warmup`: share of the steps that warms up; None for the phase's. Returns between 0 and 1.
    """
    warm = round((phase.warmup if warmup is None else warmup) * phase.steps)
    if step < warm:
        return (step + 1) / warm
    if phase.schedule == "constant":
        return 1.0
    left = (phase.steps - step) / max(1, phase.steps - warm)
    return left if phase.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


def set_rate(optimiser: torch.optim.Optimizer, phase: PhaseConfig, step: int) -> None:
    """Set every group's learning rate for a step."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate_factor(phase, step, group["warmup"])


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> float:
    """Return the Euclidean norm of all gradients together; not finite if one of them is not."""
    result = [p.grad for p in parameters.values() if p.grad is not None]
    norms = [gradient.norm() for gradient in result if not isinstance(gradient, DTensor)]
    if divided := [
        local_tensor(gradient).norm() for gradient in result if isinstance(gradient, DTensor)
    ]:
        norms.append(all_reduce_scalar(torch.stack(divided).norm().square()).sqrt())
    return float(torch.stack(norms).norm()) if norms else 0.0


def clip(parameters: Mapping[str, nn.Parameter], norm: float, max_norm: float) -> None:
    """Scale gradients down to a norm."""
    if norm > max_norm:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(max_norm / norm)
