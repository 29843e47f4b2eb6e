"""A smaller backbone from a bigger one without training: which layers to keep, and which neurons of
the feed-forward parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.model.layers import fixed_layers, layers_of, only_layers
from taskdistill.model.student import TransformerModel

GATED = ("gate_proj", "up_proj", "down_proj")
FUSED = (("Wi", "Wo"), ("gate_up_proj", "down_proj"))
"""Pairs of maps of which the first makes gates and values at once, one behind the other."""

BATCH = 64


def embed_all(module: TransformerModel, ids: Sequence[np.ndarray]) -> Tensor:
    """Embed texts without gradients. Returns unit rows `(texts, D)`."""
    with torch.inference_mode():
        parts = [module.embed(ids[i : i + BATCH]).float().cpu() for i in range(0, len(ids), BATCH)]
    return nn.functional.normalize(torch.cat(parts), dim=-1)


def choose_layers(
    module: TransformerModel,
    ids: Sequence[np.ndarray],
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[int], float]:
    """Find layers to keep by a short search: drop, one after the other, the layer without which the
    vectors change least.

    It needs no labels and no training, and tries at most n (n + 1) / 2 sets of n layers. `module`:
    the model; it is as before afterwards. `ids`: token ids of texts that show the model at work.
    `progress`: called with (sets tried, sets in all). Returns ascending indices, and the mean
    cosine between the vectors with these layers and with all. Raises BadInput if the model has not
    that many layers.
    """
    backbone, total_layers = module.backbone, len(layers_of(module.backbone))
    if not 1 <= count <= total_layers:
        raise BadInput(f"cannot keep {count} layers: the model has {total_layers}")
    fixed = fixed_layers(backbone) if count < total_layers else set()
    if count < max(1, len(fixed)):
        raise BadInput(
            f"cannot keep {count} layers: layers {sorted(fixed)} of a {backbone.config.model_type}"
            " are built otherwise and stay"
        )
    full, layers_left, cosine, tried = embed_all(module, ids), list(range(total_layers)), 1.0, 0
    total = sum(size - len(fixed) for size in range(count + 1, total_layers + 1))
    while len(layers_left) > count:
        result = []
        for left_out in layers_left:
            if left_out in fixed:
                continue
            some = [i for i in layers_left if i != left_out]
            with only_layers(backbone, some):
                result.append((float((embed_all(module, ids) * full).sum(1).mean()), some))
            tried += 1
            if progress is not None:
                progress(tried, total)
        cosine, layers_left = max(result, key=lambda one: one[0])
    return layers_left, cosine


def narrow(module: TransformerModel, ids: Sequence[np.ndarray], width: int) -> None:
    """Slice the feed-forward part of every layer to its most used neurons, in place.

    A neuron counts by the mean size of its activation on the texts, times the length of the column
    that carries it back. `ids`: token ids of texts that show the model at work. Raises BadInput if
    a layer has fewer neurons, or its feed-forward part is of a form that is not known.
    """
    parts = [_feed_forward(layer) for layer in layers_of(module.backbone)]
    now = min(back.in_features for _, back in parts)
    if not 1 <= width <= now:
        raise BadInput(
            f"cannot keep {width} neurons of each feed-forward part: the model has {now}"
        )
    sums: list[Tensor] = [torch.zeros(back.in_features) for _, back in parts]
    hooks = [
        back.register_forward_pre_hook(_adder(total))
        for (_, back), total in zip(parts, sums, strict=True)
    ]
    try:
        embed_all(module, ids)
    finally:
        for hook in hooks:
            hook.remove()
    for (ins, back), total in zip(parts, sums, strict=True):
        chosen = (total * back.weight.detach().norm(dim=0).cpu()).topk(width).indices.sort().values
        # Fused maps make gates and values, one block behind the other: the same neurons of both.
        halves = torch.cat([chosen, chosen + back.in_features])
        for linear in ins:
            _slice(linear, halves if linear.out_features == 2 * back.in_features else chosen, 0)
        _slice(back, chosen, 1)
    module.backbone.config.intermediate_size = width


def _adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(inputs[0].detach().abs().flatten(0, -2).sum(0).float().cpu())

    return add


def _feed_forward(layer: nn.Module) -> tuple[list[nn.Linear], nn.Linear]:
    """Find the linear maps into the neurons of a layer, and the one back."""
    gated = getattr(layer, "mlp", None)
    result = [getattr(gated, name, None) for name in GATED]
    for names in FUSED:
        if not isinstance(result[0], nn.Linear):
            result = [getattr(gated, name, None) for name in names]
    if not isinstance(result[0], nn.Linear):
        result = [
            getattr(getattr(layer, part, None), "dense", None)
            for part in ("intermediate", "output")
        ]
    linear = [one for one in result if isinstance(one, nn.Linear)]
    others = (
        {id(weight) for weight in gated.parameters()}
        - {id(weight) for one in linear for weight in one.parameters()}
        if gated
        else ()
    )
    if len(linear) != len(result) or others:  # a norm of the neurons would have to be cut too
        raise BadInput(
            f"cannot slice the feed-forward part of a {type(layer).__name__}; use a BERT-like,"
            " EuroBERT, ModernBERT, Qwen3 or Llama-like model"
        )
    return linear[:-1], linear[-1]


def _slice(linear: nn.Linear, chosen: Tensor, axis: int) -> None:
    linear.weight = nn.Parameter(
        linear.weight.detach().index_select(axis, chosen.to(linear.weight.device)).clone(),
        requires_grad=linear.weight.requires_grad,
    )
    if axis == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(
            linear.bias.detach()[chosen.to(linear.bias.device)].clone(),
            requires_grad=linear.bias.requires_grad,
        )
    linear.out_features, linear.in_features = linear.weight.shape
