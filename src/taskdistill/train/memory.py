"""Running out of memory: how it shows, and what is left to be tried."""

from __future__ import annotations

import gc

import torch

from taskdistill.device import empty_caches
from taskdistill.errors import WorkFailed

SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
"""What torch's allocators say; that of the CPU raises a bare RuntimeError."""


class OutOfMemory(WorkFailed):
    """Work did not fit into memory, here or on another process; what can be done in smaller parts
    is tried again.
    """

    def __init__(self) -> None:
        super().__init__(
            "out of memory; lower batch_size or micro_batch_tokens, or give the process more memory"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out.

    Returns True for Python's and torch's own errors, and for the RuntimeError of torch's CPU
    allocator.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_memory() -> None:
    """Give back what a failed step still holds."""
    gc.collect()
    empty_caches()
