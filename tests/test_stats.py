"""Intervals cover what they should, the test keeps its level, and power agrees with the specification's table."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from taskdistill.errors import BadInput
from taskdistill.stats import (
    hierarchical,
    interval,
    paired_difference,
    queries_needed,
    smallest_effect,
)


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    x = np.random.default_rng(0).normal(0.5, 0.2, 400)
    found = interval({"": x})
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


def test_interval_of_spearman_is_that_of_fishers_transform():
    rng = np.random.default_rng(1)
    a = rng.normal(size=1000)
    ranks = np.column_stack([rankdata(a), rankdata(a + rng.normal(size=1000))])
    found = interval({"": ranks}, draws=3000)
    half = 1.03 / np.sqrt(997)
    assert found.value == pytest.approx(np.corrcoef(ranks.T)[0, 1])
    assert found.low == pytest.approx(np.tanh(np.arctanh(found.value) - 1.96 * half), abs=0.01)
    assert found.high == pytest.approx(np.tanh(np.arctanh(found.value) + 1.96 * half), abs=0.01)


def test_languages_count_equally():
    found = interval({"en": np.ones(900), "fr": np.zeros(10)}, draws=100)
    assert found.to_json() == pytest.approx([0.5, 0.5, 0.5])


def test_the_same_seed_gives_the_same_interval():
    x = {"": np.random.default_rng(2).random(50)}
    assert interval(x) == interval(x) != interval(x, seed=18)


def test_a_clear_difference_is_found_and_equal_models_are_not():
    rng = np.random.default_rng(3)
    base = rng.random(300)
    better = paired_difference({"": base + 0.05 + rng.normal(0, 0.05, 300)}, {"": base})
    assert better.p < 0.001 and better.estimate.low > 0.03
    same = paired_difference({"": base}, {"": base})
    assert same.p == 1 and same.estimate.to_json() == [0, 0, 0]


def test_the_randomisation_test_keeps_its_level():
    rng = np.random.default_rng(4)
    found = [
        paired_difference({"": rng.random(40)}, {"": rng.random(40)}, draws=200, seed=i).p
        for i in range(300)
    ]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_differences_of_correlations_are_compared_too():
    rng = np.random.default_rng(5)
    gold = rng.normal(size=500)
    near, far = (
        np.column_stack([rankdata(gold), rankdata(gold + rng.normal(0, sd, 500))])
        for sd in (0.5, 1.5)
    )
    found = paired_difference({"": near}, {"": far}, draws=1000)
    assert found.p < 0.01 and found.estimate.low > 0.1
    assert paired_difference({"": near}, {"": near}, draws=100).p == 1


def test_other_queries_are_refused():
    with pytest.raises(BadInput, match="same queries"):
        paired_difference({"": np.zeros(3)}, {"": np.zeros(4)})


def test_hierarchical_intervals_reflect_each_source_of_chance():
    rng = np.random.default_rng(6)
    by_seed = {
        f"s{i}": np.repeat(
            rng.normal(0, 0.1, (5, 1)) * 0 + np.linspace(-0.1, 0.1, 5)[:, None], 200, axis=1
        )
        for i in range(6)
    }
    found = hierarchical(by_seed, draws=2000)
    assert found["queries"].low == found["queries"].high == pytest.approx(0)
    assert found["seeds"].low < -0.05 and found["seeds"].high > 0.05
    by_query = {f"s{i}": np.tile(rng.normal(0.02, 0.1, 200), (5, 1)) for i in range(3)}
    found = hierarchical(by_query, draws=2000)
    assert found["seeds"].low == found["seeds"].high == pytest.approx(found["all"].value)
    width = found["queries"].high - found["queries"].low
    assert width == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(600), rel=0.1)
    assert found["all"].high - found["all"].low == pytest.approx(width, rel=0.1)


def test_sets_are_drawn_only_when_there_are_five():
    few, many = ({f"s{i}": np.full((2, 10), float(i)) for i in range(n)} for n in (4, 5))
    assert hierarchical(few)["all"].low == hierarchical(few)["all"].high == 1.5
    assert hierarchical(many)["all"].low < 1 < 3 < hierarchical(many)["all"].high


def test_seeds_must_be_the_same_in_every_set():
    with pytest.raises(BadInput, match="same seeds"):
        hierarchical({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))})


@pytest.mark.parametrize(
    ("sd", "needed"),
    [(0.15, (11611, 1766, 442)), (0.20, (20642, 3140, 785)), (0.25, (32253, 4906, 1227))],
)
def test_queries_needed_agree_with_the_specification(sd, needed):
    assert [queries_needed(sd, effect) for effect in (0.0039, 0.01, 0.02)] == pytest.approx(
        needed, rel=1e-3
    )
    assert smallest_effect(sd, needed[1]) == pytest.approx(0.01, rel=1e-3)


def test_few_seeds_limit_what_can_be_detected():
    assert smallest_effect(0.2, 10**9, seed_sd=0.01, seeds=4) == pytest.approx(
        2.8016 * 0.005, rel=1e-3
    )
