"""The flat token stream: texts concatenated without padding.

Linears, norms and activations run over all tokens at once. Attention is the one operation that must
not cross texts: it is registered with transformers as one more attention implementation, which
receives the extents of the texts as the keyword argument `groups` of the model's forward. On a CPU
it runs once per group of texts of equal length, as a view and without a mask; in half precision on
a GPU through torch's variable-length kernel.

A layer with windowed attention sees a band around each token. Texts longer than the band are cut
into blocks of queries, each of which meets only the keys in its reach, so that time and memory grow
with the length of a text, not its square.

The mask that a family describes to transformers is not built: the band is read off it at a few
rows, so that windows are counted as the family counts them. A keyword of the attention that is not
known here is refused.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from taskdistill.errors import BadInput

ATTENTION = "taskdistill_packed"

BLOCK = {"cpu": (64, 256), "cuda": (512, 512)}
"""Fewest and most queries of a block by device. On a CPU, blocks of the window's size were fastest
at 64, no slower up to 256; on a GPU fewer and larger kernels count for more than the keys
computed in vain.
"""

KERNEL_DEVICES = frozenset({"cuda"})
"""Where torch has its variable-length kernel, for half precision."""

KERNEL_HEAD_SIZE = 256
"""Largest head size of the variable-length kernel; it must be a multiple of 8."""

PASSED_OVER = frozenset(
    {
        "deterministic",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "use_cache",
        "cache_position",
    }
)
"""Keywords that reach an attention implementation and change nothing in what it computes here."""


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
        groups = PackedBounds(self.groups.runs, self.groups.starts.to(device), self.groups.longest)
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


@dataclass(frozen=True, slots=True)
class Band:
    """Which tokens of its own text a token sees: so many before and behind itself; None for all of
    them.
    """

    before: int | None
    behind: int | None

    @classmethod
    def of(cls, causal: bool, window: int | None) -> Band:
        """Read the keywords of transformers; a window counts the token itself, on each side that is
        seen.
        """
        reach = None if window is None else window - 1
        return cls(reach, 0 if causal else reach)

    def cuts(self, length: int) -> bool:
        """Say whether a text of this length reaches out of its own window; the causal limit alone
        cuts nothing.
        """
        furthest = length - 1
        before = self.before is not None and self.before < furthest
        behind = self.behind is not None and 0 < self.behind < furthest
        return before or behind

    def sides(self, length: int) -> tuple[int, int]:
        """Give both reaches as numbers for texts of this length."""
        return (length if self.before is None else self.before), (
            length if self.behind is None else self.behind
        )


class FamilyMask:
    """The mask that a family describes to transformers, as a function of two places in the stream;
    it is never built.
    """

    def __init__(
        self, sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], device: torch.device
    ) -> None:
        """Keep the description."""
        self._sees, self._device = sees, device
        self._band: Band | None = None

    def band(self, groups: PackedBounds) -> Band:
        """Read off what the first, the middle and the last two tokens of the longest text see, or
        refuse what is no band.

        Two neighbours, for one token alone may stand where a chunk begins.
        """
        if self._band is None:
            length, last = groups.longest, groups.runs[-1]
            start = last[0] + (last[1] - 1) * length
            places = {0, 1, length // 2, length // 2 + 1, length - 2, length - 1}
            rows = torch.tensor(
                sorted(place for place in places if 0 <= place < length), device=self._device
            )[:, None]
            keys = torch.arange(length, device=self._device)[None]
            zero = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
            seen = (
                self._sees(zero, zero, rows + start, keys + start).expand(len(rows), length).cpu()
            )
            before, behind = (int(seen[row].sum()) - 1 for row in (-1, 0))
            distance = (keys - rows).cpu()
            if not torch.equal(seen, (distance >= -before) & (distance <= behind)):
                raise BadInput(
                    f"in texts of {length} tokens it is no band of the same width around each token"
                )
            self._band = Band(
                *(None if reach == length - 1 else reach for reach in (before, behind))
            )
        return self._band


_bands: weakref.WeakKeyDictionary[nn.Module, tuple[int, Band]] = weakref.WeakKeyDictionary()
"""For each attention module the longest text whose mask was read, and the band; it is read again
for longer ones.
"""


def _band_of(module: nn.Module, mask: FamilyMask, groups: PackedBounds, causal: bool) -> Band:
    """Give a layer's band as its family's mask says it, which is what transformers itself
    goes by.
    """
    longest, band = _bands.get(module, (0, Band(None, None)))
    if groups.longest <= longest:
        return band
    name = type(module).__name__
    try:
        band = mask.band(groups)
    except BadInput as error:
        raise BadInput(
            f"the mask that a {name} asks for cannot be packed: {error}; use a family of"
            " docs/families.md"
        ) from None
    only_itself = groups.longest == 1 or band == Band(0, 0)
    if (band.behind == 0) is not causal and not only_itself:
        direction = "causal" if causal else "not causal"
        raise BadInput(
            f"a {name} says that it is {direction}, its family's mask says otherwise; correct"
            " is_causal in config.json"
        )
    _bands[module] = (groups.longest, band)
    return band


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: FamilyMask | Tensor | None,
    *,
    groups: PackedBounds | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attend within each text of a stream; the signature is that of transformers' attention
    implementations.

    `module`: the attention module; its `is_causal` decides unless the keyword says otherwise.
    `query`: `(1, heads, tokens, head size)`. `key`: `(1, key heads, tokens, head size)`. `value`:
    as `key`; its number type is that of the result. `attention_mask`: what the family asked for; a
    tensor is refused, for a stream has no padding. `scaling`: factor of the scores; None for one
    over the root of the head size. `is_causal`: whether a token sees only itself and earlier ones.
    `sliding_window`: tokens that a token sees on each side, itself included; read only where the
    family describes no mask. `s_aux`: a score for each head that takes part in the softmax and
    carries no value (an attention sink), `(heads,)`. `**others`: refused unless None, False or
    known to change nothing. Returns `(1, tokens, heads, head size)` and no weights. Raises
    ValueError if the model was not called with a packed stream. Raises BadInput if the layer's
    attention is of a kind that is not computed here.
    """
    if groups is None or isinstance(attention_mask, Tensor) or query.shape[0] != 1:
        raise ValueError(
            "packed attention needs one stream, `groups`, and no attention mask; call the model"
            " through `embed_packed`"
        )
    if unknown := sorted(
        name
        for name, keyword_value in others.items()
        if name not in PASSED_OVER and keyword_value is not None and keyword_value is not False
    ):
        raise BadInput(
            f"the attention of a {type(module).__name__} asks for {', '.join(unknown)}, which the"
            " packed stream does not compute"
        )
    causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if not isinstance(causal, bool):
        raise BadInput(
            f"a {type(module).__name__} does not say whether it is causal; texts of this family"
            " cannot be packed"
        )
    if attention_mask is None:
        band = Band.of(causal, sliding_window)
    else:
        band = _band_of(module, attention_mask, groups, causal)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    q, k, v = _in_one_type(q, k, v)
    if s_aux is None and kernel_takes(q, v, dropout):
        return _variable_length(q, k, v, groups, scaling, band)[None], None
    sizes = [count * length for _, count, length in groups.runs]
    attend = _Attend(band, dropout, scaling, q.shape[1] != k.shape[1], s_aux)
    out = []
    for (_, count, length), *parts in zip(
        groups.runs, *(torch.split(part, sizes) for part in (q, k, v)), strict=True
    ):
        grouped = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in parts)
        out.append(attend(*grouped).transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None


def _in_one_type(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give all three the type of the values: norms and rotations of float32 widen queries and keys,
    under autocast for nothing.
    """
    kind, device = v.dtype, v.device.type
    if kind == torch.float32 and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    return q.to(kind), k.to(kind), v.to(kind)


@dataclass(frozen=True, slots=True)
class _Attend:
    """Attention among texts of equal length, on all of them at once."""

    band: Band
    dropout: float
    scaling: float | None
    grouped_heads: bool
    sinks: Tensor | None = field(compare=False)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""
        sink, scaling = None, self.scaling
        if self.sinks is not None:
            scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
            sink = _Sink.of(self.sinks, q, k, v, scaling)
            q = sink.queries
        if self.band.cuts(q.shape[2]):
            out = self._in_blocks(q, k, v, sink, scaling)
        else:
            causal = self.band.behind == 0 and q.shape[2] > 1
            if sink is not None:
                q, k, v = sink.before(q, k, v)
            out = self._product(q, k, v, None, causal, scaling)
            out = out if sink is None else out[:, :, 1:]
        return out if sink is None else out[..., :-1]

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, sink: _Sink | None, scaling: float | None
    ) -> Tensor:
        length = q.shape[2]
        before, behind = self.band.sides(length)
        fewest, largest = BLOCK.get(q.device.type, BLOCK["cuda"])
        size = min(max(before, fewest), largest)
        keys, values = torch.split(k, size, dim=2), torch.split(v, size, dim=2)
        sliced = not (torch.is_grad_enabled() and (k.requires_grad or v.requires_grad))
        out = []
        for number, block in enumerate(torch.split(q, size, dim=2)):
            start, stop = number * size, number * size + block.shape[2]
            if sliced:
                first, last = max(0, start - before), min(length, stop + behind)
                near_k, near_v = k[:, :, first:last], v[:, :, first:last]
            else:
                # the gradient of a slice is as long as the text; that of joined blocks as long as
                # the blocks
                low, high = max(0, start - before) // size, -(-min(length, stop + behind) // size)
                first, near_k, near_v = (
                    low * size,
                    torch.cat(keys[low:high], dim=2),
                    torch.cat(values[low:high], dim=2),
                )
            shape = (block.shape[2], near_k.shape[2], start - first)
            mask = _band_mask(*shape, before, behind, sink is not None, block.dtype, block.device)
            if sink is not None:
                near_k, near_v = sink.beside(near_k, near_v)
            out.append(self._product(block, near_k, near_v, mask, False, scaling))
        return torch.cat(out, dim=2)

    def _product(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        scaling: float | None,
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout,
            scale=scaling,
            is_causal=causal,
            enable_gqa=self.grouped_heads,
        )


@functools.lru_cache(maxsize=64)
def _band_mask(
    rows: int,
    columns: int,
    shift: int,
    before: int,
    behind: int,
    sink: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Give 0 where a query of a block sees a key and minus infinity elsewhere, `(rows, columns)`;
    one column more for a sink.

    `shift` is the place of the first query among the keys. Layers and texts share the few masks
    that there are.
    """
    with torch.inference_mode(False):  # made while encoding, it may be used in training
        distance = (
            torch.arange(columns, device=device)[None]
            - torch.arange(rows, device=device)[:, None]
            - shift
        )
        hidden = (distance < -before) | (distance > behind)
        mask = torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill_(
            hidden, float("-inf")
        )
        return F.pad(mask, (1, 0)) if sink else mask


@dataclass(frozen=True, slots=True)
class _Sink:
    """An attention sink as one key more, without value: one dimension more carries its score, and
    is zero for all other keys.
    """

    queries: Tensor
    """`(texts, heads, length, head size + 1)`; the last coordinate is the sink's score, before
    scaling.
    """
    key: Tensor
    """`(texts, key heads, 1, head size + 1)`."""
    value: Tensor

    @classmethod
    def of(cls, sinks: Tensor, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> _Sink:
        score = (sinks.to(q.dtype) / scaling)[None, :, None, None].expand(*q.shape[:3], 1)
        key = F.pad(torch.zeros_like(k[:, :, :1]), (0, 1), value=1.0)
        return cls(
            torch.cat([q, score], dim=-1),
            key,
            torch.zeros(*v.shape[:2], 1, v.shape[3] + 1, dtype=v.dtype, device=v.device),
        )

    def beside(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the sink before some keys and their values."""
        return torch.cat([self.key, F.pad(k, (0, 1))], dim=2), torch.cat(
            [self.value, F.pad(v, (0, 1))], dim=2
        )

    def before(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put it before all keys, with a query that nobody reads, so that a causal text stays
        causal.
        """
        return torch.cat([torch.zeros_like(q[:, :, :1]), q], dim=2), *self.beside(k, v)


def kernel_takes(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Say whether torch's variable-length kernel computes attention of these tensors, `(tokens,
    heads, head size)`.
    """
    size = query.shape[-1]
    fits = size == value.shape[-1] and size <= KERNEL_HEAD_SIZE and size % 8 == 0
    return (
        query.device.type in KERNEL_DEVICES
        and query.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0.0
        and fits
    )


def _variable_length(
    q: Tensor, k: Tensor, v: Tensor, groups: PackedBounds, scaling: float | None, band: Band
) -> Tensor:
    from torch.nn.attention import varlen

    out = varlen.varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        groups.starts,
        groups.starts,
        groups.longest,
        groups.longest,
        scale=scaling,
        window_size=(
            -1 if band.before is None else band.before,
            -1 if band.behind is None else band.behind,
        ),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def can_pack(backbone: PreTrainedModel) -> bool:
    """Say whether a backbone's attention can be replaced at all; some families (MPNet, DeBERTa)
    compute it by themselves.
    """
    return bool(type(backbone)._can_set_attn_implementation())


def _mask_of(
    *,
    mask_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    device: torch.device,
    **_: object,
) -> FamilyMask:
    return FamilyMask(mask_function, device)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _mask_of)
