"""The flat token stream: texts concatenated without padding, for every backbone of transformers.

Linears, norms and activations run over all tokens at once. Attention is the one operation that must not cross texts:
it is registered with transformers as one more attention implementation, which receives the extents of the texts as the
keyword argument `groups` of the model's forward. On a CPU it runs once per group of texts of equal length, as a view
and without a mask; in half precision on a GPU through torch's variable-length kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "taskdistill_packed"


@dataclass(frozen=True, slots=True)
class Groups:
    """Where texts lie in the stream: runs of texts of equal length, in stream order."""

    runs: tuple[tuple[int, int, int], ...]
    """(first token, number of texts, tokens per text) of each run."""
    starts: Tensor
    """Cumulative lengths, `(texts + 1,)` of int32, for variable-length kernels."""
    longest: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts as one stream, longest texts last."""

    ids: Tensor
    """Token ids, `(tokens,)` of int64."""
    positions: Tensor
    """Position of each token in its own text, `(tokens,)` of int64."""
    groups: Groups
    order: Tensor
    """Which given text stands at each place of the stream, `(texts,)` of int64."""

    def to(self, device: torch.device) -> Packed:
        """Return the same stream on a device.

        Args:
            device: Target device.

        Returns:
            This object if nothing had to move.
        """
        if self.ids.device == device:
            return self
        groups = Groups(self.groups.runs, self.groups.starts.to(device), self.groups.longest)
        return Packed(self.ids.to(device), self.positions.to(device), groups, self.order.to(device))


def pack(texts: Sequence[np.ndarray]) -> Packed:
    """Concatenate tokenised texts, sorted by length so that equal lengths are neighbours.

    Args:
        texts: Token ids of each text, none empty.

    Returns:
        The stream.
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
    groups = Groups(tuple(runs), torch.from_numpy(starts.astype(np.int32)), int(lengths[-1]))
    return Packed(torch.from_numpy(ids), torch.from_numpy(positions), groups, torch.from_numpy(order))


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    groups: Groups | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of a stream; the signature is that of transformers' attention implementations.

    Args:
        module: The attention module; its `is_causal` decides unless the keyword says otherwise.
        query: `(1, heads, tokens, head size)`.
        key: `(1, key heads, tokens, head size)`.
        value: As `key`.
        attention_mask: Must be None: a stream has no padding.
        groups: Extents of the texts.
        dropout: Share of attention weights dropped.
        scaling: Factor of the scores; None for one over the root of the head size.
        is_causal: Whether a token sees only itself and earlier ones.
        sliding_window: Must be None or at least the longest text.

    Returns:
        `(1, tokens, heads, head size)` and no weights.

    Raises:
        ValueError: If the model was not called with a packed stream.
    """
    if groups is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention needs one stream, `groups`, and no attention mask; call the model through `embed_packed`")
    if sliding_window is not None and sliding_window < groups.longest:
        raise ValueError(
            f"this backbone attends over windows of {sliding_window} tokens; texts of {groups.longest} tokens cannot be packed"
        )
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    grouped_heads = query.shape[1] != key.shape[1]
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _variable_length(q, k, v, groups, scaling, causal)[None], None
    sizes = [count * length for _, count, length in groups.runs]
    out = []
    for (_, count, length), *parts in zip(groups.runs, *(torch.split(part, sizes) for part in (q, k, v)), strict=True):
        grouped_q, grouped_k, grouped_v = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(
            grouped_q, grouped_k, grouped_v, dropout_p=dropout, scale=scaling, is_causal=causal and length > 1, enable_gqa=grouped_heads
        )
        out.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None


def _variable_length(q: Tensor, k: Tensor, v: Tensor, groups: Groups, scaling: float | None, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        groups.starts,
        groups.starts,
        groups.longest,
        groups.longest,
        scale=scaling,
        window_size=window,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def can_pack(backbone: PreTrainedModel) -> bool:
    """Say whether a backbone's attention can be replaced by the packed one.

    Some families (MPNet, DeBERTa) compute attention by themselves; their texts run in ordinary batches of equal length.

    Args:
        backbone: A model.

    Returns:
        Whether a stream may be given to it.
    """
    return bool(type(backbone)._can_set_attn_implementation())


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
