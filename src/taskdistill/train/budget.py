"""How many tokens a forward pass may have, and how large a batch may be whose graphs are kept: from
the memory that is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from taskdistill.device import CPU, free_memory_of
from taskdistill.model.flops import held_bytes
from taskdistill.model.student import TransformerModel
from taskdistill.recipe.phases import MICRO_BATCH_TOKENS
from taskdistill.train.distributed import ProcessGroup

SHARE, SHARE_OF_HOST = 0.6, 0.25
"""Of the free memory, the part that graphs may take: on an accelerator, and on a host that other
programs share.
"""
FULL = 32_768
"""Tokens of a forward pass above which an accelerator has nothing left to gain."""
LEAST = 64
"""Tokens of a forward pass, however little memory there is; a step that does not fit is run again
in halves.
"""
UNKNOWN_ROOM = 24_576
"""Tokens whose graphs are kept where nothing tells how much memory is free."""
MOMENTS_AND_GRADIENT = 12
"""Bytes that an optimiser adds to each trained weight."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Token budgets of a phase's steps."""

    micro_batch_tokens: int
    """Of one forward pass; decides how a batch is cut, and with that the last bits of its sums."""
    keep_tokens: int
    """Of a batch up to which the graphs of its first forward passes are kept; above, a second pass
    makes them again, to the same bits.
    """

    def to_json(self) -> dict[str, int]:
        """Return plain data for the log and for checkpoints."""
        return asdict(self)


def choose_budget(
    model: TransformerModel,
    trained: int,
    *,
    device: torch.device,
    compute: torch.dtype | None,
    micro_batch_tokens: int | None = None,
    processes_here: int = 1,
    free: int | None = None,
) -> Budget:
    """Choose budgets for a phase that is about to begin.

    `model`: the model, where it is trained; of one without weights the architecture.
    `micro_batch_tokens`: what the recipe asks for; None leaves it to the memory. `free`: bytes that
    are free; None asks the device. Returns the budgets. On a CPU with ample memory a pass has what
    its cache holds.
    """
    if free is None:
        free = free_memory_of(device)
    if free is None:
        keep = UNKNOWN_ROOM
    else:
        room = free - MOMENTS_AND_GRADIENT * trained
        share = SHARE_OF_HOST / processes_here if device.type == CPU.type else SHARE
        keep = max(0, int(share * room / held_bytes(model.backbone, compute)))
    usual = MICRO_BATCH_TOKENS if device.type == CPU.type else FULL
    return Budget(micro_batch_tokens or max(LEAST, min(usual, keep)), keep)


def agreed(budget: Budget, processes: ProcessGroup) -> Budget:
    """Let every process cut batches alike: the smallest numbers of all of them hold.

    Returns the same on every process.
    """
    local_budget = torch.tensor([[budget.micro_batch_tokens, budget.keep_tokens]])
    micro, keep = processes.gather(local_budget, [1] * processes.size).amin(0).tolist()
    return Budget(int(micro), int(keep))


def saved_budget(manifest: Mapping[str, Any], device: torch.device) -> Budget | None:
    """Read the budgets under which a checkpoint was made, so that a continued run cuts its batches
    as the run before.

    `device`: where the run goes on. Returns the budgets; None for a checkpoint of another kind of
    device, and for one that was written before they were kept.
    """
    stored = manifest.get("budget")
    return (
        Budget(**stored) if stored is not None and manifest.get("device") == device.type else None
    )
