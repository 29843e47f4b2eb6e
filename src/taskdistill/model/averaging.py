"""Checkpoint averaging of an adapter: the last weights with earlier ones (section 5.1), by factors
or by product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


def average(
    last: Mapping[str, Tensor],
    earlier: Mapping[str, Tensor],
    weight: float,
    mode: Literal["factors", "product"],
) -> dict[str, Tensor]:
    """Average two states of one adapter.

    `earlier`: weights of the same names and shapes. `mode`: `factors` averages A and B apart, as
    averaging files does; `product` averages B A and cuts it back to the rank.
    """
    if mode == "factors":
        return {
            name: weight * tensor + (1 - weight) * earlier[name] for name, tensor in last.items()
        }
    out: dict[str, Tensor] = {}
    for name in last:
        if name.endswith(LORA_A):
            stem = name.removesuffix(LORA_A)
            a, b = (
                [state[stem + suffix] for state in (last, earlier)] for suffix in (LORA_A, LORA_B)
            )
            out[stem + LORA_A], out[stem + LORA_B] = product_average(a, b, [weight, 1 - weight])
    return out


def product_average(
    a: list[Tensor], b: list[Tensor], weights: list[float]
) -> tuple[Tensor, Tensor]:
    """Average the products B A and return the best factors of the same rank.

    Returns a `(rank, in)` and B `(out, rank)` whose product is nearest to the weighted mean of the
    products.
    """
    rank = a[0].shape[0]
    tall = torch.cat([w * factor for w, factor in zip(weights, b, strict=True)], dim=1).double()
    wide = torch.cat(a, dim=0).double()
    # The mean of products has at most as many directions as all factors together. With the factors'
    # QR only their small triangles need an SVD, never the matrix of the size of the weights.
    q_tall, r_tall = torch.linalg.qr(tall)
    q_wide, r_wide = torch.linalg.qr(wide.T)
    u, s, vt = torch.linalg.svd(r_tall @ r_wide.T)
    # A map with fewer rows or columns than the rank leaves the rest of the factors at zero.
    used = min(rank, len(s))
    # The root on both sides, so that neither factor is large where the other is small.
    root, new_a, new_b = s[:used].sqrt(), torch.zeros_like(a[0]), torch.zeros_like(b[0])
    new_a[:used] = root[:, None] * (vt[:used] @ q_wide.T)
    new_b[:, :used] = (q_tall @ u[:, :used]) * root
    return new_a, new_b
