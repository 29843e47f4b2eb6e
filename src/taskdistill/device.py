"""Where a model runs and in which arithmetic: one rule for every command, and a plain refusal of
what this machine has not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.memory import available_memory

AUTO = "auto"
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_FLAGS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""Flags of /proc/cpuinfo of which one must be there; without them torch's half precision is about a
hundred times slower than float32.
"""
AMPERE = (8, 0)
"""Compute capability of CUDA from which on cards multiply in bfloat16 and TF32."""
COMMON = ("cuda", "mps", "xpu")
"""Kinds of devices that people mean; only a hint after a name that torch does not know."""
MISNOMERS = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "intel": "xpu"}


@dataclass(frozen=True)
class RuntimeOptions:
    """Where models run, in which arithmetic, and on how many threads."""

    device: str = AUTO
    dtype: str = AUTO
    threads: int | None = None
    """Workers on a CPU; None for the cores of this machine."""

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the arithmetic, refused if this machine has not got them."""
        device = resolve_device(self.device)
        return device, resolve_dtype(self.dtype, device)


def accelerators() -> list[torch.device]:
    """List the accelerators of this machine.

    Returns every device of the first kind that is there: CUDA, then MPS, then whatever torch
    reports; none on a machine without.
    """
    if torch.cuda.is_available():
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [torch.device("mps", 0)]
    result = torch.accelerator.current_accelerator(check_available=True)
    return (
        []
        if result is None
        else [
            torch.device(result.type, number) for number in range(torch.accelerator.device_count())
        ]
    )


def resolve_device(choice: str = AUTO) -> torch.device:
    """Choose a device and make sure that it takes tensors.

    `choice`: `auto`: the first accelerator where there is one, otherwise the CPU; or any device
    that torch knows at this moment. Raises BadInput if torch does not know the name, or the device
    takes no tensor.
    """
    if choice == AUTO:
        return next(iter(accelerators()), CPU)
    here = [str(CPU), *(str(each) for each in accelerators())]
    device = _named(choice)
    if device is None:
        raise BadInput(
            f"unknown device {choice[:40]!r}: this machine has"
            f" {', '.join(here)}{_meant(choice, here)}"
        )
    if device.type == "cpu":
        return CPU
    if device.type == "meta":
        raise BadInput(
            f"device meta holds shapes without numbers; this machine has {', '.join(here)}"
        )
    try:
        return torch.empty(1, device=device).device
    # whatever the package of a device raises where its hardware, driver or module is missing
    except Exception as error:
        why = " ".join(str(error).partition(". ")[0].split())
        raise BadInput(
            f"device {choice} is not here ({why}): this machine has {', '.join(here)}; use one, or"
            " install a torch for it"
        ) from None


def _named(choice: str) -> torch.device | None:
    """Read the name of a device; None if torch does not know it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch knows, but no longer uses
            return torch.device(choice)
    except RuntimeError:
        return None


def _meant(choice: str, here: Sequence[str]) -> str:
    """Suggest a device for a name that torch does not know."""
    plain = choice.strip().lower()
    kind = plain.partition(":")[0]
    if kind in MISNOMERS:
        return f"; did you mean {MISNOMERS[kind]!r}?"
    if plain != choice and (plain == AUTO or _named(plain) is not None):
        return f"; did you mean {plain!r}?"
    return did_you_mean(
        plain[:40], dict.fromkeys([AUTO, *(name.partition(":")[0] for name in here), *COMMON])
    )


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether a device has units for a number type; torch would imitate it otherwise, many
    times slower.

    `dtype`: float32, bfloat16 or float16. Returns True where it has.
    """
    if dtype is torch.float32:
        return True
    if device.type == "cpu":
        return bool(CPU_FLAGS[dtype] & cpu_flags())
    if device.type == "cuda":
        return dtype is torch.float16 or torch.cuda.get_device_capability(device) >= AMPERE
    module = torch.get_device_module(device)
    if dtype is torch.bfloat16 and hasattr(module, "is_bf16_supported"):
        return bool(module.is_bf16_supported())
    try:
        one = torch.ones(2, 2, device=device, dtype=dtype)
        return bool((one @ one).float().sum().item() == 8)
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def resolve_dtype(
    choice: str, device: torch.device, *, auto: torch.dtype = torch.float32
) -> torch.dtype:
    """Choose the arithmetic of a model's weights.

    `choice`: `auto`, `float32`, `bfloat16` or `float16`. `device`: where the model runs. `auto`:
    what `auto` takes on an accelerator that computes in it; elsewhere `auto` is float32. Vectors of
    one model should not depend on the machine that made them, so this is float32 unless the caller
    keeps the choice with the vectors. Raises BadInput if it is unknown, or the hardware would only
    imitate it.
    """
    if choice == AUTO:
        return auto if device.type != "cpu" and computes_in(auto, device) else torch.float32
    if choice not in DTYPES:
        raise BadInput(f"unknown dtype {choice!r}; give one of {', '.join((AUTO, *DTYPES))}")
    if not computes_in(DTYPES[choice], device):
        slow = (
            " and would be about a hundred times slower than in float32"
            if device.type == "cpu"
            else ""
        )
        raise BadInput(f"{device_name(device)} has no {choice} units{slow}; use float32")
    return DTYPES[choice]


def compute_of(dtype: torch.dtype) -> torch.dtype | None:
    """Say how autocast gives an arithmetic to a model whose weights are and stay float32.

    Returns number type for autocast; None for float32, which needs none.
    """
    return None if dtype is torch.float32 else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Spell a number type as recipes and flags do. Returns such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """Name the hardware of a device.

    Returns what its driver calls it; `this CPU`, or the device itself where nothing tells.
    """
    if device.type == "cpu":
        return "this CPU"
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if named is None else str(named(device))


def placement(device: torch.device, dtype: torch.dtype) -> str:
    """Say in a few words where a model runs and in which arithmetic.

    Returns such as `device cuda:0 (NVIDIA H200), bfloat16`.
    """
    name = device_name(device)
    return (
        f"device {device}{f' ({name})' if device.type != 'cpu' and name != str(device) else ''},"
        f" {dtype_name(dtype)}"
    )


def free_memory_of(device: torch.device) -> int | None:
    """Ask how much memory a device can still give to this process.

    Returns bytes; None where nothing tells.
    """
    if device.type == "cpu":
        return available_memory()
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        return max(0, int(module.recommended_max_memory()) - int(module.driver_allocated_memory()))
    if not hasattr(module, "mem_get_info"):
        return None
    free = int(module.mem_get_info(device)[0])
    if hasattr(module, "memory_reserved"):  # what torch's allocator holds and nothing uses
        free += int(module.memory_reserved(device)) - int(module.memory_allocated(device))
    return free


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given. `device`: a CPU needs no waiting."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def empty_caches() -> None:
    """Let every accelerator give back the memory that nothing uses."""
    for kind in {device.type for device in accelerators()}:
        if hasattr(module := torch.get_device_module(kind), "empty_cache"):
            module.empty_cache()


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Read what the processor can do. Returns flags; none where the system does not tell."""
    if not path.is_file():
        return set()
    lines = path.read_text("utf-8", "replace").splitlines()
    return {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }
