"""Moving a model to a device, and the tokens that one of its batches may have there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from taskdistill.device import AUTO, CPU, accelerators, free_memory_of
from taskdistill.encode.batches import TOKEN_BUDGET
from taskdistill.model.flops import passing_bytes
from taskdistill.model.student import StaticModel, TransformerModel

SHARE = 0.4
"""Of the memory that is free, the part that the batches of an encoder may take."""
FULL = 65_536
"""Tokens of a batch above which an accelerator has nothing left to gain."""
LEAST = 128
"""Tokens of a batch, however little memory there is: then single texts are the batches."""


def device_of(module: nn.Module) -> torch.device:
    """Say where a model's weights are."""
    return next(module.parameters()).device


def to_device(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model, in place. Only weights change their type: rotary frequencies stay in float32,
    or long texts lose their positions.
    """
    module.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model on a device for a while; its weights keep their bits.

    `module`: the model, changed in place.
    """
    before = device_of(module)
    module.to(device)
    try:
        yield
    finally:
        module.to(before)


def default_budget(module: TransformerModel | StaticModel, workers: int = 1) -> int:
    """Choose the tokens of one batch for a model where it is, from the memory that is free there.

    Returns tokens: on an accelerator as many as fit, up to what fills it; on a CPU what stays in
    its cache, unless even that does not fit.
    """
    if isinstance(module, StaticModel):
        return TOKEN_BUDGET
    parameter = next(module.parameters())
    ceiling = TOKEN_BUDGET if parameter.device.type == "cpu" else FULL
    free = free_memory_of(parameter.device)
    if free is None:
        return ceiling
    return max(
        min(LEAST, ceiling),
        min(ceiling, int(SHARE * free / workers / passing_bytes(module.backbone, parameter.dtype))),
    )


def assign_devices(devices: Sequence[str], processes: int) -> list[str]:
    """Give each process a device, in turn.

    `devices`: names; `auto`, or a kind of accelerator without a number, stands for every one of
    that kind. Returns a name for each process.
    """
    here = [str(device) for device in accelerators()] or [str(CPU)]
    named = [
        each for name in devices for each in (_all_of(name, here) if ":" not in name else [name])
    ]
    return [named[i % len(named)] for i in range(processes)]


def _all_of(kind: str, here: Sequence[str]) -> Sequence[str]:
    """List the devices of a kind; the kind itself where this machine has none, which is refused
    when it is opened.
    """
    if kind == AUTO:
        return here
    return [name for name in here if name.partition(":")[0] == kind] or [kind]
