"""What a model in memory says of itself, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from taskdistill.encode.placement import device_of
from taskdistill.model.fingerprint import fingerprint
from taskdistill.model.model import Model


class ModelProperties:
    """Properties of whatever wraps a model."""

    model: Model

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return device_of(self.model.module)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have an adapter."""
        return tuple(self.model.module.tasks)

    @property
    def embedding_dim(self) -> int:
        """Size of an uncut vector."""
        return self.model.module.embedding_dim

    @property
    def matryoshka_dims(self) -> tuple[int, ...]:
        """Prefix sizes that the model was trained for."""
        return self.model.settings.matryoshka_dims

    @property
    def max_length(self) -> int:
        """Tokens of one text that the model reads."""
        return self.model.settings.max_length

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompt name to the text put before an input."""
        return self.model.settings.prompts

    @property
    def space_id(self) -> str:
        """Hash of everything that decides the base vectors."""
        return self.model.space_id

    @property
    def former_space_ids(self) -> tuple[str, ...]:
        """Ids that earlier versions gave to the same space."""
        return tuple(self.model.settings.former_space_ids)

    @property
    def model_hash(self) -> str:
        """Hash of everything that decides any vector: weights, adapters, tokenizer, prompts,
        lengths and calibration.
        """
        return self.model.hash

    @property
    def files_hash(self) -> str:
        """Hash of the files alone: what a teacher is known by, whose instructions are the
        recipe's.
        """
        return fingerprint(self.model.files)
