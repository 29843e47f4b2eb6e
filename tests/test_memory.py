"""Memory: the peak is that of the process, and free memory goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from pathlib import Path
from taskdistill import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

memory.limit_malloc_arenas()
before = memory.peak_megabytes()
held = [b"x" * (100_000 + i) for i in range(1000)]
barrier = bytes(1000)
assert memory.peak_megabytes() >= before + 80, (before, memory.peak_megabytes())
full = resident()
del held
memory.trim_memory()
assert resident() < full - 80, (full, resident())
assert memory.peak_megabytes() >= full - 50
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_free_memory_goes_back_and_the_peak_stays():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
