"""Every test runs offline and on one thread, so that numbers do not depend on the
machine's cores.
"""

from __future__ import annotations

import functools
import gc
import os
import ssl
import sys

import pytest
from helpers.forked import fork_server

MEASURED = 0.02
"""Seconds for which a run or a plan times products of matrices, half a second where no test runs
it; no test reads what it finds.
"""

# until everything is imported: what is imported stays, and is not looked through again and again
gc.disable()
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NO_COLOR": "1",
}.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `system/`, which run whole trainings, servers or several processes."""
    for item in items:
        if item.path.parent.name == "system":
            item.add_marker("whole")


def pytest_collection_finish() -> None:
    """Take what was imported out of the collections that the job asks for, each of which would walk
    through all of torch and transformers.

    Then fork the server of child processes, which so has everything that was imported.
    """
    if (speed := sys.modules.get("taskdistill.pipeline.profile")) is not None:
        _, *others = speed.matrix_rate.__defaults__
        speed.matrix_rate.__defaults__ = MEASURED, *others
    ssl.create_default_context = functools.cache(
        ssl.create_default_context
    )  # every client of HTTP reads all certificates, and none is used
    gc.collect()
    gc.freeze()
    gc.enable()
    fork_server()
