"""Vectors as a request wants them: cut, scaled, and as numbers, base64 or packed bits."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.output_format import binary_offset as stored_offset
from taskdistill.errors import BadInput
from taskdistill.quantization import Int8Ranges, pack_bits, truncate
from taskdistill.serve.errors import ApiError
from taskdistill.serve.schemas import Kind


def cut(raw: np.ndarray, dim: int, *, normalized: bool) -> np.ndarray:
    """Keep the first dimensions. Returns float32 `(n, dim)`."""
    return truncate(raw, dim) if normalized else np.ascontiguousarray(raw[:, :dim])


def int8_ranges(encoder: Encoder, task: str | None, dim: int) -> Int8Ranges:
    """Find the ranges that the model stores for its int8 codes.

    `task`: adapter, or None for the base. Raises ApiError 400 if none are stored.
    """
    stored = encoder.model.settings.int8_ranges.get(task or "base", {})
    if str(dim) not in stored:
        known = ", ".join(stored) or "none"
        raise ApiError(
            400,
            f"this model stores no int8 ranges for {task or 'base'} at {dim} dimensions (stored:"
            f" {known})",
            param="embedding_type",
        )
    return Int8Ranges.from_json(stored[str(dim)])


BITS = ("binary", "ubinary")


def binary_offset(
    encoder: Encoder, task: str | None, dim: int, role: str | None
) -> np.ndarray | None:
    """Find what the model takes from its vectors before their signs.

    `task`: adapter, or None for the base. `role`: query or document; anything else is read as
    document. Returns the offsets; None for a model that stores none. Raises ApiError 400 if the
    model stores offsets, but not for this size.
    """
    try:
        return stored_offset(encoder.model.settings, task, dim, role)
    except BadInput as error:
        raise ApiError(400, str(error), param="embedding_type") from None


def sent_as(
    vectors: np.ndarray, kind: Kind, ranges: Int8Ranges | None, offset: np.ndarray | None = None
) -> list[Any] | np.ndarray:
    """Put vectors into the form in which they are sent.

    `kind`: the form; `binary` is `ubinary` minus 128, as sentence-transformers has it. `offset`:
    for binary: what is taken from the vectors before their signs. Returns one entry a vector: an
    array of numbers, or base64 of little-endian float32.
    """
    if offset is not None and kind in BITS:
        vectors = vectors - offset
    match kind:
        case "base64":
            return [
                base64.b64encode(row.tobytes()).decode("ascii")
                for row in vectors.astype("<f4", copy=False)
            ]
        case "ubinary":
            return pack_bits(vectors)
        case "binary":
            return (pack_bits(vectors) ^ np.uint8(128)).view(np.int8)
        case "int8":
            assert ranges is not None
            return ranges.encode(vectors)
    return vectors
