"""How sure a score or a difference is: paired bootstrap, randomisation test, hierarchical bootstrap, smallest effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput

Units = Mapping[str, NDArray[np.float64]]
"""Language to (n,) numbers whose mean is the score, or (n, 2) ranks whose correlation is; see `protocols.Score`."""

DRAWS = 10_000
RANDOM_EFFECT = 5
"""From this many sets on, sets are drawn too; fewer say nothing about sets in general."""

_CELLS = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        """Return plain data."""
        return [self.value, self.low, self.high]


@dataclass(frozen=True)
class PairedDifference:
    """How far one model is ahead of another on one set, and how probable that is by chance alone."""

    estimate: Estimate
    p: float


def interval(units: Units, *, draws: int = DRAWS, seed: int = 17) -> Estimate:
    """Return a score with its bootstrap interval: queries or pairs are drawn with replacement within each language.

    Returns:
        Score and 95 % percentile interval. For STS the ranks stay those of the whole set.
    """
    result = np.concatenate([each[:, 0] for each in _bootstrapped([units], draws, seed)])
    return _estimate(_score(units), result)


def paired_difference(
    ours: Units, theirs: Units, *, draws: int = DRAWS, seed: int = 17
) -> PairedDifference:
    """Compare two models on the same queries or pairs.

    Args:
        theirs: Units of the other, in the same order.

    Returns:
        Difference of scores with its paired bootstrap interval, and the two-sided p-value of a randomisation test
        that exchanges the models' results at random, query by query.

    Raises:
        BadInput: If the two were not scored on the same queries.
    """
    if {k: len(v) for k, v in ours.items()} != {k: len(v) for k, v in theirs.items()}:
        raise BadInput(
            "two models can only be compared on the same queries; score both on the same set"
        )
    result = np.concatenate(
        [each[:, 0] - each[:, 1] for each in _bootstrapped([ours, theirs], draws, seed)]
    )
    observed = _score(ours) - _score(theirs)
    exchanged = np.concatenate(list(_exchanged(ours, theirs, draws, seed)))
    p = (1 + int((np.abs(exchanged) >= abs(observed) - 1e-12).sum())) / (1 + draws)
    return PairedDifference(_estimate(observed, result), p)


def hierarchical(
    differences: Mapping[str, NDArray[np.float64]], *, draws: int = DRAWS, seed: int = 17
) -> dict[str, Estimate]:
    """Return the mean of per-query differences over sets, with intervals for what each source of chance does.

    Seeds are drawn first, then sets (only where there are at least five), then queries within each set. Within one
    draw a set that comes twice brings the same queries twice, which makes intervals a little wide rather than narrow.

    Args:
        differences: Set to (seeds, queries) differences between two arms, row k trained with seed k in every set.

    Returns:
        `all`, `queries` (only queries drawn) and `seeds` (only seeds drawn): the mean over sets of the mean over
        seeds and queries, with 95 % percentile intervals.

    Raises:
        BadInput: If the sets do not have the same number of seeds.
    """
    seeds = {len(each) for each in differences.values()}
    if len(seeds) != 1:
        raise BadInput(f"every set needs the same seeds; got {sorted(seeds)} of them")
    value = float(np.mean([each.mean() for each in differences.values()]))
    chosen = {"all": (True, True), "queries": (False, True), "seeds": (True, False)}
    return {
        name: _estimate(value, _hierarchical_draws(differences, by_seed, by_query, draws, seed))
        for name, (by_seed, by_query) in chosen.items()
    }


def smallest_effect(
    query_sd: float,
    queries: int,
    *,
    seed_sd: float = 0.0,
    seeds: int = 1,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """Return the smallest true difference that a comparison will probably detect.

    Returns:
        The difference, in the unit of the standard deviations.
    """
    normal = NormalDist()
    error = math.sqrt(query_sd**2 / queries + seed_sd**2 / seeds)
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error


def queries_needed(
    query_sd: float, effect: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return how many queries detect a difference.

    Args:
        effect: The difference, in the same unit.
    """
    return math.ceil((smallest_effect(query_sd, 1, power=power, alpha=alpha) / effect) ** 2)


def _score(units: Units) -> float:
    return float(
        np.mean([_statistic(_features(each).mean(axis=0)[None])[0] for each in units.values()])
    )


def _features(units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return per row what a score is a function of the means of: the number itself, or the five moments of a correlation."""
    if units.ndim == 1:
        return units[:, None]
    x, y = (units - units.mean(axis=0)).T
    return np.column_stack([x, y, x * x, y * y, x * y])


def _statistic(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores that (draws, features) means stand for; a correlation is 0 where a side is constant."""
    if means.shape[1] == 1:
        return means[:, 0]
    x, y, xx, yy, xy = means.T
    scale = np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0))
    result: NDArray[np.float64] = np.divide(
        xy - x * y, scale, out=np.zeros_like(xy), where=scale > 1e-12
    )
    return result


def _bootstrapped(models: list[Units], draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield (some draws, models) scores on samples that all models share."""
    rng = np.random.default_rng(seed)
    features = [{language: _features(each) for language, each in units.items()} for units in models]
    for some in _chunks(draws, sum(len(each) for each in models[0].values())):
        scores = np.zeros((some, len(models)))
        for language in models[0]:
            n = len(models[0][language])
            places = rng.integers(0, n, (some, n)) + n * np.arange(some)[:, None]
            times = np.bincount(places.ravel(), minlength=some * n).reshape(some, n) / n
            for m, of in enumerate(features):
                scores[:, m] += _statistic(times @ of[language])
        yield scores / len(models[0])


def _exchanged(first: Units, second: Units, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield differences after exchanging the two models' results of random queries."""
    rng = np.random.default_rng(seed + 1)
    for some in _chunks(draws, sum(len(each) for each in first.values())):
        total = np.zeros(some)
        for language in first:
            features, other = _features(first[language]), _features(second[language])
            n = len(features)
            swapped = np.unpackbits(
                rng.integers(0, 256, (some, -(-n // 8)), np.uint8), axis=1, count=n
            )
            moved = swapped.astype(np.float64) @ ((other - features) / n)
            total += _statistic(features.mean(axis=0) + moved) - _statistic(
                other.mean(axis=0) - moved
            )
        yield total / len(first)


def _hierarchical_draws(
    differences: Mapping[str, NDArray[np.float64]],
    by_seed: bool,
    by_query: bool,
    draws: int,
    seed: int,
) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    sets = list(differences.values())
    seeds = len(sets[0])
    weights = (
        rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
        if by_seed
        else np.full((draws, seeds), 1 / seeds)
    )
    values = np.empty((draws, len(sets)))
    for s, each in enumerate(sets):
        done = 0
        for some in _chunks(draws, each.shape[1]):
            rows = weights[done : done + some] @ each
            if by_query:
                rows = np.take_along_axis(rows, rng.integers(0, each.shape[1], rows.shape), 1)
            values[done : done + some, s] = rows.mean(axis=1)
            done += some
    if by_seed and by_query and len(sets) >= RANDOM_EFFECT:
        values = np.take_along_axis(values, rng.integers(0, len(sets), values.shape), 1)
    means: NDArray[np.float64] = values.mean(axis=1)
    return means


def _chunks(draws: int, n: int) -> Iterator[int]:
    size = max(1, _CELLS // max(n, 1))
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))
