"""taskdistill: distil a text-embedding teacher into a compact student with task adapters, and use it.

The public names are loaded when first used, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "BadInput": "taskdistill.errors",
    "WorkFailed": "taskdistill.errors",
    "Encoder": "taskdistill.encode.encoder",
    "encode_chunks": "taskdistill.encode.chunks",
    "encode_windows": "taskdistill.encode.chunks",
    "Recipe": "taskdistill.recipe",
    "load_recipe": "taskdistill.recipe",
    "train_recipe": "taskdistill.job.run:train",
    "Task": "taskdistill.vocabulary",
    "Precision": "taskdistill.vocabulary",
}

__all__ = [
    "BadInput",
    "Encoder",
    "Precision",
    "Recipe",
    "Task",
    "WorkFailed",
    "encode_chunks",
    "encode_windows",
    "load_recipe",
    "train_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'taskdistill' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)
