"""What a process holds: the peak of its memory, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

ARENAS = 2
"""Heaps that glibc may keep for threads; each holds on to the peak of the threads that ever used it."""

_M_ARENA_MAX = -8


def few_heaps() -> None:
    """Bound the heaps of threads, before threads are made; nothing happens where the C library is not glibc."""
    library = _glibc()
    if library is not None:
        library.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free memory to the system; between phases, since every phase has threads and sizes of its own."""
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def peak_megabytes() -> float:
    """Return the largest resident memory of this process so far.

    Returns:
        Megabytes of 1,000,000 bytes.
    """
    if sys.platform.startswith("linux"):  # getrusage would also count what the process was before it began to run this program
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
        if found:
            return int(found[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
