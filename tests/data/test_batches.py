"""Batches are a pure function of seed, phase and step; epochs cover every row; texts do not meet
themselves.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.data.batches import BatchPlan, ClassificationItem, describe
from taskdistill.data.rows import LabeledText, Pair, ScoredPair, Text, make_dataset
from taskdistill.errors import BadInput
from taskdistill.types import RowKind


def pairs(count: int, name: str = "pairs", positives: int | None = None):
    return make_dataset(
        name, RowKind.PAIRS, [Pair(f"q{i}", f"p{i % (positives or count)}") for i in range(count)]
    )


def scored(scores):
    return make_dataset(
        "scored",
        RowKind.SCORED,
        [ScoredPair(f"a{i}", f"b{i}", score) for i, score in enumerate(scores)],
    )


def labelled(labels):
    return make_dataset(
        "labelled",
        RowKind.LABELLED,
        [LabeledText(f"t{i}", str(label)) for i, label in enumerate(labels)],
    )


def texts(count: int, name: str = "texts"):
    return make_dataset(name, RowKind.TEXTS, [Text(f"t{i}") for i in range(count)])


def same(left, right) -> bool:
    return (left.step, left.dataset, left.kind, left.rows) == (
        right.step,
        right.dataset,
        right.kind,
        right.rows,
    ) and np.array_equal(left.row_ids, right.row_ids)


def mixed(seed: int = 7, label: str = "stage1", **more):
    sets = [
        pairs(50),
        scored([i % 3 / 2 for i in range(40)]),
        labelled([i % 4 for i in range(36)]),
        texts(30),
    ]
    return BatchPlan(
        sets,
        {"pairs": 2, "scored": 1, "labelled": 1, "texts": 1},
        8,
        seed=seed,
        label=label,
        **more,
    )


def test_a_fresh_plan_gives_the_same_batch_at_any_step():
    sequential = mixed(negatives=3)
    batches = [sequential.at(step) for step in range(520)]
    assert {batch.dataset for batch in batches} == {"pairs", "scored", "labelled", "texts"}
    for step in (500, 0, 519, 17):
        assert same(mixed(negatives=3).at(step), batches[step])
    backwards = mixed(negatives=3)
    for step in range(519, 480, -1):
        assert same(backwards.at(step), batches[step])


def test_steps_beyond_one_block_of_draws_are_pure_too():
    plan = BatchPlan([texts(10, "a"), texts(10, "b")], {"a": 1, "b": 3}, 5, seed=1, label="x")
    later = plan.at(9000)
    assert plan.sampled(9000)[0] + plan.sampled(9000)[1] == 9000
    assert same(
        BatchPlan([texts(10, "a"), texts(10, "b")], {"a": 1, "b": 3}, 5, seed=1, label="x").at(
            9000
        ),
        later,
    )
    names = Counter(plan.at(step).dataset for step in range(4000, 4400))
    assert names["b"] == plan.sampled(4400)[1] - plan.sampled(4000)[1]


def test_seed_and_phase_change_the_order():
    assert not same(mixed(seed=7).at(3), mixed(seed=8).at(3))
    assert not same(mixed(label="stage1").at(3), mixed(label="adapters.retrieval").at(3))


def test_datasets_are_drawn_by_weight():
    plan = BatchPlan(
        [texts(10, "a"), texts(10, "b"), texts(10, "c")],
        {"a": 1, "b": 3, "c": 0},
        5,
        seed=5,
        label="x",
    )
    assert [dataset.name for dataset in plan.datasets] == ["a", "b"]
    assert abs(plan.sampled(8000)[1] / 8000 - 0.75) < 0.02


@given(st.integers(1, 60), st.data())
@settings(deadline=None, max_examples=60)
def test_every_epoch_holds_every_row_once_and_only_the_last_batch_is_filled_up(count, data):
    size = data.draw(st.integers(1, count))
    for dataset in (texts(count), pairs(count, "texts")):
        plan = BatchPlan([dataset], {"texts": 1}, size, seed=3, label="x")
        per_epoch = -(-count // size)
        for epoch in range(2):
            drawn = [plan.at(epoch * per_epoch + i).row_ids for i in range(per_epoch)]
            assert all(len(set(ids.tolist())) == size for ids in drawn)
            times = Counter(np.concatenate(drawn).tolist())
            assert set(times) == set(range(count))
            assert sum(times.values()) == per_epoch * size
            assert (
                max(Counter(row for ids in drawn[:-1] for row in ids.tolist()).values(), default=1)
                == 1
            )


def test_epochs_are_permuted_differently():
    plan = BatchPlan([texts(40)], {"texts": 1}, 40, seed=3, label="x")
    assert not np.array_equal(plan.at(0).row_ids, plan.at(1).row_ids)


def test_no_normalised_text_occurs_twice_in_a_batch_of_pairs():
    rows = [Pair(f"Query {i % 30}", f"positive {i // 2}") for i in range(120)]
    rows += [Pair(f"positive  {i}", f"Other {i}") for i in range(40)]
    plan = BatchPlan([make_dataset("d", RowKind.PAIRS, rows)], {"d": 1}, 16, seed=2, label="x")
    for step in range(10):
        said = [
            text.casefold().replace("  ", " ")
            for row in plan.at(step).rows
            for text in (row.query, row.positive)
        ]
        assert len(set(said)) == len(said)
    assert {i for step in range(10) for i in plan.at(step).row_ids.tolist()} == set(range(160))


def test_pairs_that_all_share_a_text_still_fill_every_batch():
    plan = BatchPlan([pairs(20, positives=1)], {"pairs": 1}, 6, seed=2, label="x")
    drawn = [plan.at(step).row_ids.tolist() for step in range(4)]
    assert all(len(set(ids)) == 6 for ids in drawn)
    assert {i for ids in drawn for i in ids} == set(range(20))


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=40),
    st.integers(2, 4),
    st.integers(0, 20),
)
@settings(deadline=None)
def test_batches_of_scored_rows_have_two_scores(scores, size, step):
    if len(set(scores)) < 2:
        return
    batch = BatchPlan([scored(scores)], {"scored": 1}, size, seed=1, label="x").at(step)
    assert len({row.score for row in batch.rows}) >= 2
    assert len(set(batch.row_ids.tolist())) == size


def test_one_odd_score_among_many_is_in_every_batch_that_needs_it():
    plan = BatchPlan([scored([1.0] * 31 + [0.0])], {"scored": 1}, 4, seed=1, label="x")
    assert all(31 in plan.at(step).row_ids for step in range(16))


def test_classification_items_follow_the_paper():
    labels = [i % 5 for i in range(60)] + ["single"]
    dataset = labelled(labels)
    plan = BatchPlan(
        [dataset], {"labelled": 1}, 12, seed=4, label="adapters.classification", negatives=7
    )
    anchors = []
    for step in range(5):
        batch = plan.at(step)
        assert batch.kind is RowKind.LABELLED
        assert batch.row_ids.shape == (12, 9)
        for item, ids in zip(batch.rows, batch.row_ids.tolist(), strict=True):
            assert isinstance(item, ClassificationItem)
            assert [item.anchor, item.positive, *item.negatives] == [
                dataset.rows[i].text for i in ids
            ]
            assert item.anchor != item.positive
            assert dataset.rows[ids[1]].label == item.label == dataset.rows[ids[0]].label
            assert item.label not in item.negative_labels
            assert item.negative_labels == tuple(dataset.rows[i].label for i in ids[2:])
            assert len(set(ids)) == 9
            anchors.append(ids[0])
    assert sorted(anchors) == list(range(60))


def test_negatives_are_drawn_evenly_over_the_other_rows():
    plan = BatchPlan(
        [labelled(["a"] * 2 + ["b"] * 6 + ["c"] * 2)],
        {"labelled": 1},
        2,
        seed=4,
        label="x",
        negatives=1,
    )
    drawn = Counter(
        item.negative_labels[0]
        for step in range(4000)
        for item in plan.at(step).rows
        if item.label == "a"
    )
    assert abs(drawn["b"] / drawn.total() - 0.75) < 0.04


def test_labelled_rows_act_as_lone_texts_elsewhere():
    batch = BatchPlan(
        [labelled([0, 1, 2])], {"labelled": 1}, 3, seed=4, label="adapters.clustering"
    ).at(0)
    assert batch.kind is RowKind.TEXTS
    assert {row.text for row in batch.rows} == {"t0", "t1", "t2"}
    assert all(isinstance(row, Text) for row in batch.rows)


def test_own_batch_sizes_and_the_description():
    sets = [texts(10, "short"), texts(6, "long")]
    plan = BatchPlan(sets, {"short": 1, "long": 1}, 5, seed=1, label="x", batch_sizes={"long": 2})
    assert {(batch.dataset, len(batch.rows)) for batch in map(plan.at, range(20))} == {
        ("short", 5),
        ("long", 2),
    }
    lines = describe(plan, 100)
    assert sum(line["batches"] for line in lines) == 100
    assert lines[1]["epochs"] == lines[1]["batches"] * 2 / 6
    assert [line["weight"] for line in lines] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("sets", "weights", "size", "negatives", "message"),
    [
        (
            [texts(3)],
            {"texts": 1},
            4,
            None,
            "a batch of 4 is larger than data set 'texts' with 3 rows",
        ),
        ([texts(3)], {"text": 1}, 2, None, "did you mean 'texts'"),
        ([texts(3)], {"texts": 0}, 2, None, "no data set has a weight above 0"),
        ([scored([0.5] * 4)], {"scored": 1}, 2, None, "two distinct scores"),
        ([scored([0.5, 1.0])], {"scored": 1}, 1, None, "two distinct scores"),
        ([labelled("aab")], {"labelled": 1}, 3, 2, "larger than data set 'labelled' with 2 rows"),
        ([labelled("aaa")], {"labelled": 1}, 2, 2, "two classes or more"),
    ],
)
def test_plans_that_cannot_work_say_why(sets, weights, size, negatives, message):
    with pytest.raises(BadInput, match=message):
        BatchPlan(sets, weights, size, seed=1, label="phase", negatives=negatives)
