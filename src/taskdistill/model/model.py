"""A model in memory: its module, tokenizer, settings and adapters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig

from taskdistill.model.fingerprint import (
    fingerprint,
    model_hash,
    space_id,
    weight_bytes,
    weights_hash,
)
from taskdistill.model.projection import Projection
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer


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
        return model_hash(self.files, self.settings)

    @property
    def space_id(self) -> str:
        """Hash of all that decides the base's vectors."""
        return space_id(self.files, self.settings) or self.settings.space_id

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
