"""Every test runs offline and on one thread, so that numbers do not depend on the machine's cores."""

from __future__ import annotations

import gc
import os

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NO_COLOR": "1",
}.items():
    os.environ.setdefault(name, value)


def pytest_collection_finish() -> None:
    """Take what was imported out of the collections that the job asks for, each of which would walk through all of torch and transformers."""
    gc.collect()
    gc.freeze()
