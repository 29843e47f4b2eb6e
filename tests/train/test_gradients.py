"""The gradients of a step: cached = kept = one padded graph, whatever the workers and the cut into
micro-batches.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.gradient_cases import EVERY_TERM, Case, case, everything, worst
from torch import Tensor

from taskdistill.model.lora import SeededDropout
from taskdistill.model.packed import PackedBatch
from taskdistill.model.pooling import pool_padded
from taskdistill.model.student import StaticModel
from taskdistill.tasks import Task
from taskdistill.train import gradient_step, microbatch
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.gradients import gradients
from taskdistill.train.loss_terms import weights_for
from taskdistill.train.workers import workers


class DropoutMasks:
    """Records the masks of every dropout of a packed pass, and gives them again to a
    padded pass.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.micros: list[tuple[np.ndarray, PackedBatch]] = []
        self.masks: dict[tuple[int, int], Tensor] = {}
        self.forward, self.padded = SeededDropout.forward, None
        pack, inner = gradient_step.pack, gradient_step._forward

        def recorded_forward(model, ids, piece, *options):
            self.rows = piece.rows
            return inner(model, ids, piece, *options)

        def recorded_pack(texts):
            self.micros.append((self.rows, pack(texts)))
            return self.micros[-1][1]

        def dropout(module: SeededDropout, values: Tensor) -> Tensor:
            if self.padded is not None:
                return values * self.mask(module, values)
            kept = self.forward(module, torch.ones_like(values))
            self.masks[id(module), len(self.micros) - 1] = kept[0]
            return values * kept

        monkeypatch.setattr(gradient_step, "_forward", recorded_forward)
        monkeypatch.setattr(gradient_step, "pack", recorded_pack)
        monkeypatch.setattr(SeededDropout, "forward", dropout)

    def mask(self, module: SeededDropout, values: Tensor) -> Tensor:
        out = torch.ones_like(values)
        for number, (rows, packed) in enumerate(self.micros):
            starts = packed.groups.starts.tolist()
            for place, (first, end) in enumerate(pairwise(starts)):
                out[rows[packed.order[place]], : end - first] = self.masks[id(module), number][
                    first:end
                ]
        return out


def padded_gradients(case: Case, masks: DropoutMasks) -> tuple[dict[str, Tensor], float]:
    """The same step as one graph over one padded batch, by transformers' own attention."""
    case.clear()
    longest = max(map(len, case.ids))
    ids, mask = (
        torch.zeros(len(case.ids), longest, dtype=torch.long),
        torch.zeros(len(case.ids), longest, dtype=torch.long),
    )
    for row, text in enumerate(case.ids):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text.astype(np.int64)), 1
    masks.padded = ids
    case.model.backbone.set_attn_implementation("sdpa")
    hidden = case.model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    terms, _ = case.loss(pool_padded(hidden, mask, case.model.pooling))
    total = sum(case.weights.get(name, 1.0) * term for name, term in terms.items())
    total.backward()
    return case.collect(), total.item()


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", Task.RETRIEVAL),
        ("qwen3", Task.TEXT_MATCHING),
        ("eurobert", Task.CLASSIFICATION),
        ("bert", Task.CLUSTERING),
    ],
)
def test_cached_kept_and_padded_gradients_of_an_adapter_are_equal(
    family, task, dtype, bound, monkeypatch
):
    made, masks = case(family, task, dtype), DropoutMasks(monkeypatch)
    cached, told = made.gradients(keep_tokens=0)
    terms, total, _ = told
    assert set(terms) == EVERY_TERM[task] and total == pytest.approx(
        sum(weights_for(task, {})[name] * terms[name] for name in terms)
    )
    masks.micros.clear()
    kept, again = made.gradients(keep_tokens=10**9)
    assert len(masks.micros) > 2 and again == told
    assert all(torch.equal(cached[name], kept[name]) for name in kept)
    assert any((mask == 0).any() for mask in masks.masks.values())
    plain, plain_total = padded_gradients(made, masks)
    assert worst(kept, plain) <= bound and plain_total == pytest.approx(total, rel=bound)
    if task is Task.RETRIEVAL:
        assert {"log_temperature", "projection.weight", "projection.bias"} <= kept.keys()


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_loss_at_once_has_the_gradients_of_one_padded_graph(
    family, dtype, bound, monkeypatch
):
    made, masks = everything(family, dtype), DropoutMasks(monkeypatch)
    cached, told = made.gradients(keep_tokens=0)
    masks.micros.clear()
    kept, again = made.gradients(keep_tokens=10**9)
    assert (
        again == told
        and len(told[0]) == 8
        and all(torch.equal(cached[name], kept[name]) for name in kept)
    )
    plain, total = padded_gradients(made, masks)
    assert any((mask == 0).any() for mask in masks.masks.values()) and total == pytest.approx(
        told[1], rel=bound
    )
    assert worst(kept, plain) <= bound and {"log_temperature", "projection.weight"} <= plain.keys()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stage_1_gradients_of_backbone_and_token_table_are_equal(family, monkeypatch):
    made, masks = case(family, None), DropoutMasks(monkeypatch)
    cached, _ = made.gradients(keep_tokens=0)
    kept, _ = made.gradients(keep_tokens=10**9)
    whole, _ = made.gradients(keep_tokens=10**9, micro=10**9)
    plain, _ = padded_gradients(made, masks)
    assert len(plain) == len(made.trained) + 2
    for found in (cached, kept, whole):
        assert worst(found, plain) <= 1e-9
    table = next(
        name
        for name, p in made.trained.items()
        if p is made.model.backbone.get_input_embeddings().weight
    )
    used = sorted({int(token) for text in made.ids for token in text})
    assert kept[table][used].abs().sum() > 0
    unused = np.setdiff1d(np.arange(len(kept[table])), used)
    assert kept[table][unused].abs().max() == 0 and torch.allclose(
        kept[table], plain[table], atol=1e-12
    )


def test_a_frozen_token_table_gets_no_gradient():
    made = case("bert", None)
    table = made.model.backbone.get_input_embeddings().weight
    with_table, _ = made.gradients(keep_tokens=10**9)
    made.trained = {name: p for name, p in made.trained.items() if p is not table}
    table.requires_grad_(False)
    without, _ = made.gradients(keep_tokens=10**9)
    assert table.grad is None and all(
        torch.equal(without[name], with_table[name]) for name in without
    )


@pytest.mark.parametrize("keep_tokens", [0, 10**9])
def test_one_and_two_workers_give_the_same_bits(keep_tokens):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for task in (Task.RETRIEVAL, None):
            made = case("bert", task, torch.float32)
            one, told = made.gradients(keep_tokens=keep_tokens)
            two, again = made.gradients(keep_tokens=keep_tokens, threads=2)
            assert told == again
            assert all(torch.equal(one[name], two[name]) for name in one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("task", [Task.RETRIEVAL, Task.CLASSIFICATION])
def test_any_number_of_workers_drops_the_same_and_gives_the_same_sums(task, monkeypatch):
    monkeypatch.setattr(
        microbatch, "PIECE_TOKENS", 8
    )  # so that even a tiny batch is cut further for many workers
    made, passes, inner = case("bert", task), list[int](), gradient_step._forward

    def counted(*given):
        passes.append(len(given[2].rows))
        return inner(*given)

    monkeypatch.setattr(gradient_step, "_forward", counted)
    one, told = made.gradients(keep_tokens=10**9, micro=10**9)
    whole = len(passes)
    for threads in (3, 8):
        passes.clear()
        many, again = made.gradients(keep_tokens=10**9, micro=10**9, threads=threads)
        assert len(passes) > whole and sum(passes) == len(made.ids)
        assert worst(many, one) <= 1e-12 and again[0] == pytest.approx(told[0], rel=1e-12)


def test_dropout_depends_on_the_seed_of_the_step_alone():
    made = case("bert", Task.CLUSTERING)
    first, _ = made.gradients(keep_tokens=10**9)
    torch.manual_seed(99)
    assert all(
        torch.equal(first[name], gradient)
        for name, gradient in made.gradients(keep_tokens=10**9)[0].items()
    )
    without = case("bert", Task.CLUSTERING, dropout=0.0)
    assert worst(first, without.gradients(keep_tokens=10**9)[0]) > 0.01


def test_nothing_is_dropped_outside_a_step():
    made = case("bert", Task.CLUSTERING, dropout=0.5)
    made.gradients(keep_tokens=10**9)
    with torch.no_grad():
        found = made.model.train().embed(made.ids)
        assert torch.equal(found, made.model.eval().embed(made.ids))


def test_a_static_model_s_gradient_is_autograd_s_own():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 30, size=n) for n in (3, 7, 1)]
    table = torch.randn(30, 8, dtype=torch.float64)
    target = torch.randn(3, 8, dtype=torch.float64)
    model = StaticModel(table.clone())
    with workers(1) as threads:
        terms, total, _ = gradients(
            model,
            ids,
            StepLoss(
                terms=lambda v: ({"distill": (v - target).square().mean()}, 0.0),
                weights={"distill": 2.0},
            ),
            [model.table],
            Passes(seed=0),
            threads=threads,
        )
    plain = table.clone().requires_grad_()
    (2 * (torch.stack([plain[text].mean(0) for text in ids]) - target).square().mean()).backward()
    assert total == 2 * terms["distill"]
    assert torch.allclose(model.table.grad, plain.grad, atol=1e-15)


def test_the_weights_of_terms_scale_their_gradients():
    made = case("bert", Task.RETRIEVAL, dropout=0.0)
    sums = None
    for name, weight in weights_for(Task.RETRIEVAL, {}).items():
        made.weights = {"info_nce": 0.0, "distill": 0.0, "gor": 0.0} | {name: weight}
        found, _ = made.gradients(keep_tokens=10**9)
        sums = found if sums is None else {key: sums[key] + found[key] for key in sums}
    made.weights = weights_for(Task.RETRIEVAL, {})
    assert made.weights == {"info_nce": 1.0, "distill": 2.0, "gor": 1.0}
    assert worst(sums, made.gradients(keep_tokens=10**9)[0]) <= 1e-12
