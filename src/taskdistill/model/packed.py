"""The flat token stream: texts concatenated without padding.

Linears, norms and activations run over all tokens at once; only `packed_attention` needs to know
where a text begins, and only `pooling` where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedBounds:
    """Where texts lie in the stream: runs of texts of equal length, in stream order."""

    runs: tuple[tuple[int, int, int], ...]
    """(first token, number of texts, tokens per text) of each run."""
    starts: Tensor
    """Cumulative lengths, `(texts + 1,)` of int32, for variable-length kernels."""
    longest: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Texts as one stream, longest texts last."""

    ids: Tensor
    """Token ids, `(tokens,)` of int64."""
    positions: Tensor
    """Position of each token in its own text, `(tokens,)` of int64."""
    groups: PackedBounds
    order: Tensor
    """Which given text stands at each place of the stream, `(texts,)` of int64."""

    def to(self, device: torch.device) -> PackedBatch:
        """Return the same stream on a device; this object if nothing had to move."""
        if self.ids.device == device:
            return self
        groups = replace(self.groups, starts=self.groups.starts.to(device))
        return PackedBatch(
            self.ids.to(device), self.positions.to(device), groups, self.order.to(device)
        )


def pack(texts: Sequence[np.ndarray]) -> PackedBatch:
    """Concatenate tokenised texts, sorted by length so that equal lengths are neighbours.

    `texts`: token ids of each text, none empty.
    """
    lengths = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    ids = np.concatenate([texts[i] for i in order]).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
    runs, first = [], 0
    for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
        runs.append((first, int(count), int(length)))
        first += int(count) * int(length)
    groups = PackedBounds(tuple(runs), torch.from_numpy(starts.astype(np.int32)), int(lengths[-1]))
    return PackedBatch(
        torch.from_numpy(ids), torch.from_numpy(positions), groups, torch.from_numpy(order)
    )
