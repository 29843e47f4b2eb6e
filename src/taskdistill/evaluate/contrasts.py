"""Many contrasts between trained models at once: intervals over seeds, sets and queries, randomisation tests, equivalence.

A contrast is a number for every (seed, query) of every set, such as one arm's nDCG@10 minus another's. All contrasts
share the same draws of queries, so that 10,000 draws of twenty contrasts are a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from taskdistill.errors import BadInput
from taskdistill.stats import DRAWS, RANDOM_EFFECT, Estimate, smallest_effect

Floats = NDArray[np.float64]
Values = Mapping[str, Floats]
"""Set to (seeds, queries) numbers; row k is seed k in every set."""

MOST = 1000
"""More seeds or sets than this are not asked for."""

_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class ContrastResult:
    """What is known of one contrast: the mean over sets of the mean over seeds and queries.

    Attributes:
        all: With its interval over seeds, sets (five or more) and queries: what the verdict rests on.
        queries: With the interval over queries alone, which ignores chance in training.
        seeds: With the interval over seeds alone, which ignores chance in sampling queries.
        bounds: One-sided 95 % bounds, below and above, from the draws of `all`.
        p_greater: One-sided p-value of the paired randomisation test against "not above 0".
        p_two_sided: Two-sided p-value of the same test.
        p_draws: Share of the draws of `all` that are not above 0.
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
        """Return the p-value of two one-sided tests for "less than a margin from 0" (TOST).

        Returns:
            The larger of the two one-sided p-values, from the draws.
        """
        return float(max((self.draws <= -margin).mean(), (self.draws >= margin).mean()))

    @property
    def set_sd(self) -> float | None:
        """Standard deviation of `per_set`; None where sets are so few that they are not drawn."""
        result = list(self.per_set.values())
        return float(np.std(result, ddof=1)) if len(result) >= RANDOM_EFFECT else None

    def p_sign(self) -> float:
        """Return the two-sided p-value of a sign test over seeds.

        Returns:
            The probability that as many or more seeds agree by chance; seeds at exactly 0 are left out.
        """
        signs = [value > 0 for value in self.per_seed if value != 0]
        larger = max(sum(signs), len(signs) - sum(signs))
        tail = sum(math.comb(len(signs), k) for k in range(larger, len(signs) + 1))
        return float(min(1.0, 2 * tail / 2 ** len(signs)))

    def to_json(self) -> dict[str, Any]:
        """Return plain data.

        Returns:
            The fields without the draws.
        """
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

    Seeds are drawn first, then sets (where there are at least five), then queries. Of n seeds n - 1 are drawn, which
    makes the variance right, and their deviations are widened by the ratio of Student's quantile to the normal one,
    since few seeds say little about how much seeds differ; sets likewise. With one seed nothing is known of that, and
    the interval holds for this seed only.

    Args:
        contrasts: Name to values; all have the same sets and queries, their seeds may differ in number.

    Raises:
        BadInput: If contrasts differ in sets or queries, or one has other numbers of seeds in its sets.
    """
    shapes = {name: _shape(name, values) for name, values in contrasts.items()}
    sizes = {
        name: {each: v.shape[1] for each, v in values.items()} for name, values in contrasts.items()
    }
    first = next(iter(sizes.values()), {})
    if any(other != first for other in sizes.values()):
        raise BadInput("contrasts can only be estimated together on the same sets and queries")
    rng = np.random.default_rng(seed)
    ends = np.cumsum(list(shapes.values()))
    rows = {
        name: slice(int(end) - shapes[name], int(end))
        for name, end in zip(shapes, ends, strict=True)
    }
    sampled, flipped, means, errors = {}, np.zeros((draws, len(shapes))), {}, {}
    for each, queries in first.items():
        stacked = np.vstack([values[each] for values in contrasts.values()]).T
        over_seeds = np.column_stack([values[each].mean(axis=0) for values in contrasts.values()])
        sampled[each] = _resampled(stacked, draws, rng)
        flipped += _flipped(over_seeds, draws, rng)
        means[each], errors[each] = (
            stacked.mean(axis=0),
            over_seeds.std(axis=0, ddof=1 if queries > 1 else 0) ** 2 / queries,
        )
    weights = {count: _seed_weights(count, draws, rng) for count in sorted(set(shapes.values()))}
    sets = _set_weights(len(first), draws, rng)
    result = {}
    for number, (name, part) in enumerate(rows.items()):
        query_weights = weights[shapes[name]]
        by_set = np.stack([means[each][part] for each in first])
        by_query = np.stack([sampled[each][:, part] for each in first], axis=1)
        value = float(by_set.mean())
        everything = np.einsum("dks,ds,dk->d", by_query, query_weights, sets)
        observed, chance = abs(value), flipped[:, number] / len(first)
        low, high = np.quantile(everything, [0.05, 0.95])
        per_seed = by_set.mean(axis=0)
        result[name] = ContrastResult(
            all=_estimate(value, everything),
            queries=_estimate(value, by_query.mean(axis=(1, 2))),
            seeds=_estimate(value, query_weights @ per_seed),
            bounds=(float(low), float(high)),
            p_greater=(1 + int((chance >= value - 1e-12).sum())) / (1 + draws),
            p_two_sided=(1 + int((np.abs(chance) >= observed - 1e-12).sum())) / (1 + draws),
            p_draws=float((everything <= 0).mean()),
            per_seed=tuple(float(x) for x in per_seed),
            per_set={each: float(row.mean()) for each, row in zip(first, by_set, strict=True)},
            query_error=math.sqrt(sum(float(errors[each][number]) for each in first)) / len(first),
            seed_sd=float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None,
            draws=everything,
        )
    return result


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values of one family by Holm's step-down method."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return adjusted


@dataclass(frozen=True)
class PowerAnalysis:
    """What would detect a difference as large as the one seen, with 80 % power at 5 %, two-sided.

    Attributes:
        queries: Times the queries, with the same seeds; None where no number of queries is enough.
        seeds: Seeds, with the same queries; None where no number of seeds is enough.
        both: Times the queries and times the seeds together; None where even a thousand seeds are not enough.
        sets: Sets like these, with as many queries each and the same seeds, where sets are drawn too; None where they
            are not, or a thousand are not enough.
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
    """Say what would decide a contrast that is not decided.

    Args:
        seed_sd: Its standard deviation over seeds; None is read as 0.
        set_sd: Its standard deviation over sets; None where sets are not drawn.

    Returns:
        What is needed, with chance in training and in the choice of sets widened as `find` does for as many of them; None for
        a difference of exactly 0.
    """
    if value == 0:
        return None
    by_query, requested = query_error**2, (abs(value) / smallest_effect(1.0, 1)) ** 2
    by_set = seed_variance(set_sd or 0.0, sets)

    def by_seed(count: int) -> float:
        return seed_variance(seed_sd or 0.0, count)

    def first(start: int, enough: Callable[[int], bool]) -> int | None:
        return next((count for count in range(start, MOST + 1) if enough(count)), None)

    together = first(
        seeds, lambda count: by_query * seeds / count + by_seed(count) + by_set <= requested
    )
    left = requested - by_seed(seeds) - by_set
    return PowerAnalysis(
        queries=max(1.0, by_query / left) if left > 0 else None,
        seeds=first(seeds, lambda count: by_query + by_seed(count) + by_set <= requested),
        both=None if together is None else together / seeds,
        sets=None
        if set_sd is None
        else first(
            sets,
            lambda count: (
                by_query * sets / count + by_seed(seeds) + seed_variance(set_sd, count) <= requested
            ),
        ),
    )


def seed_variance(seed_sd: float, seeds: int) -> float:
    """Return the variance of a mean over seeds, or over sets, widened for few of them.

    Args:
        seeds: Number of seeds; one seed says nothing, and nothing is added for it.

    Returns:
        The squared standard error times the squared ratio of Student's quantile to the normal one.
    """
    return (_widening(seeds) * seed_sd) ** 2 / seeds if seeds > 1 else 0.0


def effective_queries(queries: Sequence[int]) -> float:
    """Return the number of queries of a single set that would be as sure as the macro mean over several sets.

    Returns:
        Sets squared over the sum of 1 / queries.
    """
    return len(queries) ** 2 / sum(1 / n for n in queries)


def _shape(name: str, values: Values) -> int:
    counts = {len(each) for each in values.values()}
    if len(counts) != 1:
        raise BadInput(f"{name}: every set needs the same seeds; got {sorted(counts)} of them")
    return counts.pop()


def _resampled(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, columns) means of rows drawn with replacement."""
    n = len(values)
    out = np.empty((draws, values.shape[1]))
    size = max(1, _CELLS // n)
    for start in range(0, draws, size):
        some = min(size, draws - start)
        places = (
            rng.integers(0, n, (some, n), dtype=np.int32)
            + (n * np.arange(some, dtype=np.int64))[:, None]
        )
        times = np.bincount(places.ravel(), minlength=some * n).reshape(some, n)
        out[start : start + some] = (times @ values) / n
    return out


def _flipped(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, columns) means after giving each row a random sign."""
    n = len(values)
    out = np.empty((draws, values.shape[1]))
    size = max(1, _CELLS // n)
    for start in range(0, draws, size):
        some = min(size, draws - start)
        signs = np.unpackbits(rng.integers(0, 256, (some, -(-n // 8)), np.uint8), axis=1, count=n)
        out[start : start + some] = (2.0 * (signs @ values) - values.sum(axis=0)) / n
    return out


def _seed_weights(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, seeds) weights of a mean over seeds."""
    if count == 1:
        return np.ones((draws, 1))
    sampled = rng.multinomial(count - 1, np.full(count, 1 / count), draws) / (count - 1)
    return 1 / count + _widening(count) * (sampled - 1 / count)


def _set_weights(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return (draws, sets) weights of a mean over sets; they are drawn only where there are enough."""
    if count < RANDOM_EFFECT:
        return np.full((draws, count), 1 / count)
    return _seed_weights(count, draws, rng)


def _widening(count: int) -> float:
    return float(student_t.ppf(0.975, count - 1) / NormalDist().inv_cdf(0.975))


def _estimate(value: float, draws: Floats) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
