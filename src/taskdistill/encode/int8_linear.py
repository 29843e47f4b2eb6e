"""A linear map in eight bits: one scale a token for its input, one a row for its weights. The only
file that calls torch's int8 kernels.

The kernels are oneDNN's, `torch.ops.onednn`, which torch's compiler uses; the older
`torch.ops.quantized` ones and their tensors are deprecated.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskdistill.errors import BadInput

PAIR_LIMIT = 128
"""Most that two neighbouring weights may sum to. Processors without VNNI add two products of an
unsigned and a signed byte in 16 bits: 255 * 128 still fits, so no sum saturates and every
processor gives the same vectors.
"""

SMALLEST = 1e-12


def available() -> bool:
    """Say whether this build of torch has the kernels."""
    return hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    )


def round_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to signed bytes, on the finest grid of each row on which no pair of neighbours
    passes the limit.

    For weights that are spread like a normal distribution this grid is about one and a half times
    as fine as seven bits, which is what the largest weight alone would leave. `weight`: `(out, in)`
    of float32. Returns `(out, in)` of int8, and the scale of each row, `(out,)` of float32.
    """
    size = weight.abs()
    pairs = (size[:, 1:] + size[:, :-1]).amax(1) if weight.shape[1] > 1 else size.amax(1)
    # one less than the limit: each of the two may round up by a half
    scale = torch.maximum(size.amax(1) / 127, pairs / (PAIR_LIMIT - 1)).clamp(min=SMALLEST)
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear map with int8 weights; the input is rounded to a byte at each call, float32 comes
    out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, smooth: Tensor) -> None:
        """Round and pack weights.

        `weight`: `(out, in)` of float32. `smooth`: what each input channel is divided by, and its
        column of the weights multiplied with, `(in,)`. Raises BadInput if this build of torch has
        no int8 kernels.
        """
        super().__init__()
        if not available():
            raise BadInput("this build of torch has no oneDNN int8 kernels; use the back end torch")
        codes, scale = round_weights(weight.detach().float() * smooth)
        self.out_features, self.in_features = weight.shape
        self._packed: Any = torch.ops.onednn.qlinear_prepack(codes, None)
        self._scale, self._zero = scale, torch.zeros(len(scale), dtype=torch.int32)
        self._inverse = 1 / smooth
        self._sums = codes.sum(1, dtype=torch.int64).float() * scale
        self._bias = torch.zeros(len(scale)) if bias is None else bias.detach().float()

    def forward(self, values: Tensor) -> Tensor:
        """Apply the map: `x W^T + b`, with `x` as `low + step * byte` of each row.

        `values`: `(..., in)` of float32. Returns `(..., out)` of float32.
        """
        flat = values.reshape(-1, self.in_features) * self._inverse
        low = flat.amin(1, keepdim=True)
        step = ((flat.amax(1, keepdim=True) - low) / 255).clamp_(min=SMALLEST)
        # half a step more and a cast round; the cast to bytes is many times faster by way of 16
        # bits
        codes = flat.sub_(low - step / 2).mul_(step.reciprocal()).to(torch.int16).to(torch.uint8)
        sums = torch.ops.onednn.qlinear_pointwise(
            codes,
            1.0,
            0,
            self._packed,
            self._scale,
            self._zero,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        out: Tensor = torch.addcmul(self._bias, sums, step, out=sums)
        return out.addr_(low[:, 0], self._sums).view(*values.shape[:-1], self.out_features)


class FusedSlice(nn.Module):
    """One of several maps of the same input, such as query, key and value: the first to be called
    computes all, at once.
    """

    def __init__(self, family: FusedLinear, place: int) -> None:
        super().__init__()
        self.family = family
        self.place = place

    def forward(self, values: Tensor) -> Tensor:
        """Apply the map. Returns `(..., out)` of this part, a view."""
        return self.family.part(values, self.place)


class FusedLinear:
    """A joint map and, for each thread, the parts that were computed and not yet fetched."""

    def __init__(self, fused: nn.Module, sizes: Sequence[int]) -> None:
        """Join maps. `fused`: map to all outputs, one behind the other."""
        self.whole, self.sizes = fused, list(sizes)
        self._own = threading.local()

    def part(self, values: Tensor, place: int) -> Tensor:
        """Give one part's output; parts are fetched in their order, and the last one
        forgets them.
        """
        if place == 0 or getattr(self._own, "values", None) is not values:
            self._own.values, self._own.parts = values, self.whole(values).split(self.sizes, dim=-1)
        result: Tensor = self._own.parts[place]
        if place == len(self.sizes) - 1:
            self._own.values = self._own.parts = None
        return result
