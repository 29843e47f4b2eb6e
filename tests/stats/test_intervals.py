"""Intervals cover what they should, the test keeps its level, and power agrees with the
specification's table.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from taskdistill.errors import BadInput
from taskdistill.stats.contrasts import smallest_effect
from taskdistill.stats.intervals import (
    interval,
    mean_interval,
    paired_difference,
    share_interval,
    student_interval,
)


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    x = np.random.default_rng(0).normal(0.5, 0.2, 400)
    result = interval({"": x})
    assert result.value == pytest.approx(x.mean())
    assert result.high - result.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


def test_interval_of_spearman_is_that_of_fishers_transform():
    rng = np.random.default_rng(1)
    a = rng.normal(size=1000)
    ranks = np.column_stack([rankdata(a), rankdata(a + rng.normal(size=1000))])
    result = interval({"": ranks}, draws=3000)
    half = 1.03 / np.sqrt(997)
    assert result.value == pytest.approx(np.corrcoef(ranks.T)[0, 1])
    assert result.low == pytest.approx(np.tanh(np.arctanh(result.value) - 1.96 * half), abs=0.01)
    assert result.high == pytest.approx(np.tanh(np.arctanh(result.value) + 1.96 * half), abs=0.01)


def test_languages_count_equally():
    result = interval({"en": np.ones(900), "fr": np.zeros(10)}, draws=100)
    assert result.to_json() == pytest.approx([0.5, 0.5, 0.5])


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
    result = [
        paired_difference({"": rng.random(40)}, {"": rng.random(40)}, draws=200, seed=i).p
        for i in range(300)
    ]
    assert 0.02 < np.mean(np.array(result) <= 0.05) < 0.09
    assert np.mean(result) == pytest.approx(0.5, abs=0.06)


def test_differences_of_correlations_are_compared_too():
    rng = np.random.default_rng(5)
    gold = rng.normal(size=500)
    near, far = (
        np.column_stack([rankdata(gold), rankdata(gold + rng.normal(0, sd, 500))])
        for sd in (0.5, 1.5)
    )
    result = paired_difference({"": near}, {"": far}, draws=1000)
    assert result.p < 0.01 and result.estimate.low > 0.1
    assert paired_difference({"": near}, {"": near}, draws=100).p == 1


def test_other_queries_are_refused():
    with pytest.raises(BadInput, match="same queries"):
        paired_difference({"": np.zeros(3)}, {"": np.zeros(4)})


def test_a_share_is_drawn_on_the_same_queries_for_both_models():
    x = np.random.default_rng(3).uniform(0.2, 1.0, 300)
    share = share_interval(0.5 * x, x)
    assert (share.low, share.value, share.high) == pytest.approx((0.5, 0.5, 0.5))
    assert share_interval(x, 0 * x).high == 0
    mean = mean_interval(x)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * x.std() / np.sqrt(300), rel=0.1)


def test_an_interval_over_seeds_is_students():
    assert student_interval([1.0]) is None
    low, high = student_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx(
        (2 - 4.3027 / np.sqrt(3), 2 + 4.3027 / np.sqrt(3)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("sd", "queries"),
    [(0.15, (11611, 1766, 442)), (0.20, (20642, 3140, 785)), (0.25, (32253, 4906, 1227))],
)
def test_detectable_effects_agree_with_the_specification(sd, queries):
    effects = [smallest_effect(sd, count) for count in queries]
    assert effects == pytest.approx((0.0039, 0.01, 0.02), rel=2e-3)


def test_few_seeds_limit_what_can_be_detected():
    assert smallest_effect(0.2, 10**9, seed_sd=0.01, seeds=4) == pytest.approx(
        2.8016 * 0.005, rel=1e-3
    )
