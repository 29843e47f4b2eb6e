"""The layers of a backbone: where they are, and what a configuration says of each when some are
dropped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from taskdistill.errors import BadInput
from taskdistill.model.configuration import make_config, written
from taskdistill.model.families import build

PLACES = (
    *(
        "layers",
        "encoder.layer",
        "encoder.layers",
        "transformer.layer",
        "encoder.block",
        "encoder.albert_layer_groups",
    ),
    *("decoder.layers", "h", "layer", "blocks"),
)
"""Where families keep their layers."""

PER_LAYER = re.compile(r"layer|block_type|attention_window|attention_types")
"""Names of the lists in which configurations hold one value for each layer."""

NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_index")
"""Attributes that hold a layer's place."""

RANDOM_PARTS = re.compile(r"drop|^(input_)?jitter_noise$")
"""Names of the attributes in which families keep how much they drop, or by how much they shake the
input of a router.
"""


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """Find the list of a backbone's layers.

    Raises BadInput if the family keeps its layers in a place that is not known.
    """
    for place in PLACES:
        result: Any = backbone
        for part in place.split("."):
            result = getattr(result, part, None)
        if isinstance(result, nn.ModuleList):
            return result
    raise BadInput(
        f"cannot find the layers of a {type(backbone).__name__}; use a BERT-like, EuroBERT,"
        " ModernBERT, Qwen3 or Llama-like backbone"
    )


def keep_layers(backbone: PreTrainedModel, keep: Sequence[int]) -> None:
    """Drop all but some layers, in place, and all that the configuration says of them.

    Raises BadInput if an index is not one of the model's layers, or a model of what is left would
    not be built with these layers as they are, such as a ModernBERT without its first layer, which
    alone has no norm before its attention.
    """
    layers = layers_of(backbone)
    if not keep or any(not 0 <= i < len(layers) for i in keep) or list(keep) != sorted(set(keep)):
        raise BadInput(
            f"student.layers {list(keep)}: needs ascending indices between 0 and {len(layers) - 1}"
        )
    if difference := _difference(backbone, keep):
        raise BadInput(
            f"layers {list(keep)} of a {backbone.config.model_type} cannot be kept by themselves: a"
            f" model of that configuration differs in {difference}; keep other layers, the first"
            " and the last among them"
        )
    _put(backbone, [layers[i] for i in keep], _changes(backbone.config, len(layers), keep))


@contextmanager
def only_layers(backbone: PreTrainedModel, keep: Sequence[int]) -> Iterator[None]:
    """Run with some layers only, as if the others were dropped; all are back afterwards."""
    layers = layers_of(backbone)
    every, changes = list(layers), _changes(backbone.config, len(layers), keep)
    before = {key: getattr(backbone.config, key) for key in changes}
    try:
        _put(backbone, [every[i] for i in keep], changes)
        yield
    finally:
        _put(backbone, every, before)


def fixed_layers(backbone: PreTrainedModel) -> set[int]:
    """Name the layers that cannot be dropped because they are built otherwise than all others."""
    every = range(len(layers_of(backbone)))
    return {
        i
        for i in every
        if len(every) > 1 and _difference(backbone, [other for other in every if other != i])
    }


def _put(backbone: PreTrainedModel, chosen: Sequence[nn.Module], changes: dict[str, Any]) -> None:
    layers = layers_of(backbone)
    del layers[:]
    layers.extend(chosen)
    for place, layer in enumerate(layers):
        for module in layer.modules():
            for name in NUMBERS:
                if type(getattr(module, name, None)) is int:
                    setattr(module, name, place)
    for key, value in changes.items():
        setattr(backbone.config, key, value)


def _changes(config: PretrainedConfig, count: int, keep: Sequence[int]) -> dict[str, Any]:
    """Give what a configuration says when some of its layers are kept."""
    lists = {
        key: value
        for key, value in vars(config).items()
        if PER_LAYER.search(key) and isinstance(value, list) and len(value) == count
    }
    return {"num_hidden_layers": len(keep)} | {
        key: [value[i] for i in keep] for key, value in lists.items()
    }


def _difference(backbone: PreTrainedModel, keep: Sequence[int]) -> str:
    """Say in what the layers that would be kept differ from those that their configuration builds;
    nothing if in nothing.
    """
    layers, config = layers_of(backbone), copy.deepcopy(backbone.config)
    for key, value in _changes(backbone.config, len(layers), keep).items():
        setattr(config, key, value)
    try:
        with torch.device("meta"):
            again = layers_of(build(make_config(written(config), "config.json")))
    except Exception as error:  # its validators raise classes of their own
        return " ".join(str(error).split())[:200]
    layers_left = nn.ModuleList([layers[i] for i in keep])
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in each.state_dict().items()}
        for each in (layers_left, again)
    ]
    if shapes[0] != shapes[1]:
        names = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        return f"{len(names)} tensors such as layer {names[0]}"
    for (name, module), (_, other) in zip(
        layers_left.named_modules(), again.named_modules(), strict=True
    ):
        if _settings(module) != _settings(other):
            return f"the settings of layer {name}"
    return ""


def _settings(module: nn.Module) -> dict[str, Any]:
    plain = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | None)
    }
    return {
        key: value
        for key, value in plain.items()
        if not key.startswith("_")
        and key not in (*NUMBERS, "training", "p")
        and not RANDOM_PARTS.search(key)
    }
