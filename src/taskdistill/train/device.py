"""Where training runs, and in which number type its passes compute."""

from __future__ import annotations

from typing import Literal

import torch

from taskdistill.encode.hardware import open_dtype
from taskdistill.errors import BadInput
from taskdistill.train.processes import ALONE, Processes


def training_device(choice: Literal["auto", "cpu", "cuda"], processes: Processes = ALONE) -> torch.device:
    """Choose the device of this process.

    Args:
        choice: `auto` takes a GPU if there is one.
        processes: Each takes the GPU of its number on its host.

    Returns:
        The device.

    Raises:
        BadInput: If a GPU is wanted and there is none, or fewer than processes.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if choice == "cpu" or (choice == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise BadInput("device is cuda, but torch sees no GPU here; install a CUDA build of torch, or set device: auto")
    place = processes.rank % max(1, processes.on_this_host)
    if place >= count:
        raise BadInput(f"{processes.on_this_host} processes were started on this host, which has {count} GPUs; start one a GPU")
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def compute_type(precision: Literal["float32", "bfloat16"], device: torch.device) -> torch.dtype | None:
    """Return the number type of the passes.

    Args:
        precision: Of the recipe. Weights, optimiser and losses stay in float32.
        device: Where training runs.

    Returns:
        bfloat16, or None for that of the weights.

    Raises:
        BadInput: If the device would only imitate it.
    """
    if precision == "float32":
        return None
    try:
        return open_dtype(precision, device)
    except BadInput as error:
        raise BadInput(f"precision: {error}") from None
