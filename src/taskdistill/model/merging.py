"""Several models of one shape become one: weights merge as they are, adapters as the products of
their factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from taskdistill.errors import BadInput
from taskdistill.model.averaging import LORA_A, LORA_B, product_average
from taskdistill.model.lora import adapter_parameters
from taskdistill.model.model import Model
from taskdistill.model.student import TransformerModel

Shares = Callable[[Tensor], list[float]]
"""From the inner products of n weights with each other, `(n, n)`, to the share of each."""
CANCELLED = 1e-6
"""Length of a sum of unit directions below which it has no direction."""


def fixed(shares: Sequence[float]) -> Shares:
    """Take the same shares for every weight."""
    return lambda _: list(shares)


def spherical(products: Tensor) -> list[float]:
    """Average directions and lengths apart, so that a mean of unlike weights does not shrink; of
    two equally long ones, half way on their arc.

    `products`: inner products of the weights, `(n, n)`. Returns share of each; equal shares where a
    weight is zero, or where they cancel.
    """
    gram, count = products.double(), len(products)
    lengths = gram.diagonal().clamp_min(0).sqrt()
    unit = 1 / lengths.clamp_min(torch.finfo(torch.double).tiny)
    together = (unit @ gram @ unit).clamp_min(0).sqrt()
    if lengths.min() == 0 or together < CANCELLED:
        return [1 / count] * count
    return [float(share) for share in lengths.mean() / together * unit]


def merge_dense(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Merge one weight of several models."""
    flat = torch.stack([tensor.detach().double().flatten() for tensor in tensors])
    mixed = torch.tensor(shares(flat @ flat.T), dtype=torch.double) @ flat
    return mixed.reshape(tensors[0].shape).to(tensors[0].dtype)


def merge_factors(
    a: Sequence[Tensor], b: Sequence[Tensor], shares: Shares
) -> tuple[Tensor, Tensor]:
    """Merge one low-rank update of several adapters as the products B A, cut back to the rank.

    Returns a and B, whose product is nearest to the weighted sum of the products.
    """
    products = torch.tensor(
        [
            [
                float(((one_b.T @ two_b) * (one_a @ two_a.T)).sum())
                for two_a, two_b in zip(a, b, strict=True)
            ]
            for one_a, one_b in zip(a, b, strict=True)
        ]
    )
    return product_average(list(a), list(b), shares(products))


def merge_models(models: Sequence[Model], shares: Shares) -> dict[str, Tensor]:
    """Merge every weight of some models: the base's, the adapters' and the projection's.

    `models`: models of one shape, from `check_alike`. Returns the weights, under the names of
    `weights_of`.
    """
    states = [
        {name: tensor.detach().cpu() for name, tensor in weights_of(model).items()}
        for model in models
    ]  # double precision is the CPU's
    merged: dict[str, Tensor] = {}
    for name in states[0]:
        if name.endswith(LORA_A):
            stem = name.removesuffix(LORA_A)
            a, b = ([state[stem + suffix] for state in states] for suffix in (LORA_A, LORA_B))
            merged[stem + LORA_A], merged[stem + LORA_B] = merge_factors(a, b, shares)
        elif not name.endswith(LORA_B):
            merged[name] = merge_dense([state[name] for state in states], shares)
    return merged


def weights_of(model: Model) -> dict[str, Tensor]:
    """Name every weight of a model: those of the base, of each task's adapter, and of the
    projection.

    Returns name to the model's own tensor; copying into it changes the model.
    """
    result = {
        f"base/{name.replace('.base_layer.', '.')}": p
        for name, p in model.module.named_parameters()
        if ".lora_" not in name
    }
    for task in model.module.tasks:
        assert isinstance(model.module, TransformerModel)  # a static model has no tasks
        result |= {
            f"{task}/{name}": p
            for name, p in adapter_parameters(model.module.backbone, task).items()
        }
    if model.projection is not None:
        result |= {f"projection/{name}": p for name, p in model.projection.named_parameters()}
    return dict(result)


def load_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model.

    `model`: the model, changed in place. `weights`: what `merge_models` or `weights_of` returned.
    """
    with torch.no_grad():
        for name, tensor in weights_of(model).items():
            tensor.copy_(weights[name])


def check_same_shape(models: Sequence[Model]) -> None:
    """Refuse models whose weights do not mean the same.

    Raises BadInput if there are fewer, or they differ in tokenizer, tasks, prompts, adapters'
    scale, or in the name or shape of a weight.
    """
    if len(models) < 2:
        raise BadInput("merging needs two models or more")
    first, shapes = (
        models[0],
        {name: tensor.shape for name, tensor in weights_of(models[0]).items()},
    )
    for other in models[1:]:
        facts = {
            "tokenizer": (first.tokenizer.to_json(), other.tokenizer.to_json()),
            "tasks": (sorted(first.module.tasks), sorted(other.module.tasks)),
            "prompts": (dict(first.settings.prompts), dict(other.settings.prompts)),
            "scale of the adapters": tuple(
                {t: c.lora_alpha / c.r for t, c in each.adapter_configs.items()}
                for each in (first, other)
            ),
            "shapes of the weights": (
                shapes,
                {name: tensor.shape for name, tensor in weights_of(other).items()},
            ),
        }
        for what, (value, other_value) in facts.items():
            if value != other_value:
                raise BadInput(
                    f"{first.name} and {other.name} differ in their {what}; only models of one"
                    " shape and tokenizer can be merged"
                )
