"""Models as evaluation sees them: a student with or without adapters, a teacher by its store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from taskdistill.device import dtype_name
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.io.sealed import hash_json
from taskdistill.quantization import Int8Ranges, ranges_from_json
from taskdistill.tasks import Role, Task
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.protocol import Teacher, View
from taskdistill.teacher.store import TeacherStore


@runtime_checkable
class RunsHere(Protocol):
    """A model that runs on this machine."""

    @property
    def placement(self) -> str:
        """Device and arithmetic in a few words."""


class EncoderEmbedder:
    """An encoder; a task without an adapter, or every task if adapters are off, takes the base."""

    def __init__(self, encoder: Encoder, *, name: str | None = None, adapters: bool = True) -> None:
        """Wrap an encoder; without a name it is called by the model's own."""
        self.encoder = encoder
        self.adapters = adapters
        self.name = name or encoder.name
        self.cut = 0
        """Texts whose ends were cut so far, because they are longer than the model reads."""

    @property
    def placement(self) -> str:
        """Device and arithmetic in a few words."""
        return self.encoder.placement

    def encode(self, texts: Sequence[str], *, task: str | None, prompt_name: str) -> np.ndarray:
        """Return float32 (n, D) unit rows."""
        chosen = task if self.adapters and task in self.encoder.tasks else None
        encoded = self.encoder.encode_reporting(texts, task=chosen, prompt_name=prompt_name)
        self.cut += int(encoded.truncated.sum())
        return encoded.vectors

    def int8_ranges(self, task: str) -> Mapping[int, Int8Ranges]:
        """Return the ranges that the model folder stores, by dimension."""
        chosen = task if self.adapters and task in self.encoder.tasks else "base"
        return ranges_from_json(self.encoder.model.settings.int8_ranges.get(chosen, {}))

    def binary_offsets(self, task: str) -> Mapping[str, Mapping[int, np.ndarray]]:
        """Return the offsets of binary codes that the model folder stores."""
        chosen = task if self.adapters and task in self.encoder.tasks else "base"
        stored = self.encoder.model.settings.binary_offsets.get(chosen, {})
        return {
            role: {int(dim): np.asarray(row, np.float32) for dim, row in sizes.items()}
            for role, sizes in stored.items()
        }

    def fingerprint(self) -> str:
        """Hash what decides the vectors: the model, and whether its adapters are used."""
        parts = [
            self.encoder.model_hash,
            self.adapters,
            *([] if self.encoder.dtype is torch.float32 else [dtype_name(self.encoder.dtype)]),
        ]
        return hash_json(parts)


class TeacherEmbedder:
    """The teacher; its vectors of evaluation texts go into its store like all others."""

    def __init__(self, teacher: Teacher, stores: Mapping[View, TeacherStore]) -> None:
        self.teacher, self.stores = teacher, stores
        self.name = f"teacher ({teacher.identity.model})"

    def encode(self, texts: Sequence[str], *, task: str | None, prompt_name: str) -> np.ndarray:
        """Look float32 (n, T) vectors up, embedding what is missing.

        Clustering texts are read for their topic (section 5.3). Raises BadInput if the teacher has
        no vector for some text.
        """
        view: View = (
            "topic"
            if task == Task.CLUSTERING
            else "query"
            if prompt_name == Role.QUERY
            else "document"
        )
        store = self.stores[view]
        fill_store(store, texts, self.teacher)
        if missing := store.missing(texts):
            raise BadInput(
                f"the teacher gave no usable vector for {len(missing)} evaluation texts, so it"
                " cannot be scored on this set"
            )
        return store.get(texts).astype(np.float32)

    def fingerprint(self) -> str:
        """Hash what decides the vectors."""
        instructions = {view: store.instruction for view, store in sorted(self.stores.items())}
        return hash_json([self.teacher.identity.fields(), instructions])
