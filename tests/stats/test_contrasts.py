"""Contrasts against hand-computed values and simulated truth: coverage, size of the tests,
equivalence, what would decide.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from taskdistill.errors import BadInput
from taskdistill.stats.contrasts import (
    PowerAnalysis,
    analyze_contrasts,
    effective_queries,
    holm,
    required_sample,
    seed_variance,
    smallest_effect,
)

RUNS = 150


def simulate(
    rng: np.random.Generator,
    *,
    truth: float = 0.0,
    seeds: int = 5,
    sets: int = 3,
    queries: int = 60,
    seed_sd: float = 0.02,
    set_sd: float = 0.0,
) -> dict[str, np.ndarray]:
    """Differences of two arms with chance in training, sets and queries, and their interaction."""
    by_seed = rng.normal(0, seed_sd, (seeds, 1))
    return {
        f"s{i}": (
            truth
            + rng.normal(0, set_sd)
            + by_seed
            + rng.normal(0, 0.1, (1, queries))
            + rng.normal(0, 0.05, (seeds, queries))
        )
        for i in range(sets)
    }


@pytest.mark.parametrize(("sets", "set_sd", "seeds"), [(3, 0.0, 5), (3, 0.0, 3), (6, 0.03, 5)])
def test_intervals_cover_the_truth_at_least_as_often_as_they_say(sets, set_sd, seeds):
    rng = np.random.default_rng(1)
    result = [
        analyze_contrasts(
            {"x": simulate(rng, truth=0.01, sets=sets, set_sd=set_sd, seeds=seeds)},
            draws=400,
            seed=i,
        )["x"].all
        for i in range(RUNS)
    ]
    covered = np.mean([each.low <= 0.01 <= each.high for each in result])
    assert covered >= 0.93
    assert np.mean([each.high - each.low for each in result]) < 0.25


def test_the_test_of_no_difference_keeps_its_level_where_queries_are_the_only_chance():
    rng = np.random.default_rng(3)
    result = [
        analyze_contrasts({"x": simulate(rng, seed_sd=0.0)}, draws=300, seed=i)["x"]
        for i in range(2 * RUNS)
    ]
    assert 0.02 < np.mean([each.p_two_sided <= 0.05 for each in result]) < 0.09
    assert 0.02 < np.mean([each.p_greater <= 0.05 for each in result]) < 0.09


def test_both_tests_together_keep_their_level_where_seeds_differ_too():
    rng = np.random.default_rng(4)
    result = [analyze_contrasts({"x": simulate(rng)}, draws=300, seed=i)["x"] for i in range(RUNS)]
    assert np.mean([max(each.p_greater, each.p_draws) <= 0.05 for each in result]) <= 0.06


def test_the_value_is_the_mean_over_sets_and_by_hand():
    values = {
        "a": np.array([[0.1, 0.3], [0.3, 0.5]]),
        "b": np.array([[0.0, 0.0, 0.6], [0.0, 0.3, 0.3]]),
    }
    result = analyze_contrasts({"x": values}, draws=200)["x"]
    assert result.all.value == pytest.approx((0.3 + 0.2) / 2)
    assert result.per_seed == pytest.approx((0.2, 0.3))
    assert result.per_set == pytest.approx({"a": 0.3, "b": 0.2})
    assert result.seed_sd == pytest.approx(0.1 / math.sqrt(2))
    variances = [np.var([0.2, 0.4], ddof=1) / 2, np.var([0.0, 0.15, 0.45], ddof=1) / 3]
    assert result.query_error == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_widths_are_those_of_the_standard_errors():
    rng = np.random.default_rng(5)
    queries = analyze_contrasts({"x": {"a": np.tile(rng.normal(0, 0.1, 400), (4, 1))}})["x"]
    assert queries.queries.high - queries.queries.low == pytest.approx(
        2 * 1.96 * 0.1 / 20, rel=0.12
    )
    assert queries.seeds.to_json() == pytest.approx([queries.all.value] * 3)
    seeds = analyze_contrasts({"x": {"a": np.repeat(rng.normal(0, 0.1, (5, 1)), 50, axis=1)}})["x"]
    standard = seeds.seed_sd / math.sqrt(5)
    spread = np.std(seeds.draws)
    assert spread == pytest.approx(standard * 2.776 / 1.96, rel=0.05), (
        "Student's quantile with four degrees of freedom"
    )


def test_contrasts_share_their_draws_and_differ_in_seeds():
    rng = np.random.default_rng(6)
    a, b = (rng.normal(0.05, 0.1, (5, 80)) for _ in range(2))
    result = analyze_contrasts({"a": {"s": a}, "b": {"s": b[:3]}, "a again": {"s": a}}, draws=500)
    assert (
        result["a"].all == result["a again"].all
        and result["a"].p_greater == result["a again"].p_greater
    )
    assert len(result["a"].per_seed) == 5 and len(result["b"].per_seed) == 3
    assert result["a"].queries.value == pytest.approx(a.mean())


def test_a_clear_difference_is_found_and_nothing_is_nothing():
    rng = np.random.default_rng(7)
    result = analyze_contrasts(
        {
            "clear": simulate(rng, truth=0.1, seed_sd=0.005),
            "nothing": {f"s{i}": np.zeros((5, 60)) for i in range(3)},
        },
        draws=1000,
    )
    assert (
        result["clear"].p_greater < 0.01
        and result["clear"].p_draws < 0.01
        and result["clear"].bounds[0] > 0.05
    )
    assert (
        result["nothing"].p_two_sided == 1
        and result["nothing"].p_equivalent(0.01) == 0
        and result["nothing"].p_sign() == 1
    )


def test_equivalence_needs_the_whole_interval_within_the_margin():
    rng = np.random.default_rng(8)
    near = analyze_contrasts({"x": {"a": rng.normal(0.001, 0.05, (5, 2000))}}, draws=1000)["x"]
    assert near.p_equivalent(0.01) < 0.05 < near.p_equivalent(0.0005)


def test_sign_test_by_hand():
    def p(*values: float) -> float:
        return analyze_contrasts(
            {"x": {"a": np.repeat(np.array(values)[:, None], 2, axis=1)}}, draws=10
        )["x"].p_sign()

    assert p(1, 1, 1, 1, 1) == pytest.approx(2 / 32)
    assert p(1, 1, 1, 1, -1) == pytest.approx(2 * 6 / 32)
    assert p(1, -1) == 1
    assert p(1, 0, 1, 1) == pytest.approx(2 / 8), "a seed at exactly 0 says nothing"


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.5, "b": 0.9}) == pytest.approx({"a": 1.0, "b": 1.0})


def test_what_would_decide_brings_the_power_that_it_promises():
    result = required_sample(0.01, 0.01, 0.0, 5)
    assert result is not None and result.seeds is None
    assert result.queries == pytest.approx((2.8016) ** 2, rel=1e-3)
    assert smallest_effect(0.01, 1) / math.sqrt(result.queries) == pytest.approx(0.01)
    assert result.both == pytest.approx(8.0), "of whole seeds: 40 instead of 5"
    result = required_sample(0.01, 0.001, 0.02, 5)
    assert result is not None and result.queries is None
    assert 2.8016 * math.sqrt(0.001**2 + seed_variance(0.02, result.seeds)) <= 0.01
    assert 2.8016 * math.sqrt(0.001**2 + seed_variance(0.02, result.seeds - 1)) > 0.01
    assert required_sample(1e-6, 0.1, 0.1, 5) == PowerAnalysis(None, None, None)
    assert required_sample(0.0, 0.01, 0.0, 5) is None


def test_where_sets_differ_only_more_of_them_decide():
    result = required_sample(0.07, 0.006, 0.005, 5, set_sd=0.12, sets=6)
    assert result is not None and (result.queries, result.seeds, result.both) == (None, None, None)

    def error(sets: int) -> float:
        return math.sqrt(0.006**2 * 6 / sets + seed_variance(0.005, 5) + seed_variance(0.12, sets))

    assert 2.8016 * error(result.sets) <= 0.07 < 2.8016 * error(result.sets - 1)
    fixed = required_sample(0.07, 0.006, 0.005, 5)
    assert fixed is not None and fixed.sets is None and fixed.queries == 1.0
    alike = required_sample(0.07, 0.006, 0.005, 5, set_sd=0.001, sets=6)
    assert alike == PowerAnalysis(1.0, 5, 1.0, 6)


def test_sets_count_as_chance_from_five_on():
    for sets, expected in ((4, None), (5, float(np.std(np.arange(5) / 100, ddof=1)))):
        built = {f"s{i}": np.full((3, 4), i / 100) for i in range(sets)}
        result = analyze_contrasts({"a": built}, draws=50)["a"].set_sd
        assert result is None if expected is None else result == pytest.approx(expected)


def test_the_variance_over_seeds_is_widened_by_student():
    assert seed_variance(0.02, 5) == pytest.approx((2.7764 / 1.9600 * 0.02) ** 2 / 5, rel=1e-3)
    assert seed_variance(0.02, 1000) == pytest.approx(0.02**2 / 1000, rel=0.01)
    assert seed_variance(0.02, 1) == 0


def test_effective_queries_of_equal_sets_are_all_of_them():
    assert effective_queries([100, 100, 100]) == pytest.approx(300)
    assert effective_queries([1000, 10]) == pytest.approx(4 / (0.001 + 0.1))


def test_other_sets_and_uneven_seeds_are_refused():
    with pytest.raises(BadInput, match="same sets and queries"):
        analyze_contrasts({"a": {"s": np.zeros((2, 3))}, "b": {"s": np.zeros((2, 4))}})
    with pytest.raises(BadInput, match="same seeds"):
        analyze_contrasts({"a": {"s": np.zeros((2, 3)), "t": np.zeros((3, 3))}})
