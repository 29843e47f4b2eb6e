"""What each task's objective adds up, against the same sums written out by hand.

Paper, sections 4 and 5.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from taskdistill.data.batches import Batch, ClassificationItem
from taskdistill.data.rows import Pair, ScoredPair, Text
from taskdistill.errors import BadInput
from taskdistill.losses.terms.contrastive import info_nce
from taskdistill.losses.terms.regularizers import gor
from taskdistill.losses.terms.relational import relational_distance
from taskdistill.losses.vectors import normalize
from taskdistill.model.projection import Projection
from taskdistill.recipe.phases import AdapterConfig, Stage1Config, StaticConfig
from taskdistill.tasks import Task
from taskdistill.train.collate import TrainBatch, collate
from taskdistill.train.loss_terms import weights_for
from taskdistill.train.objective import (
    Heads,
    Objective,
    Targets,
    contrast_temperature,
)
from taskdistill.types import RowKind, TeacherSide


def adapter(**fields: object) -> AdapterConfig:
    return AdapterConfig(
        **{"sources": {"made": 1}, "steps": 1, "batch_size": 2, "lr": 1e-3, **fields}
    )


def adapter_objective(task: Task, settings: AdapterConfig, dims: list[int]) -> Objective:
    return Objective(settings, weights_for(task, settings.weights), dims)


def distill(
    vectors: torch.Tensor,
    prepared: TrainBatch,
    targets: Targets,
    heads: Heads,
    dims: list[int],
    reduction: str = "mean",
) -> torch.Tensor:
    settings = Stage1Config(
        sources={"made": 1}, steps=1, batch_size=2, lr=1e-3, reduction=reduction
    )
    terms, _ = Objective(settings, {"distill": 1.0}, dims)(vectors, prepared, targets, heads)
    return terms["distill"]


def batch(kind: RowKind, *rows: object) -> Batch:
    return Batch(
        step=0, index=0, dataset="made", kind=kind, rows=rows, row_ids=np.arange(len(rows))
    )


def test_each_prefix_goes_through_its_slice_of_the_projection():
    prepared = collate(batch(RowKind.TEXTS, Text("a")), task=None, distil=True)
    projection = Projection(2, 2)
    projection.weight.data, projection.bias.data = (
        torch.tensor([[1.0, 2.0], [0.0, 1.0]]),
        torch.tensor([0.0, 1.0]),
    )
    targets, vectors = Targets(torch.tensor([[1.0, 0.0]])), torch.tensor([[3.0, 4.0]])
    value = distill(vectors, prepared, targets, Heads(projection=projection), [1, 2])
    first = 1 - 1 / math.sqrt(2)  # W[:, :1] (1) + b = (1, 1)
    second = 1 - 2.2 / math.hypot(2.2, 1.8)  # W (0.6, 0.8) + b = (2.2, 1.8)
    assert value.item() == pytest.approx((first + second) / 2)
    assert distill(
        vectors, prepared, targets, Heads(projection=projection), [1]
    ).item() == pytest.approx(first)


def test_without_a_projection_prefixes_are_compared_with_the_teacher_s_prefixes():
    prepared = collate(batch(RowKind.TEXTS, Text("a"), Text("b")), task=None, distil=True)
    targets, vectors = (
        Targets(torch.tensor([[1.0, 0.0], [0.6, 0.8]])),
        torch.tensor([[3.0, 4.0], [1.0, 0.0]]),
    )
    assert distill(vectors, prepared, targets, Heads(), [1, 2]).item() == pytest.approx(
        (0 + 0.4) / 2
    )
    assert distill(vectors, prepared, targets, Heads(), [2], "sum").item() == pytest.approx(0.8)


def test_a_text_is_told_apart_from_the_others_but_not_from_its_own_translation():
    rows = Batch(
        step=0,
        index=0,
        dataset="made",
        kind=RowKind.PAIRS,
        rows=(Pair("eins", "one", ()), Pair("zwei", "two", ())),
        row_ids=np.arange(2),
        teacher_reads=TeacherSide.POSITIVE,
    )
    prepared = collate(rows, task=None, distil=True)
    assert [prepared.texts[place][1] for place, _ in prepared.distilled] == [
        "eins",
        "zwei",
        "one",
        "two",
    ]
    targets = {"one": [1.0, 0.0], "two": [0.6, 0.8]}
    target = torch.tensor([targets[text] for _, text in prepared.teacher_texts()])
    given = {"eins": [2.0, 0.0], "zwei": [1.0, 0.0], "one": [0.0, 3.0], "two": [0.6, 0.8]}
    vectors = torch.tensor([given[text] for _, text in prepared.texts])
    cosines = {
        text: (torch.tensor(given[text]) / torch.tensor(given[text]).norm()).tolist()
        for text in given
    }

    def one(text: str, own: str, other: str) -> float:
        mine, theirs = (
            sum(a * b for a, b in zip(cosines[text], targets[name], strict=True)) / 0.5
            for name in (own, other)
        )
        return -mine + math.log(
            math.exp(mine) + 2 * math.exp(theirs)
        )  # the other row's vector is there twice: of either side

    wanted = [
        one("eins", "one", "two"),
        one("zwei", "two", "one"),
        one("one", "one", "two"),
        one("two", "two", "one"),
    ]
    settings = StaticConfig(sources={"made": 1}, weights={"teacher_nce": 1.0}, nce_temperature=0.5)
    terms, _ = Objective(settings, settings.weights, [2])(
        vectors, prepared, Targets(target), Heads()
    )
    assert terms["teacher_nce"].item() == pytest.approx(sum(wanted) / 4, rel=1e-5)


def test_a_prefix_of_the_projection_gets_its_gradient_and_the_rest_none():
    prepared = collate(batch(RowKind.TEXTS, Text("a")), task=None, distil=True)
    projection = Projection(4, 3)
    distill(
        torch.randn(1, 4), prepared, Targets(torch.randn(1, 3)), Heads(projection=projection), [2]
    ).backward()
    assert (
        projection.weight.grad[:, 2:].abs().max() == 0
        and projection.weight.grad[:, :2].abs().min() > 0
    )


def test_identity_projection_starts_as_the_prefix_itself():
    projection = Projection(3, 5, "identity")
    vectors = torch.randn(2, 3)
    assert (
        torch.equal(projection(vectors)[:, :3], vectors)
        and projection(vectors)[:, 3:].abs().max() == 0
    )
    several = Projection(3, [2, 4, 3], "identity")(vectors)
    assert torch.equal(
        several, torch.cat([vectors[:, :2], vectors, torch.zeros(2, 1), vectors], dim=1)
    )


def test_retrieval_adds_info_nce_distillation_and_both_sides_of_the_regulariser():
    rows = [Pair("a", "b", ("x", "y")), Pair("c", "d"), Pair("e", "b")]
    prepared = collate(batch(RowKind.PAIRS, *rows), task=Task.RETRIEVAL, distil=True, negatives=1)
    torch.manual_seed(0)
    vectors, teacher, heads = (
        torch.randn(len(prepared.texts), 8),
        torch.randn(6, 5),
        Heads(projection=Projection(8, 5)),
    )
    terms, masked = adapter_objective(Task.RETRIEVAL, adapter(temperature=0.1), [4, 8])(
        vectors, prepared, Targets(teacher), heads
    )
    place = {text: i for i, text in enumerate(prepared.texts)}
    assert [text for _, text in place] == ["a", "c", "e", "b", "d", "x"]
    for name, one in {
        "info_nce": lambda u: info_nce(
            u[[0, 1, 2]],
            u[[3, 4, 3, 5]],
            torch.arange(3),
            0.1,
            excluded=torch.tensor(
                [[False, False, True, False], [False] * 4, [True, False, False, False]]
            ),
        ),
        "gor": lambda u: gor(u[[0, 1, 2]]) + gor(u[[3, 4, 3]]),
    }.items():
        assert terms[name].item() == pytest.approx(
            (one(normalize(vectors[:, :4])) + one(normalize(vectors))).item() / 2, abs=1e-6
        )
    distances = [
        1
        - torch.cosine_similarity(
            heads.projection(normalize(vectors[[0, 1, 2, 3, 4, 3], :k])), teacher
        )
        for k in (4, 8)
    ]
    assert terms["distill"].item() == pytest.approx(torch.stack(distances).mean().item(), abs=1e-6)
    assert masked == pytest.approx(2 / 12)


def test_text_matching_takes_cosent_for_graded_rows_and_contrast_otherwise():
    settings = adapter(cosent_temperature=0.2)
    objective = adapter_objective(Task.TEXT_MATCHING, settings, [2])
    graded = collate(
        batch(RowKind.SCORED, ScoredPair("a", "b", 1.0), ScoredPair("c", "d", 0.0)),
        task=Task.TEXT_MATCHING,
        distil=True,
    )
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
    terms, masked = objective(vectors, graded, Targets(), Heads())
    assert list(terms) == ["cosent"] and masked == 0
    assert terms["cosent"].item() == pytest.approx(
        math.log(1 + math.exp((0.8 - 0.6) / 0.2)), abs=1e-6
    )
    pairs = collate(
        batch(RowKind.PAIRS, Pair("a", "b"), Pair("c", "d")), task=Task.TEXT_MATCHING, distil=True
    )
    terms, _ = objective(vectors, pairs, Targets(torch.randn(4, 2)), Heads())
    assert list(terms) == ["info_nce", "distill"]


def test_classification_contrasts_both_ways_and_masks_texts_of_the_same_label():
    items = [
        ClassificationItem(
            anchor="a", positive="b", negatives=("c",), label="x", negative_labels=("y",)
        ),
        ClassificationItem(
            anchor="d", positive="e", negatives=("f",), label="y", negative_labels=("x",)
        ),
    ]
    items.append(
        ClassificationItem(
            anchor="g", positive="h", negatives=("i",), label="x", negative_labels=("z",)
        )
    )
    prepared = collate(batch(RowKind.LABELLED, *items), task=Task.CLASSIFICATION, distil=False)
    torch.manual_seed(0)
    vectors, base = torch.randn(9, 6), torch.randn(9, 6)
    objective = adapter_objective(Task.CLASSIFICATION, adapter(temperature=0.5), [6])
    terms, masked = objective(vectors, prepared, Targets(base=base), Heads())
    unit = normalize(vectors)
    anchors, documents = unit[[0, 1, 2]], unit[[3, 4, 5, 6, 7, 8]]  # b e h, then c (y) f (x) i (z)
    same = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 0]]).bool()
    there = info_nce(anchors, documents, torch.arange(3), 0.5, excluded=same)
    back = info_nce(unit[[3, 4, 5]], anchors, torch.arange(3), 0.5, excluded=same[:, :3])
    assert terms["info_nce"].item() == pytest.approx((there + back).item(), abs=1e-6)
    wanted = relational_distance(unit, normalize(base))
    assert terms["relational"].item() == pytest.approx(wanted.item(), abs=1e-6)
    assert masked == pytest.approx((8 - 3) / 18)
    plain, none = adapter_objective(
        Task.CLASSIFICATION, adapter(temperature=0.5, mask_same_label=False), [6]
    )(vectors, prepared, Targets(base=base), Heads())
    assert plain["info_nce"].item() > terms["info_nce"].item() and none == 0


def test_clustering_distils_alone_and_lone_texts_serve_as_well():
    prepared = collate(
        batch(RowKind.TEXTS, Text("a"), Text("b")), task=Task.CLUSTERING, distil=True
    )
    terms, _ = adapter_objective(Task.CLUSTERING, adapter(), [2])(
        torch.eye(2), prepared, Targets(torch.eye(2)), Heads()
    )
    assert {name: term.item() for name, term in terms.items()} == {"distill": 0.0}


def test_weights_are_the_paper_s_unless_the_recipe_says_otherwise():
    assert weights_for(Task.RETRIEVAL, {}) == {"info_nce": 1.0, "distill": 2.0, "gor": 1.0}
    assert weights_for(Task.TEXT_MATCHING, {}) == {"cosent": 1.0, "info_nce": 1.0, "distill": 2.0}
    assert weights_for(Task.CLUSTERING, {}) == {"distill": 1.0}
    assert weights_for(Task.CLASSIFICATION, {}) == {"info_nce": 1.0, "relational": 20.0}
    assert weights_for(Task.RETRIEVAL, {"gor": 0, "distill": 3}) == {
        "info_nce": 1.0,
        "distill": 3.0,
    }
    with pytest.raises(
        BadInput,
        match=(
            r"adapters.retrieval.weights names 'gorr', which this task does not have; did you mean"
            r" 'gor'"
        ),
    ):
        weights_for(Task.RETRIEVAL, {"gorr": 1})


def test_a_term_without_weight_is_not_computed():
    prepared = collate(
        batch(RowKind.PAIRS, Pair("a", "b"), Pair("c", "d")), task=Task.RETRIEVAL, distil=False
    )
    objective = adapter_objective(Task.RETRIEVAL, adapter(weights={"distill": 0, "gor": 0}), [4])
    terms, _ = objective(torch.randn(4, 4), prepared, Targets(), Heads())
    assert list(terms) == ["info_nce"]


def test_a_learned_temperature_is_a_logarithm_held_above_a_floor():
    assert contrast_temperature(Heads(), adapter(temperature=0.3)) == 0.3
    heads = Heads(log_temperature=nn.Parameter(torch.tensor(0.02).log()))
    assert contrast_temperature(heads, adapter()).item() == pytest.approx(0.02)
    heads.log_temperature.data.fill_(-20)
    assert contrast_temperature(heads, adapter(min_temperature=0.01)).item() == pytest.approx(0.01)
    assert list(heads.named()) == ["log_temperature"]


@given(start=st.floats(1e-8, 1.0), floor=st.floats(1e-6, 0.5))
@example(start=0.0009, floor=0.001)
def test_a_learned_temperature_has_a_gradient_wherever_it_is_and_is_held_at_its_floor(start, floor):
    heads = Heads(log_temperature=nn.Parameter(torch.tensor(start).log()), min_temperature=floor)
    used = contrast_temperature(heads, adapter(min_temperature=floor))
    assert used.item() == pytest.approx(
        max(start, floor), rel=1e-5
    ) and heads.temperature == pytest.approx(used.item(), rel=1e-5)
    used.log().backward()
    assert heads.log_temperature.grad.item() > 0
    heads.hold_temperature()
    assert heads.log_temperature.exp().item() == pytest.approx(max(start, floor), rel=1e-5)
    assert contrast_temperature(heads, adapter(min_temperature=floor)).item() == pytest.approx(
        max(start, floor), rel=1e-5
    )


def test_a_weight_on_binary_codes_adds_their_contrast():
    prepared = collate(
        batch(RowKind.PAIRS, Pair("q", "p"), Pair("r", "s")), task=Task.RETRIEVAL, distil=False
    )
    vectors = torch.tensor(
        [[3.0, 1.0], [1.0, -2.0], [1.0, 2.0], [-1.0, -1.0]]
    )  # q, r, p, s: codes ++, +-, ++, --
    settings = adapter(
        weights={"binary_info_nce": 1.0, "info_nce": 0.0, "distill": 0.0, "gor": 0.0},
        temperature=0.5,
        matryoshka=False,
    )
    terms, _ = adapter_objective(Task.RETRIEVAL, settings, [2])(
        vectors, prepared, Targets(), Heads()
    )
    first = math.log(1 + math.exp(-2 - 2))  # q: 1 with p, -1 with s
    second = math.log(1 + 1)  # r: 0 with s, its positive, and 0 with p
    assert terms.keys() == {"binary_info_nce"}
    assert terms["binary_info_nce"].item() == pytest.approx((first + second) / 2)
