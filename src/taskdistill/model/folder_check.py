"""What a model folder may say and hold beside its weights: refused by name, before anything is
computed with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.model.settings import ModelSettings
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.quantization import Int8Ranges
from taskdistill.tasks import Role, Task
from taskdistill.types import MANIFEST

_LOADED = re.compile(
    r"((\d+_[^/]+|adapters/[^/]+)/)?([^/]*\.safetensors(\.index\.json)?|vocab\.txt|(config|modules|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|generation_config|sentence_bert_config|config_sentence_transformers|adapter_config|golden)\.json)"
)
"""Files that some loader reads where it finds them."""


def check_unlisted(folder: Path, files: Collection[str]) -> None:
    """Refuse a file that a loader would read and that the manifest does not list: a second file of
    weights, an adapter, a tokenizer.

    Raises BadInput naming the first such file.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("*_*/*"), *folder.glob("adapters/*/*")]):
        name = path.relative_to(folder).as_posix()
        if name not in files and _LOADED.fullmatch(name):
            raise BadInput(
                f"{path} does not belong to this model: {MANIFEST} does not list it, and a loader"
                " would read it; move it away"
            )


def check_settings(settings: ModelSettings, tasks: Sequence[str], width: int, path: Path) -> None:
    """Check every setting of a manifest, which may hold anything: its type, and that it fits the
    model.

    Raises BadInput naming the first setting that does not fit.
    """

    def wrong(name: str, needed: str) -> BadInput:
        value = str(getattr(settings, name, tasks))[:80]
        return BadInput(f"{path}: {name} is {value}, needs {needed}; copy the folder again")

    if not _are(tasks, str) or len(set(tasks)) != len(tasks):
        raise wrong("tasks", "a list of different names")
    for name, needed, fits in _RULES:
        if not fits(getattr(settings, name)):
            raise wrong(name, needed)
    dims = settings.matryoshka_dims
    if (
        not _are(dims, int)
        or list(dims) != sorted(set(dims))
        or not all(0 < dim <= width for dim in dims)
    ):
        raise wrong("matryoshka_dims", f"ascending sizes from 1 to {width}")
    if any(
        name not in tasks or task not in tuple(Task)
        for name, task in settings.adapter_tasks.items()
    ):
        raise wrong(
            "adapter_tasks",
            f"a task of {', '.join(Task)} for adapters among {', '.join(tasks) or 'none'}",
        )
    named = ("base", *tasks)
    for task, ranges in settings.int8_ranges.items():
        _check_sizes(path, f"int8_ranges.{task}", task in named, ranges, width, _has_ranges)
    for task, roles in settings.binary_offsets.items():
        for role, sizes in roles.items():
            _check_sizes(
                path,
                f"binary_offsets.{task}.{role}",
                task in named and role in tuple(Role),
                sizes,
                width,
                _has_offsets,
            )


def check_prompts(
    prompts: Mapping[str, str], tokenizer: TextTokenizer, max_length: int, folder: Path
) -> None:
    """Refuse a prompt that leaves no room for a text: all texts would have one vector.

    `max_length`: tokens that the model reads. Raises BadInput naming the prompt.
    """
    for name, prompt in prompts.items():
        if (tokens := prompt_tokens(tokenizer, prompt)) >= max_length:
            raise BadInput(
                f"{folder}: the prompt {name!r} takes {tokens:,} tokens and the model reads"
                f" {max_length:,}, so nothing of any text would be left; shorten the prompt"
            )


def prompt_tokens(tokenizer: TextTokenizer, prompt: str) -> int:
    """Count the tokens that stand around every text behind a prompt.

    `prompt`: the prompt; empty for none. Returns tokens of the prompt and special tokens; 0 without
    a prompt.
    """
    return len(tokenizer.ids([prompt], prompt="", max_length=1 << 30).ids[0]) if prompt else 0


def _are(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


def _is_map(values: object) -> bool:
    return isinstance(values, Mapping) and all(isinstance(name, str) for name in values)


_RULES: Sequence[tuple[str, str, Callable[[Any], bool]]] = (
    (
        "prompts",
        "an object of strings",
        lambda value: _is_map(value) and all(isinstance(text, str) for text in value.values()),
    ),
    (
        "max_length",
        "a whole number above 0 and below 2^31",
        lambda value: type(value) is int and 0 < value < 1 << 31,
    ),
    (
        "rope_theta",
        "a number above 0, or null",
        lambda value: value is None or (type(value) in (int, float) and 0 < value < float("inf")),
    ),
    ("space_id", "a string", lambda value: isinstance(value, str)),
    ("teacher", "an object", _is_map),
    ("task_required", "true or false", lambda value: isinstance(value, bool)),
    ("int8_ranges", "an object", _is_map),
    (
        "binary_offsets",
        "an object of objects",
        lambda value: _is_map(value) and all(map(_is_map, value.values())),
    ),
    (
        "adapter_tasks",
        "an object of strings",
        lambda value: _is_map(value) and all(isinstance(task, str) for task in value.values()),
    ),
    ("extends", "a list of strings", lambda value: _are(value, str)),
    ("former_space_ids", "a list of strings", lambda value: _are(value, str)),
)


def _check_sizes(
    path: Path, name: str, known: bool, sizes: Any, width: int, fits: Callable[[Any, int], bool]
) -> None:
    """Check calibration of one task: each size that is named, with as many numbers as the size
    says.
    """
    good = (
        known
        and _is_map(sizes)
        and all(
            dim.isdecimal() and 0 < int(dim) <= width and fits(value, int(dim))
            for dim, value in sizes.items()
        )
    )
    if not good:
        raise BadInput(
            f"{path}: {name} is not what this model stores: a task and role that it has, sizes from"
            f" 1 to {width}, and as many finite numbers as each size says; copy the folder again"
        )


def _has_ranges(value: Any, dim: int) -> bool:
    try:
        return Int8Ranges.from_json(value).dim == dim
    except BadInput:
        return False


def _has_offsets(value: Any, dim: int) -> bool:
    try:
        row = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return row.shape == (dim,) and bool(np.isfinite(row).all())
