"""The versions of Python and packages that decide numbers, as every result names them."""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    result = {"python": sys.version.split()[0]}
    for name in (
        "taskdistill",
        "torch",
        "transformers",
        "peft",
        "tokenizers",
        "numpy",
        "safetensors",
    ):
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return result
