"""Contrasts of trained models: intervals over seeds, sets and queries, tests, what would decide.

A contrast is a number for every (seed, query) of every set, such as one arm's nDCG@10 minus
another's. All contrasts share the same draws of queries, so that 10,000 draws of twenty contrasts
are a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.stats.intervals import (
    DRAWS,
    Estimate,
    Floats,
    blocks,
    coins,
    draw_counts,
    estimate,
    p_value,
    student_quantile,
)

Values = Mapping[str, Floats]
"""Set to (seeds, queries) numbers; row k is seed k in every set."""
RANDOM_EFFECT = 5
"""From this many sets on, sets are drawn too; fewer say nothing about sets in general."""
MAX_SAMPLE = 1000
"""More seeds or sets than this are not recommended to anybody."""

# Numbers drawn at once: bounds the memory of a block of draws to some tens of megabytes.
_CELLS = 4_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class ContrastResult:
    """What is known of one contrast: the mean over sets of the mean over seeds and queries.

    Attributes:
        all: With its interval over seeds, sets (five or more) and queries: the verdict rests on it.
        queries: With the interval over queries alone, which ignores chance in training.
        seeds: With the interval over seeds alone, which ignores chance in sampling queries.
        bounds: One-sided 95 % bounds, below and above, from the draws of `all`.
        p_greater: One-sided p-value of the paired randomisation test against "not above 0".
        p_two_sided: Two-sided p-value of the same test.
        p_draws: Share of the draws of `all` that are not above 0.
        query_error: Standard error of the mean over queries.
        seed_sd: Standard deviation of `per_seed`; None with one seed.
        draws: Draws of `all`, (draws,).
    """

    all: Estimate
    queries: Estimate
    seeds: Estimate
    bounds: tuple[float, float]
    p_greater: float
    p_two_sided: float
    p_draws: float
    per_seed: tuple[float, ...]
    per_set: Mapping[str, float]
    query_error: float
    seed_sd: float | None
    draws: Floats

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (TOST) for "less than a margin from 0"."""
        return float(max((self.draws <= -margin).mean(), (self.draws >= margin).mean()))

    @property
    def set_sd(self) -> float | None:
        """Standard deviation of `per_set`; None where sets are so few that they are not drawn."""
        by_set = list(self.per_set.values())
        return float(np.std(by_set, ddof=1)) if len(by_set) >= RANDOM_EFFECT else None

    def p_sign(self) -> float:
        """Return the two-sided p-value of a sign test over seeds, without those at exactly 0."""
        signs = [value > 0 for value in self.per_seed if value != 0]
        larger = max(sum(signs), len(signs) - sum(signs))
        tail = sum(math.comb(len(signs), k) for k in range(larger, len(signs) + 1))
        return float(min(1.0, 2 * tail / 2 ** len(signs)))

    def to_json(self) -> dict[str, object]:
        """Return plain data, without the draws."""
        return {
            "estimate": self.all.to_json(),
            "over_queries": self.queries.to_json(),
            "over_seeds": self.seeds.to_json(),
            "one_sided_bounds": list(self.bounds),
            "p_greater": self.p_greater,
            "p_two_sided": self.p_two_sided,
            "p_draws": self.p_draws,
            "p_sign": self.p_sign(),
            "per_seed": list(self.per_seed),
            "per_set": dict(self.per_set),
            "query_error": self.query_error,
            "seed_sd": self.seed_sd,
        }


def analyze_contrasts(
    contrasts: Mapping[str, Values], *, draws: int = DRAWS, seed: int = 17
) -> dict[str, ContrastResult]:
    """Estimate contrasts with intervals and tests.

    Seeds are drawn first, then sets (where there are at least five), then queries. Of n seeds n - 1
    are drawn, which makes the variance right, and their deviations are widened by the ratio of
    Student's quantile to the normal one, since few seeds say little about how much seeds differ;
    sets likewise. With one seed nothing is known of that, and the interval holds for this seed
    only. Raises BadInput if contrasts differ in sets or queries, or one has other numbers of seeds
    in its sets.
    """
    seeds = {name: _seed_count(name, values) for name, values in contrasts.items()}
    sizes = [{s: each.shape[1] for s, each in values.items()} for values in contrasts.values()]
    if any(other != sizes[0] for other in sizes):
        raise BadInput("contrasts can only be estimated together on the same sets and queries")
    sets = sizes[0] if sizes else {}
    rng = np.random.default_rng(seed)
    sampled, flipped, means, errors = {}, np.zeros((draws, len(seeds))), {}, {}
    for each, queries in sets.items():
        by_seed = np.vstack([values[each] for values in contrasts.values()]).T
        over_seeds = np.column_stack([values[each].mean(axis=0) for values in contrasts.values()])
        sampled[each] = _resampled(by_seed, draws, rng)
        flipped += _flipped(over_seeds, draws, rng)
        means[each] = by_seed.mean(axis=0)
        errors[each] = over_seeds.std(axis=0, ddof=1 if queries > 1 else 0) ** 2 / queries
    weights = {count: _seed_weights(count, draws, rng) for count in sorted(set(seeds.values()))}
    set_weights = _set_weights(len(sets), draws, rng)
    result, end = {}, 0
    for number, (name, count) in enumerate(seeds.items()):
        columns, end = slice(end, end + count), end + count
        by_set = np.stack([means[each][columns] for each in sets])
        by_query = np.stack([sampled[each][:, columns] for each in sets], axis=1)
        value, per_seed = float(by_set.mean()), by_set.mean(axis=0)
        everything = np.einsum("dks,ds,dk->d", by_query, weights[count], set_weights)
        chance = flipped[:, number] / len(sets)
        low, high = np.quantile(everything, [0.05, 0.95])
        result[name] = ContrastResult(
            all=estimate(value, everything),
            queries=estimate(value, by_query.mean(axis=(1, 2))),
            seeds=estimate(value, weights[count] @ per_seed),
            bounds=(float(low), float(high)),
            p_greater=p_value(chance, value),
            p_two_sided=p_value(np.abs(chance), abs(value)),
            p_draws=float((everything <= 0).mean()),
            per_seed=tuple(float(x) for x in per_seed),
            per_set={each: float(row.mean()) for each, row in zip(sets, by_set, strict=True)},
            query_error=math.sqrt(sum(float(errors[each][number]) for each in sets)) / len(sets),
            seed_sd=float(per_seed.std(ddof=1)) if count > 1 else None,
            draws=everything,
        )
    return result


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values of one family by Holm's step-down method."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def smallest_effect(
    query_sd: float,
    queries: int,
    *,
    seed_sd: float = 0.0,
    seeds: int = 1,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """Return the smallest true difference that a comparison will probably detect, two-sided."""
    normal = NormalDist()
    error = math.sqrt(query_sd**2 / queries + seed_sd**2 / seeds)
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error


@dataclass(frozen=True)
class PowerAnalysis:
    """What would detect a difference as large as the one seen, with 80 % power at 5 %, two-sided.

    Attributes:
        queries: Times the queries, with the same seeds; None where no number of queries is enough.
        seeds: Seeds, with the same queries; None where no number of seeds is enough.
        both: Times the queries and times the seeds together; None where even a thousand seeds are
            not.
        sets: Sets like these, with as many queries each and the same seeds, where sets are drawn
            too; None where they are not, or a thousand are not enough.
    """

    queries: float | None
    seeds: int | None
    both: float | None
    sets: int | None = None


def required_sample(
    value: float,
    query_error: float,
    seed_sd: float | None,
    seeds: int,
    set_sd: float | None = None,
    sets: int = 1,
) -> PowerAnalysis | None:
    """Say what would decide a contrast that is not decided; None for a difference of exactly 0.

    Chance in training and in the choice of sets is widened as in `analyze_contrasts`; `set_sd` is
    None where sets are not drawn.
    """
    if value == 0:
        return None
    by_query, allowed = query_error**2, (abs(value) / smallest_effect(1.0, 1)) ** 2
    by_set = seed_variance(set_sd or 0.0, sets)

    def by_seed(count: int) -> float:
        return seed_variance(seed_sd or 0.0, count)

    def first(start: int, variance: Callable[[int], float]) -> int | None:
        counts = range(start, MAX_SAMPLE + 1)
        return next((count for count in counts if variance(count) <= allowed), None)

    both = first(seeds, lambda count: by_query * seeds / count + by_seed(count) + by_set)
    left = allowed - by_seed(seeds) - by_set
    more_sets = None
    if set_sd is not None:
        fixed = by_seed(seeds)
        more_sets = first(
            sets, lambda count: by_query * sets / count + fixed + seed_variance(set_sd, count)
        )
    return PowerAnalysis(
        queries=max(1.0, by_query / left) if left > 0 else None,
        seeds=first(seeds, lambda count: by_query + by_seed(count) + by_set),
        both=None if both is None else both / seeds,
        sets=more_sets,
    )


def seed_variance(seed_sd: float, seeds: int) -> float:
    """Return the variance of a mean over seeds, or over sets, widened for few of them.

    One seed says nothing, and nothing is added for it.
    """
    return (_widening(seeds) * seed_sd) ** 2 / seeds if seeds > 1 else 0.0


def effective_queries(queries: Sequence[int]) -> float:
    """Return how many queries of a single set would be as sure as the macro mean over several."""
    return len(queries) ** 2 / sum(1 / n for n in queries)


def _resampled(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, columns) means of rows drawn with replacement."""
    n = len(values)
    # int32 draws twice as fast; scores draw int64, whose numbers are published.
    return np.concatenate(
        [draw_counts(n, some, rng, np.int32) @ values / n for some in blocks(draws, n, _CELLS)]
    )


def _flipped(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, columns) means after giving each row a random sign."""
    n, total = len(values), values.sum(axis=0)
    return np.concatenate(
        [(2.0 * (coins(n, some, rng) @ values) - total) / n for some in blocks(draws, n, _CELLS)]
    )


def _seed_count(name: str, values: Values) -> int:
    counts = {len(each) for each in values.values()}
    if len(counts) != 1:
        raise BadInput(f"{name}: every set needs the same seeds; got {sorted(counts)} of them")
    return counts.pop()


def _seed_weights(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, seeds) weights of a mean over seeds."""
    if count == 1:
        return np.ones((draws, 1))
    sampled = rng.multinomial(count - 1, np.full(count, 1 / count), draws) / (count - 1)
    return 1 / count + _widening(count) * (sampled - 1 / count)


def _set_weights(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, sets) weights of a mean over sets; drawn only where there are enough."""
    if count < RANDOM_EFFECT:
        return np.full((draws, count), 1 / count)
    return _seed_weights(count, draws, rng)


def _widening(count: int) -> float:
    return student_quantile(count - 1) / NormalDist().inv_cdf(0.975)
