"""Pooling by hand, and vectors that depend on neither batch, order nor side of padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.model.packed import pack
from taskdistill.model.pooling import pool, pool_padded
from taskdistill.model.student import StaticModel
from taskdistill.types import Pooling

WANTED = {
    Pooling.CLS: [5.0, 2.0, 3.0],
    Pooling.LAST: [5.0, 9.0, 8.0],
    Pooling.MEAN: [5.0, 5.5, 5.0],
}


@pytest.mark.parametrize("pooling", list(Pooling))
def test_pooling_by_hand(pooling):
    """Three texts of one, two and three tokens, whose states are written out."""
    texts = [np.array([7]), np.array([1, 1]), np.array([1, 1, 1])]
    states = torch.tensor([5.0, 2.0, 9.0, 3.0, 4.0, 8.0])[:, None]
    assert pool(states, pack(texts).groups, pooling)[:, 0].tolist() == WANTED[pooling]
    right, left = torch.full((2, 3, 3, 1), 77.0)
    masks = torch.zeros(2, 3, 3, dtype=torch.long)
    start = 0
    for row, text in enumerate(texts):
        piece, n = states[start : start + len(text)], len(text)
        right[row, :n], left[row, 3 - n :] = piece, piece
        masks[0, row, :n], masks[1, row, 3 - n :] = 1, 1
        start += n
    for padded, mask in ((right, masks[0]), (left, masks[1])):
        assert pool_padded(padded, mask, pooling)[:, 0].tolist() == WANTED[pooling]


def test_packing_sorts_by_length_and_remembers_the_order():
    packed = pack([np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7]), np.array([8, 9])])
    assert packed.ids.tolist() == [4, 8, 9, 1, 2, 3, 5, 6, 7]
    assert packed.positions.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2]
    assert packed.order.tolist() == [1, 3, 0, 2]
    assert packed.groups.runs == ((0, 1, 1), (1, 1, 2), (3, 2, 3))
    assert packed.groups.starts.tolist() == [0, 1, 3, 6, 9] and packed.groups.longest == 3
    assert packed.to(torch.device("cpu")) is packed


@pytest.mark.parametrize("adapter", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_text_has_one_vector_in_every_batch_and_order(family, adapter):
    model = tiny.student(family)
    if adapter:
        tiny.add_adapter(model, "retrieval")
        model.select("retrieval")
    random = np.random.default_rng(0)
    ids = [random.integers(5, 150, size=n) for n in (4, 11, 4, 1, 9, 30)]
    with torch.inference_mode():
        whole = model.embed(ids)
        alone = torch.cat([model.embed([text]) for text in ids])
        order = random.permutation(len(ids))
        shuffled = model.embed([ids[i] for i in order])
    assert (whole - alone).abs().max() <= 1e-5 and (whole[order] - shuffled).abs().max() <= 1e-5


def test_a_static_model_is_the_mean_of_its_tokens_and_a_text_without_tokens_is_zero():
    model = StaticModel(torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]]))
    found = model.embed([np.array([0, 1]), np.zeros(0, int), np.array([2]), np.array([0, 0, 1])])
    assert found.tolist() == [[0.5, 1.0], [0.0, 0.0], [4.0, 4.0], pytest.approx([2 / 3, 2 / 3])]
    assert model.embed([]).shape == (0, 2)
