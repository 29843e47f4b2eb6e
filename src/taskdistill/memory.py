"""What a process holds: the peak of its memory, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from pathlib import Path

ARENAS = 2
"""Heaps that glibc may keep for threads; each holds on to the peak of the threads that ever used
it.
"""

_M_ARENA_MAX = -8


def limit_malloc_arenas() -> None:
    """Bound the heaps of threads, before threads are made; nothing happens where the C library is
    not glibc.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_M_ARENA_MAX, ARENAS)


def trim_memory() -> None:
    """Return free memory to the system; between phases, since every phase has threads and sizes of
    its own.
    """
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def peak_megabytes() -> float:
    """Return the largest resident memory of this process so far.

    Returns megabytes of 1,000,000 bytes.
    """
    if sys.platform.startswith(
        "linux"
    ):  # getrusage would also count what the process was before it began to run this program
        result = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
        if result:
            return int(result[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def available_memory() -> int | None:
    """Ask how much memory this process can still take without making the system swap or end it.

    Returns bytes: what the kernel calls available, or less where a control group allows less; None
    where the system does not tell.
    """
    result = [free for free in (_kernel_available(), *_group_available()) if free is not None]
    return min(result) if result else None


def _kernel_available() -> int | None:
    path = Path("/proc/meminfo")
    if path.is_file() and (line := re.search(r"MemAvailable:\s+(\d+) kB", path.read_text("utf-8"))):
        return int(line[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf(
            "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        )
    except (AttributeError, ValueError, OSError):
        return None


def _group_available(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Read what is left of the limits of this process's control groups, as a container sees them,
    version 2 and version 1.
    """
    left = []
    for limit, used, folder in (
        ("memory.max", "memory.current", root),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", root / "memory"),
    ):
        try:
            ceiling, now = (
                (folder / limit).read_text("utf-8").strip(),
                int((folder / used).read_text("utf-8")),
            )
            stat = (folder / "memory.stat").read_text("utf-8")
        except (OSError, ValueError):
            continue
        files = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
        if ceiling.isdigit():
            left.append(max(0, int(ceiling) - now + (int(files[1]) if files else 0)))
    return left


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
