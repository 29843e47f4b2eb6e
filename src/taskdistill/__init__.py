"""taskdistill: distil a text-embedding teacher into a compact student with task adapters, and use
it.

The public names are loaded when first used, so that importing the package loads neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "BadInput": "taskdistill.errors",
    "WorkFailed": "taskdistill.errors",
    "Encoder": "taskdistill.encode.encoder",
    "encode_chunks": "taskdistill.encode.long_text",
    "encode_windows": "taskdistill.encode.long_text",
    "Recipe": "taskdistill.recipe.recipe",
    "load_recipe": "taskdistill.recipe.recipe",
    "train_recipe": "taskdistill.pipeline.train:train",
    "Task": "taskdistill.tasks",
    "Precision": "taskdistill.types",
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
