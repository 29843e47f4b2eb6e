"""Averaging two states of an adapter: by factors as files are averaged, or by the product that
counts.
"""

from __future__ import annotations

import pytest
import torch

from taskdistill.model.averaging import LORA_A, LORA_B, average, product_average


def factors(
    seed: int, out: int = 12, rank: int = 4, inner: int = 10, used: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inner, generator=generator, dtype=torch.float64)
    b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    if used is not None:
        b[:, used:] = 0
    return a, b


@pytest.mark.parametrize(("out", "inner"), [(12, 10), (3, 10), (12, 2), (3, 2)])
def test_a_state_averaged_with_itself_stays_the_same_product(out, inner):
    a, b = factors(0, out=out, inner=inner)
    new_a, new_b = product_average([a, a], [b, b], [0.3, 0.7])
    assert new_a.shape == a.shape and new_b.shape == b.shape
    assert (new_b @ new_a - b @ a).abs().max() <= 1e-12


def test_the_product_is_the_dense_mean_where_the_ranks_allow_it():
    (a, b), (c, d) = factors(1, used=2), factors(2, used=2)
    new_a, new_b = product_average([a, c], [b, d], [0.25, 0.75])
    assert (new_b @ new_a - (0.25 * b @ a + 0.75 * d @ c)).abs().max() <= 1e-12


def test_otherwise_it_is_the_nearest_product_of_that_rank():
    (a, b), (c, d) = factors(1), factors(2)
    mean = (b @ a + d @ c) / 2
    new_a, new_b = product_average([a, c], [b, d], [0.5, 0.5])
    left = torch.linalg.svdvals(mean)[4:]
    assert torch.linalg.matrix_norm(mean - new_b @ new_a).item() == pytest.approx(
        left.norm().item()
    )
    by_factors = ((b + d) / 2) @ ((a + c) / 2)
    assert (
        torch.linalg.matrix_norm(mean - by_factors) > 2 * left.norm()
    )  # averaging files is something else


def test_states_are_averaged_by_name():
    last, earlier = (
        {f"m{LORA_A}": a, f"m{LORA_B}": b, f"n{LORA_A}": 2 * a, f"n{LORA_B}": b}
        for a, b in (factors(1), factors(2))
    )
    mean = average(last, earlier, 0.25, "factors")
    assert all(
        torch.allclose(mean[name], 0.25 * last[name] + 0.75 * earlier[name]) for name in last
    )
    product = average(last, earlier, 0.25, "product")
    assert product.keys() == last.keys()
    one = product_average(
        [last[f"n{LORA_A}"], earlier[f"n{LORA_A}"]],
        [last[f"n{LORA_B}"], earlier[f"n{LORA_B}"]],
        [0.25, 0.75],
    )
    assert torch.equal(product[f"n{LORA_A}"], one[0]) and torch.equal(product[f"n{LORA_B}"], one[1])
