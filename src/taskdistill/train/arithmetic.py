"""Where training runs, in which number type its passes compute, and whether float32 products may
round to TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskdistill.device import (
    AMPERE,
    AUTO,
    CPU,
    accelerators,
    computes_in,
    device_name,
    dtype_name,
    resolve_device,
    resolve_dtype,
)
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.train.distributed import SINGLE, ProcessGroup

PRECISIONS = (AUTO, "float32", "tf32", "bfloat16")
"""What a recipe may say of the passes; float16 would need scaled losses."""


def training_device(choice: str = AUTO, processes: ProcessGroup = SINGLE) -> torch.device:
    """Choose the device of this process.

    `choice`: see `resolve_device`; a kind of accelerator without a number is divided among the
    processes of this host. `processes`: each takes the accelerator of its number on its host.
    Raises BadInput if the device is not here, or this host has fewer than processes.
    """
    device = resolve_device(choice)
    if device != CPU and processes.size > 1:
        if choice != AUTO and torch.device(choice).index is not None:
            raise BadInput(
                f"device {choice} is one device, and {processes.size} processes train; give"
                f" {device.type} without a number, or auto"
            )
        here = [each for each in accelerators() if each.type == device.type]
        place = processes.rank % max(1, processes.on_this_host)
        if place >= len(here):
            raise BadInput(
                f"{processes.on_this_host} processes were started on this host, which has"
                f" {len(here)} devices of type {device.type}; start one a device"
            )
        device = here[place]
    if device != CPU and hasattr(module := torch.get_device_module(device), "set_device"):
        module.set_device(device)
    return device


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """In which number types the passes of training compute; weights, optimiser and losses are
    float32 in any case.
    """

    compute: torch.dtype | None = None
    """Of the passes, by autocast; None for that of the weights."""
    tf32: bool = False
    """Whether products of float32 matrices in the passes may round their factors to TF32, as CUDA
    cards since Ampere can.
    """

    def __str__(self) -> str:
        passes = "float32" if self.compute is None else dtype_name(self.compute)
        return f"{passes} (float32 products in TF32)" if self.tf32 else passes


def choose_arithmetic(precision: str, device: torch.device) -> Arithmetic:
    """Choose the arithmetic of the passes.

    `precision`: of the recipe. `auto` is bfloat16 on an accelerator that computes in it, with TF32
    where the card has it, and float32 elsewhere, a CPU included; `float32` rounds nothing. Raises
    BadInput if it is unknown, or the device would only imitate it.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    rounds = (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= AMPERE
    )
    if precision == AUTO:
        half = device != CPU and computes_in(torch.bfloat16, device)
        return Arithmetic(torch.bfloat16 if half else None, rounds)
    if precision == "float32":
        return Arithmetic()
    if precision == "tf32":
        if not rounds:
            raise BadInput(
                f"precision: {device_name(device)} has no TF32 units, which CUDA cards have since"
                " Ampere; use float32 or auto"
            )
        return Arithmetic(None, True)
    try:
        return Arithmetic(resolve_dtype(precision, device), rounds)
    except BadInput as error:
        raise BadInput(f"precision: {error}") from None


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in products of float32 matrices on CUDA, for a while.

    Losses forbid it: divided by a temperature of 0.02, a cosine that is off by 0.0005 is a logit
    that is off by 0.025. `allowed`: whether products may round.
    """
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Put numbers of the host where a step computes with them. Returns the same numbers there."""
    return torch.from_numpy(values).to(device, non_blocking=True)
