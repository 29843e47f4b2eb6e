"""The gradient of a token table is that of its step alone, whatever was done with the buffer
before.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from taskdistill.train.workers import EmbeddingGradient, looked_up_rows

ROWS, WIDTH = 12, 3
texts = st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5), min_size=1, max_size=4)
after = st.sampled_from(["nothing", "clipped", "spoilt", "other rows", "failed", "other table"])


def parts_of(
    some: list[list[int]], rng: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (torch.tensor(row), torch.randn(len(row), WIDTH, generator=rng, dtype=torch.float64))
        for row in some
    ]


@given(steps=st.lists(st.tuples(texts, st.integers(0, 3), after), min_size=1, max_size=8))
def test_it_is_the_sum_of_this_step_alone(steps):
    rng, held = torch.Generator().manual_seed(0), EmbeddingGradient()
    table, other = (nn.Parameter(torch.zeros(ROWS, WIDTH, dtype=torch.float64)) for _ in range(2))
    for batch, own, happens in steps:
        rows = looked_up_rows([np.array(row) for row in batch], table)
        assert rows.tolist() == sorted({token for row in batch for token in row})
        parts = parts_of(batch[:own], rng)  # this process's share, which may be nothing
        found = held.all_reduce_(table, rows, parts)
        dense = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
        for ids, gradient in parts:
            dense.index_add_(0, ids, gradient)
        assert torch.equal(found, dense)
        if happens == "clipped":
            found.mul_(0.3)
        elif happens == "spoilt":
            found[rows] = torch.nan  # a step that is skipped
        elif happens == "other rows":
            found[rows] += 1.0  # what other processes had
        elif happens == "failed":
            with pytest.raises(RuntimeError):
                held.all_reduce_(
                    table,
                    rows,
                    [*parts, (torch.tensor([0]), torch.zeros(1, WIDTH + 1, dtype=torch.float64))],
                )
        elif happens == "other table":
            assert torch.equal(held.all_reduce_(other, rows[:0], []), torch.zeros_like(other))


def test_a_buffer_belongs_to_one_table_and_a_new_phase_begins_with_zeros():
    held, rows = EmbeddingGradient(), torch.tensor([1])
    first, second = (nn.Parameter(torch.zeros(ROWS, WIDTH)) for _ in range(2))
    first.grad = held.all_reduce_(first, rows, [(rows, torch.ones(1, WIDTH))])
    second.grad = held.all_reduce_(second, rows, [(rows, 2 * torch.ones(1, WIDTH))])
    assert float(first.grad.sum()) == WIDTH and float(second.grad.sum()) == 2 * WIDTH
    assert float(held.all_reduce_(first, torch.tensor([2]), []).abs().sum()) == 0
