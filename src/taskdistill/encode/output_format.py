"""How the vectors of one call look: cut to size, then unit length, then precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.model.settings import ModelSettings
from taskdistill.quantization import Int8Ranges, pack_bits, truncate
from taskdistill.tasks import Role
from taskdistill.types import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """Size and precision of the vectors of one call."""

    dim: int
    precision: Precision
    ranges: Int8Ranges | None
    offset: np.ndarray | None = None
    """Taken from the unit vectors before their signs, `(dim,)`."""
    pooled: bool = False
    """Whether vectors stay as the model gives them, neither cut nor of unit length."""

    @property
    def width(self) -> int:
        """Numbers (for binary: bytes) of one vector."""
        return -(-self.dim // 8) if self.precision is Precision.BINARY else self.dim

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of one number."""
        names = {
            Precision.FLOAT32: "float32",
            Precision.FLOAT16: "float16",
            Precision.INT8: "int8",
            Precision.BINARY: "uint8",
        }
        return np.dtype(names[self.precision])

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """Cut, normalise and store vectors.

        `vectors`: float32 `(n, D)`, as the model gives them. Returns `(n, width)` of `dtype`.
        """
        if self.pooled:
            return vectors
        cut = truncate(vectors, self.dim)
        if self.precision is Precision.BINARY:
            return pack_bits(cut if self.offset is None else cut - self.offset)
        if self.ranges is not None:
            return self.ranges.encode(cut)
        return cut.astype(self.dtype, copy=False)


def resolve_output(
    settings: ModelSettings,
    width: int,
    task: str | None,
    truncate_dim: int | None,
    precision: str,
    role: str | None = None,
) -> OutputFormat:
    """Check size and precision of a call against what a model has.

    `settings`: the model's, with its stored int8 ranges. `task`: adapter, or None for the base.
    `truncate_dim`: coordinates to keep; None keeps all. `role`: query or document, whose binary
    codes may have offsets of their own; anything else is read as document. Raises BadInput if the
    model has no such size or precision.
    """
    if precision not in tuple(Precision):
        raise BadInput(f"unknown precision {precision!r}{did_you_mean(precision, Precision)}")
    dim = width if truncate_dim is None else truncate_dim
    if not 0 < dim <= width:
        raise BadInput(f"truncate_dim {truncate_dim} is not between 1 and the model's {width}")
    kind = Precision(precision)
    if kind is Precision.BINARY:
        return OutputFormat(
            dim=dim, precision=kind, ranges=None, offset=binary_offset(settings, task, dim, role)
        )
    if kind is not Precision.INT8:
        return OutputFormat(dim=dim, precision=kind, ranges=None)
    stored = settings.int8_ranges.get(task or "base", {})
    if str(dim) not in stored:
        known = ", ".join(stored) or "none"
        raise BadInput(
            f"this model stores no int8 ranges for {task or 'base'} at {dim} dimensions (stored:"
            f" {known}); use float32 and calibrate"
        )
    return OutputFormat(dim=dim, precision=kind, ranges=Int8Ranges.from_json(stored[str(dim)]))


def binary_offset(
    settings: ModelSettings, task: str | None, dim: int, role: str | None
) -> np.ndarray | None:
    """Find what a model takes from its vectors before their signs.

    `task`: adapter, or None for the base. `role`: query or document; anything else is read as
    document. Returns float32 `(dim,)`; None for a model that stores none. Raises BadInput if the
    model stores offsets, but not for this size.
    """
    if not settings.binary_offsets:
        return None
    stored = settings.binary_offsets.get(task or "base", {}).get(
        role if role == Role.QUERY else Role.DOCUMENT, {}
    )
    if str(dim) not in stored:
        known = ", ".join(stored) or "none"
        raise BadInput(
            f"this model stores no binary offsets for {task or 'base'} at {dim} dimensions (stored:"
            f" {known}); use one of these sizes"
        )
    return np.asarray(stored[str(dim)], dtype=np.float32)
