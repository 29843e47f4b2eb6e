"""Devices and arithmetic types: what this machine has, and a plain refusal of what it has not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from taskdistill.encode.batches import TOKEN_BUDGET
from taskdistill.errors import BadInput
from taskdistill.model.student import StaticModel, TransformerModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_FLAGS = {torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"}, torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"}}
"""Flags of /proc/cpuinfo of which one must be there; without them torch's half precision is about a hundred times slower than float32."""

BUDGETS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
"""Token budgets that a calibration on a GPU tries."""
TIMED_LENGTH = 128
"""Tokens of each text of a timed batch."""

GAIN = 1.03
"""A larger budget must be this much faster than the best smaller one."""


def open_device(name: str | None) -> torch.device:
    """Check a device.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps`; None for the CPU.

    Returns:
        The device.

    Raises:
        BadInput: If torch does not know it or this machine does not have it.
    """
    try:
        device = torch.device(name or "cpu")
    except RuntimeError:
        raise BadInput(f"unknown device {name!r}; give cpu, cuda, cuda:N or mps") from None
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "mps" and torch.backends.mps.is_available())
    if (device.index or 0) >= count:
        raise BadInput(f"device {name} is not here: torch sees {count} devices of type {device.type}; use cpu, or install a torch for it")
    return device


def open_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Check the arithmetic type of the weights.

    Args:
        name: `float32`, `bfloat16` or `float16`; None for float32.
        device: Where the model runs.

    Returns:
        The type.

    Raises:
        BadInput: If it is unknown, or the hardware would only imitate it.
    """
    if name is not None and name not in DTYPES:
        raise BadInput(f"unknown dtype {name!r}; give one of {', '.join(DTYPES)}")
    dtype = DTYPES[name or "float32"]
    if device.type == "cpu" and dtype is not torch.float32 and not CPU_FLAGS[dtype] & cpu_flags():
        raise BadInput(f"this CPU has no {name} units and would be about a hundred times slower than in float32; use float32")
    if device.type == "cuda" and dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        raise BadInput(f"{torch.cuda.get_device_name(device)} has no bfloat16 units; use float16 or float32")
    return dtype


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Read what the processor can do.

    Args:
        path: The kernel's description of it.

    Returns:
        Flags; none where the system does not tell.
    """
    if not path.is_file():
        return set()
    lines = path.read_text("utf-8", "replace").splitlines()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.partition(":")[2].split()}


def device_of(module: nn.Module) -> torch.device:
    """Say where a model's weights are.

    Args:
        module: The model.

    Returns:
        The device.
    """
    return next(module.parameters()).device


def move(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model, in place. Only weights change their type: rotary frequencies stay in float32, or long texts lose their positions.

    Args:
        module: The model.
        device: Where to.
        dtype: Type of the weights.
    """
    module.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def default_budget(module: TransformerModel | StaticModel) -> int:
    """Choose the tokens of one batch for a model where it is.

    Args:
        module: The model.

    Returns:
        Tokens: fixed on a CPU, timed on a GPU.
    """
    if device_of(module).type != "cuda" or isinstance(module, StaticModel):
        return TOKEN_BUDGET
    return choose_budget(batch_timer(module))


def batch_timer(module: TransformerModel) -> Callable[[int], float]:
    """Make a function that times batches of one model.

    Args:
        module: The model.

    Returns:
        Tokens of a batch to the seconds of the faster of two runs, after one that warms up.
    """
    device = device_of(module)

    def time_batch(tokens: int) -> float:
        ids = [np.full(TIMED_LENGTH, 5, np.int32)] * max(1, tokens // TIMED_LENGTH)
        seconds = []
        with torch.inference_mode():
            for _ in range(3):
                begin = time.perf_counter()
                module.embed(ids).float().cpu()  # the copy waits for the device
                seconds.append(time.perf_counter() - begin)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return min(seconds[1:])

    return time_batch


def choose_budget(time_batch: Callable[[int], float], budgets: Sequence[int] = BUDGETS) -> int:
    """Choose a token budget by timing a batch of each size; stop where a larger one gains nothing or does not fit.

    Args:
        time_batch: Seconds of one warm batch of that many tokens.
        budgets: What to try, ascending.

    Returns:
        The smallest budget that no larger one beats by more than a few percent.
    """
    best, best_rate = budgets[0], 0.0
    for budget in budgets:
        try:
            rate = budget / time_batch(budget)
        except (MemoryError, torch.OutOfMemoryError):
            break
        if rate < best_rate * GAIN:
            break
        best, best_rate = budget, rate
    return best


def allot(devices: Sequence[str], processes: int) -> list[str]:
    """Give each process a device, in turn.

    Args:
        devices: Names; `cuda` alone stands for every GPU.
        processes: How many.

    Returns:
        A name for each process.
    """
    names = [each for name in devices for each in ([f"cuda:{i}" for i in range(torch.cuda.device_count())] if name == "cuda" else [name])]
    return [(names or list(devices))[i % max(1, len(names or devices))] for i in range(processes)]
