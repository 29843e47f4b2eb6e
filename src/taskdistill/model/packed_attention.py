"""Attention within each text of a packed stream, registered with transformers as one more attention
implementation.

The model's forward hands it the extents of the texts as the keyword argument `groups`. On a CPU it
runs once per group of texts of equal length, as a view and without a mask; in half precision on a
GPU through torch's variable-length kernel. Texts longer than a layer's window are cut into blocks
of queries, each of which meets only the keys in its reach, so that time and memory grow with the
length of a text, not its square.

The mask that a family describes to transformers is not built: its band is read off at a few rows,
so that windows are counted as the family counts them. A keyword of the attention that is not known
here is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from taskdistill.errors import BadInput
from taskdistill.model.band import Band, FamilyMask, band_mask, band_of
from taskdistill.model.packed import PackedBounds

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What a layer asks of its scores, in the names of transformers' attention implementations."""

    scaling: float | None = None
    """Factor of the scores; None for one over the root of the head size."""
    is_causal: bool | None = None
    """Whether a token sees only itself and earlier ones; None for what the module says."""
    sliding_window: int | None = None
    """Tokens that a token sees on each side, itself included; read only where the family describes
    no mask.
    """
    s_aux: Tensor | None = None
    """A score for each head that takes part in the softmax and carries no value (an attention
    sink), `(heads,)`.
    """

    @classmethod
    def of(cls, module: nn.Module, keywords: dict[str, Any]) -> ScoreOptions:
        """Pick the options from a layer's keywords.

        Raises BadInput if another one is neither None, False nor known to change nothing.
        """
        names = [field.name for field in fields(cls)]
        options = {name: keywords.pop(name) for name in names if name in keywords}
        if unknown := sorted(
            name
            for name, value in keywords.items()
            if name not in PASSED_OVER and value is not None and value is not False
        ):
            raise BadInput(
                f"the attention of a {type(module).__name__} asks for {', '.join(unknown)}, which"
                " the packed stream does not compute"
            )
        return cls(**options)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: FamilyMask | Tensor | None,
    *,
    groups: PackedBounds | None = None,
    dropout: float = 0.0,
    **keywords: Any,  # whatever a family of transformers passes
) -> tuple[Tensor, None]:
    """Attend within each text of a stream; the signature is that of transformers' attention
    implementations.

    `query`: `(1, heads, tokens, head size)`. `key`: `(1, key heads, tokens, head size)`. `value`:
    as `key`; its number type is that of the result. `attention_mask`: what the family asked for; a
    tensor is refused, for a stream has no padding. `**keywords`: those of `ScoreOptions`; others
    are refused unless None, False or known to change nothing. Returns
    `(1, tokens, heads, head size)` and no weights. Raises ValueError if the model was not called
    with a packed stream. Raises BadInput if the layer's attention is of a kind that is not computed
    here.
    """
    if groups is None or isinstance(attention_mask, Tensor) or query.shape[0] != 1:
        raise ValueError(
            "packed attention needs one stream, `groups`, and no attention mask; call the model"
            " through `embed_packed`"
        )
    options = ScoreOptions.of(module, keywords)
    causal = options.is_causal
    causal = getattr(module, "is_causal", None) if causal is None else causal
    if not isinstance(causal, bool):
        raise BadInput(
            f"a {type(module).__name__} does not say whether it is causal; texts of this family"
            " cannot be packed"
        )
    if attention_mask is None:
        band = Band.of(causal, options.sliding_window)
    else:
        band = band_of(module, attention_mask, groups, causal)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    q, k, v = _in_one_type(q, k, v)
    scaling, sinks = options.scaling, options.s_aux
    if sinks is None and kernel_takes(q, v, dropout):
        return _variable_length(q, k, v, groups=groups, scaling=scaling, band=band)[None], None
    if sinks is not None and scaling is None:
        # Said before the sink adds a dimension, by which torch would scale otherwise.
        scaling = q.shape[-1] ** -0.5
    attend = _Attend(
        band=band,
        dropout=dropout,
        scaling=scaling,
        grouped_heads=q.shape[1] != k.shape[1],
        sinks=sinks,
    )
    sizes = [count * length for _, count, length in groups.runs]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attend:
    """Attention among texts of equal length, on all of them at once."""

    band: Band
    dropout: float
    scaling: float | None
    grouped_heads: bool
    sinks: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sink = None
        if self.sinks is not None and self.scaling is not None:
            sink = _Sink.of(self.sinks.to(q.dtype) / self.scaling, q, k, v)
            q = sink.queries
        if self.band.cuts(q.shape[2]):
            out = self._in_blocks(q, k, v, sink)
        else:
            causal = self.band.behind == 0 and q.shape[2] > 1
            if sink is not None:
                q, k, v = sink.before(q, k, v)
            out = self._product(q, k, v, causal=causal)
            out = out if sink is None else out[:, :, 1:]
        return out if sink is None else out[..., :-1]

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, sink: _Sink | None) -> Tensor:
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
                # The gradient of a slice is as long as the text; that of joined blocks as long as
                # the blocks.
                low, high = max(0, start - before) // size, -(-min(length, stop + behind) // size)
                first = low * size
                near_k = torch.cat(keys[low:high], dim=2)
                near_v = torch.cat(values[low:high], dim=2)
            mask = band_mask(
                rows=block.shape[2],
                columns=near_k.shape[2],
                shift=start - first,
                before=before,
                behind=behind,
                sink=sink is not None,
                dtype=block.dtype,
                device=block.device,
            )
            if sink is not None:
                near_k, near_v = sink.beside(near_k, near_v)
            out.append(self._product(block, near_k, near_v, mask=mask))
        return torch.cat(out, dim=2)

    def _product(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout,
            scale=self.scaling,
            is_causal=causal,
            enable_gqa=self.grouped_heads,
        )


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
    def of(cls, scores: Tensor, q: Tensor, k: Tensor, v: Tensor) -> _Sink:
        """Add the dimension; `scores` are those before scaling, `(heads,)`."""
        score = scores[None, :, None, None].expand(*q.shape[:3], 1)
        key = F.pad(torch.zeros_like(k[:, :, :1]), (0, 1), value=1.0)
        # As wide as the keys: torch's flash kernels take only heads of one size.
        value = torch.zeros(*v.shape[:2], 1, v.shape[3] + 1, dtype=v.dtype, device=v.device)
        return cls(torch.cat([q, score], dim=-1), key, value)

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
    q: Tensor, k: Tensor, v: Tensor, *, groups: PackedBounds, scaling: float | None, band: Band
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
