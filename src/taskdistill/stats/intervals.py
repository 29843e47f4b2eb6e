"""How sure a score is, and the difference of two: bootstrap intervals and a randomisation test.

All draws come from seeded generators, so the same data give the same intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from taskdistill.errors import BadInput

Floats = NDArray[np.float64]
Units = Mapping[str, Floats]
"""Language to (n,) numbers whose mean is the score, or (n, 2) ranks whose correlation is."""

DRAWS = 10_000

# Numbers drawn at once: bounds the memory of a block of draws to some tens of megabytes.
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
    """How far one model is ahead of another on one set, and how probable that is by chance."""

    estimate: Estimate
    p: float


def interval(units: Units, *, draws: int = DRAWS, seed: int = 17) -> Estimate:
    """Return a score with its bootstrap interval: queries or pairs are drawn within each language.

    For STS the ranks stay those of the whole set.
    """
    sampled = np.concatenate([each[:, 0] for each in _bootstrapped([units], draws, seed)])
    return estimate(_score(units), sampled)


def paired_difference(
    first: Units, second: Units, *, draws: int = DRAWS, seed: int = 17
) -> PairedDifference:
    """Compare two models on the same queries or pairs, in the same order.

    Returns the difference of scores with its paired bootstrap interval, and the two-sided p-value
    of a randomisation test that exchanges the models' results at random, query by query. Raises
    BadInput if the two were not scored on the same queries.
    """
    if {k: len(v) for k, v in first.items()} != {k: len(v) for k, v in second.items()}:
        raise BadInput(
            "two models can only be compared on the same queries; score both on the same set"
        )
    sampled = np.concatenate(
        [each[:, 0] - each[:, 1] for each in _bootstrapped([first, second], draws, seed)]
    )
    observed = _score(first) - _score(second)
    exchanged = np.concatenate(list(_exchanged(first, second, draws, seed)))
    return PairedDifference(estimate(observed, sampled), p_value(np.abs(exchanged), abs(observed)))


def mean_interval(values: Floats, *, draws: int = 2000, seed: int = 17) -> Estimate:
    """Return the mean of (q,) numbers with its bootstrap interval; one seed gives one resample."""
    sample = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    return estimate(float(values.mean()), values[sample].mean(axis=1))


def share_interval(
    part: Floats, reference: Floats, *, draws: int = 2000, seed: int = 17
) -> Estimate:
    """Return one model's mean as a share of another's on the same (q,) queries; 0 of nothing."""
    sample = np.random.default_rng(seed).integers(0, len(part), (draws, len(part)))
    value = _share(part.mean(keepdims=True), reference.mean(keepdims=True))[0]
    return estimate(value, _share(part[sample].mean(axis=1), reference[sample].mean(axis=1)))


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of a mean over seeds; None for one seed."""
    if len(values) < 2:
        return None
    mean, count = float(np.mean(values)), len(values)
    half = float(student_quantile(count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean - half, mean + half


def _score(units: Units) -> float:
    means = (_statistic(_features(each).mean(axis=0)[None])[0] for each in units.values())
    return float(np.mean(list(means)))


def _features(units: Floats) -> Floats:
    """Return per row what a score is a function of the means of: the number, or five moments."""
    if units.ndim == 1:
        return units[:, None]
    x, y = (units - units.mean(axis=0)).T
    return np.column_stack([x, y, x * x, y * y, x * y])


def _statistic(means: Floats) -> Floats:
    """Return the scores that (draws, features) means stand for; 0 where a side is constant."""
    if means.shape[1] == 1:
        return means[:, 0]
    x, y, xx, yy, xy = means.T
    scale = np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0))
    result: Floats = np.divide(xy - x * y, scale, out=np.zeros_like(xy), where=scale > 1e-12)
    return result


def _bootstrapped(models: list[Units], draws: int, seed: int) -> Iterator[Floats]:
    """Yield (some draws, models) scores on samples that all models share."""
    rng = np.random.default_rng(seed)
    features = [{language: _features(each) for language, each in units.items()} for units in models]
    total = sum(len(each) for each in models[0].values())
    for some in blocks(draws, total, _CELLS):
        scores = np.zeros((some, len(models)))
        for language, units in models[0].items():
            shares = draw_counts(len(units), some, rng, np.int64) / len(units)
            for m, of in enumerate(features):
                scores[:, m] += _statistic(shares @ of[language])
        yield scores / len(models[0])


def _exchanged(first: Units, second: Units, draws: int, seed: int) -> Iterator[Floats]:
    """Yield differences after exchanging the two models' results of random queries."""
    rng = np.random.default_rng(seed + 1)
    for some in blocks(draws, sum(len(each) for each in first.values()), _CELLS):
        total = np.zeros(some)
        for language in first:
            features, other = _features(first[language]), _features(second[language])
            n = len(features)
            moved = coins(n, some, rng).astype(np.float64) @ ((other - features) / n)
            after = _statistic(features.mean(axis=0) + moved)
            total += after - _statistic(other.mean(axis=0) - moved)
        yield total / len(first)


def draw_counts(
    n: int, draws: int, rng: np.random.Generator, dtype: DTypeLike
) -> NDArray[np.int64]:
    """Return (draws, n) how often each of n things is drawn, with one bincount for all draws."""
    places = rng.integers(0, n, (draws, n), dtype=dtype) + (n * np.arange(draws))[:, None]
    return np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n)


def coins(n: int, draws: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return (draws, n) random bits, eight of a drawn byte."""
    return np.unpackbits(rng.integers(0, 256, (draws, -(-n // 8)), np.uint8), axis=1, count=n)


def student_quantile(freedom: int) -> float:
    """Return the quantile of a two-sided 95 % interval."""
    from scipy.stats import t as student_t

    return float(student_t.ppf(0.975, freedom))


def p_value(chance: Floats, observed: float) -> float:
    """Return the share of random results that are at least as large as the observed one."""
    # The observed arrangement is one of the random ones, so p is never 0; ties count up to
    # rounding.
    return (1 + int((chance >= observed - 1e-12).sum())) / (1 + len(chance))


def _share(part: Floats, reference: Floats) -> Floats:
    return np.divide(part, reference, out=np.zeros_like(part), where=reference > 0)


def blocks(draws: int, n: int, cells: int) -> Iterator[int]:
    """Yield numbers of draws of n things each, at most so many cells at a time."""
    size = max(1, cells // max(n, 1))
    for start in range(0, draws, size):
        yield min(size, draws - start)


def estimate(value: float, draws: Floats) -> Estimate:
    """Put a value and the percentile interval of its draws together."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))
