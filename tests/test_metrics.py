"""Metrics against values worked out by hand, and the identities that the statistics rely on."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from taskdistill import metrics


def test_ndcg_map_mrr_and_recall_by_hand():
    qrels = {"q": {"a": 2, "b": 1, "c": 0}, "r": {"a": 1}}
    ranking = {"q": {"c": 0.9, "b": 0.8, "a": 0.7}, "r": {"b": 0.9}}
    result = metrics.retrieval_scores(qrels, ranking, ["q", "r"])
    ideal = 2 + 1 / math.log2(3)
    assert result["nDCG@10"].tolist() == pytest.approx(
        [(1 / math.log2(3) + 2 / math.log2(4)) / ideal, 0]
    )
    assert result["MAP@1000"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 0])
    assert result["MRR@10"].tolist() == [0.5, 0]
    assert result["Recall@100"].tolist() == [1, 0]
    assert result["nDCG@1"].tolist() == [0, 0]


def test_ties_go_to_the_larger_id_in_every_metric():
    result = metrics.retrieval_scores({"q": {"b": 1}}, {"q": {"a": 0.5, "b": 0.5}}, ["q"])
    assert result["nDCG@10"][0] == result["MRR@10"][0] == result["MAP@1000"][0] == 1


def test_spearman_by_hand_and_of_constants():
    assert metrics.spearman(np.array([1, 2, 3, 4.0]), np.array([1, 3, 2, 4.0])) == pytest.approx(
        0.8
    )
    assert metrics.spearman(np.array([1, 2.0]), np.array([3, 3.0])) == 0


def test_equal_vectors_tie_exactly():
    x = np.random.default_rng(0).standard_normal((500, 33)).astype(np.float32)
    assert set(metrics.paired_cosine(x, x * 3).round(6)) == {1} and set(
        metrics.paired_cosine(x, x)
    ) == {1}
    assert metrics.paired_cosine(np.array([[1.0, 0]]), np.array([[1.0, 1]]))[0] == pytest.approx(
        math.sqrt(0.5)
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_mean_precision_at_positives_is_average_precision(rows):
    labels, scores = np.array([int(a) for a, _ in rows]), np.array([b / 5 for _, b in rows])
    if labels.any():
        assert metrics.precision_at_positives(labels, scores).mean() == pytest.approx(
            average_precision_score(labels, scores)
        )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=8, max_size=8))
def test_mean_label_f1_is_the_weighted_f1(found):
    expected = f1_score(range(8), found, average="weighted", zero_division=0)
    assert metrics.matching_f1(np.array(found)).mean() == pytest.approx(expected)


def test_clustering_of_separate_groups_is_perfect_and_repeatable():
    vectors = np.repeat(np.eye(3, 8), 20, axis=0) + np.random.default_rng(1).normal(
        0, 0.01, (60, 8)
    )
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    result = [
        metrics.v_measures(vectors, labels, rng=random.Random(42), experiments=3, sample=90)
        for _ in range(2)
    ]
    assert result[0].tolist() == result[1].tolist() == [1, 1, 1]
    assert metrics.v_measure_once(vectors, labels) == 1


def test_few_per_label_draws_that_many_of_each():
    labels = ["a"] * 30 + ["b"] * 20 + ["c"] * 3
    samples = metrics.few_per_label(labels, experiments=4, per_label=8)
    assert [[sum(labels[i] == x for i in sample) for x in "abc"] for sample in samples] == [
        [8, 8, 3]
    ] * 4
    assert len({tuple(sample) for sample in samples}) == 4


def test_few_per_label_multi_covers_every_label():
    labels = [["a"], ["a", "b"], ["c"], ["b"]] * 10
    sample = metrics.few_per_label_multi(labels, rng=np.random.default_rng(42), per_label=5)
    assert all(sum(x in labels[i] for i in sample) >= 5 for x in "abc") and len(sample) < 40


def test_classifiers_learn_what_is_separable():
    vectors, labels = np.repeat(np.eye(2), 10, axis=0), ["x"] * 10 + ["y"] * 10
    predicted = metrics.classify(vectors, labels, vectors)
    assert predicted.tolist() == labels and metrics.macro_f1(labels, predicted) == 1
    sets = [["x"]] * 10 + [["x", "y"]] * 10
    scores, right = metrics.classify_multi(vectors, sets, vectors, sets)
    assert scores == {"accuracy": 1, "macro-F1": 1, "LRAP": 1} and right.all()


def test_summaries_score_by_their_nearest_human_one():
    human, machine = np.eye(2, 3), np.array([[1.0, 0, 0.1], [1, 0, 1], [0, 0, 1]])
    assert metrics.summary_scores(human, machine, [3, 2, 1]) == pytest.approx(1)
    assert metrics.summary_scores(human, machine, [1, 1, 1]) is None
