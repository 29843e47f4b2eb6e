"""All that evaluation knows of a model: two methods, and what it stores for compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from taskdistill.quantization import Int8Ranges

BinaryOffsets = Mapping[str, Mapping[int, NDArray[np.floating]]]
"""Query and document to dimension to what is taken from each coordinate before its sign."""


class Embedder(Protocol):
    """A model under evaluation."""

    name: str

    def encode(
        self, texts: Sequence[str], *, task: str | None, prompt_name: str
    ) -> NDArray[np.floating]:
        """Return (n, dim) float32 vectors of the texts, in their order."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the weights and of whatever else changes the vectors."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A model that stores int8 ranges; they serve queries and documents alike."""

    def int8_ranges(self, task: str) -> Mapping[int, Int8Ranges]:
        """Return the ranges of a task by dimension, empty where there are none."""
        ...


@runtime_checkable
class Centred(Protocol):
    """A model that takes the mean of a side from its vectors before their signs."""

    def binary_offsets(self, task: str) -> BinaryOffsets:
        """Return query and document to dimension to the offsets, empty where there are none."""
        ...


def binary_offsets_of(embedder: Embedder, task: str) -> BinaryOffsets:
    """Return the offsets of binary codes that a model stores, by role and dimension."""
    return embedder.binary_offsets(task) if isinstance(embedder, Centred) else {}


def int8_ranges_of(embedder: Embedder, task: str) -> Mapping[int, Int8Ranges]:
    """Return the int8 ranges that a model stores, by dimension."""
    return embedder.int8_ranges(task) if isinstance(embedder, Calibrated) else {}
