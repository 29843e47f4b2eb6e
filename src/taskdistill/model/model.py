"""A model in memory: its module, tokenizer, settings and adapters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig

from taskdistill.model.fingerprint import (
    fingerprint,
    model_hash,
    space_id,
    weight_bytes,
    weights_hash,
)
from taskdistill.model.projection import Projection
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a model folder says beside its weights."""

    prompts: dict[str, str] = field(default_factory=dict)
    max_length: int = 512
    matryoshka_dims: tuple[int, ...] = ()
    rope_theta: float | None = None
    """RoPE theta at inference; None for a backbone without rotary positions."""
    space_id: str = ""
    """Hash of everything that decides the base vectors, of a model that is not on disk;
    `Model.space_id` is the one in force.
    """
    teacher: dict[str, Any] = field(default_factory=dict)
    """Name, revision, embedding size and space id of the teacher; empty for a model that was not
    distilled here.
    """
    task_required: bool = False
    """Whether a task must be named: so with the published jina-v5 layout (section 3.1)."""
    int8_ranges: dict[str, Any] = field(default_factory=dict)
    """Task (or `base`) to dimension to the smallest and largest value of each coordinate."""
    binary_offsets: dict[str, Any] = field(default_factory=dict)
    """Task (or `base`) to `query` and `document` to dimension to what is taken from each coordinate
    before its sign; empty for none.
    """
    adapter_tasks: dict[str, str] = field(default_factory=dict)
    """Adapter to the task that it serves, where its name is another one."""
    extends: list[str] = field(default_factory=list)
    """Hashes of earlier states of this folder, all of whose adapters are in it unchanged."""
    former_space_ids: list[str] = field(default_factory=list)
    """Ids that earlier versions gave to the same space, so that their indexes are still searched.
    """


@dataclass(kw_only=True)
class Model:
    """A model in memory with its tokenizer and settings."""

    module: TransformerModel | StaticModel
    tokenizer: TextTokenizer
    settings: ModelSettings
    name: str
    source: Path
    """Where the tokenizer's side files are."""
    adapter_configs: dict[str, LoraConfig] = field(default_factory=dict)
    projection: Projection | None = None
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that decides vectors; empty for a model that is not on disk."""

    @property
    def hash(self) -> str:
        """Hash of all that decides any vector; empty for a model that is not on disk."""
        return model_hash(self.files, vars(self.settings))

    @property
    def space_id(self) -> str:
        """Hash of all that decides the base's vectors."""
        return space_id(self.files, vars(self.settings)) or self.settings.space_id

    @property
    def earlier_hashes(self) -> list[str]:
        """Other hashes by which an index may know this model: of earlier states, and of files alone
        as earlier versions made them.
        """
        return [*self.settings.extends, *([fingerprint(self.files)] if self.files else [])]


def base_space_id(model: Model) -> str:
    """Hash the base of a model in memory, as space ids were made before they were made of files and
    settings.

    `model`: the model, in float32. Returns 32 hexadecimal digits.
    """
    digest = hashlib.sha256(model.tokenizer.to_json().encode())
    digest.update(
        f"{_pooling(model)} {model.settings.rope_theta}"
        f" {sorted((str(name), text) for name, text in model.settings.prompts.items())}".encode()
    )
    for part in weight_bytes(model.module):
        digest.update(part)
    return digest.hexdigest()[:32]


def memory_files(model: Model) -> dict[str, str]:
    """Hash what stands for the deciding files of a base that is never written, so that its scores
    can be kept under its hash.

    Returns what stands for `Model.files`.
    """
    tokenizer = hashlib.sha256(model.tokenizer.to_json().encode()).hexdigest()
    return {
        "weights": weights_hash(model.module),
        "tokenizer.json": tokenizer,
        "pooling": _pooling(model),
    }


def _pooling(model: Model) -> str:
    return model.module.pooling.value if isinstance(model.module, TransformerModel) else "static"
