"""Which differences the experiment asks about, and their values for every seed and query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.ablate.measure import BINARY, WHOLE
from taskdistill.errors import BadInput
from taskdistill.stats.contrasts import Values

Units = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float64]]]]
"""Arm to variant to set to (seeds, queries) nDCG@10."""

CLAIM, INTERACTION, ORDER, GOR, BITS, LENGTHS, CONTROLS, COSTS = (
    "claim",
    "interaction",
    "order of phases",
    "spread-out regulariser",
    "binary vectors",
    "truncated vectors",
    "controls",
    "cost",
)


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms' scores.

    Attributes:
        family: Contrasts of one family are corrected together; those of the claim are not
            corrected.
        weights: (arm, variant of the vectors) to weight.
    """

    name: str
    family: str
    asks: str
    weights: Mapping[tuple[str, str], float]


def contrasts(arms: Sequence[str], dims: Sequence[str]) -> list[Contrast]:
    """List the contrasts that some arms allow.

    `dims`: names of the truncated variants, such as `dim-64`.
    """
    return [each for each in _listed(dims) if all(arm in arms for arm, _ in each.weights)]


def _listed(dims: Sequence[str]) -> Iterator[Contrast]:
    yield _minus("DC", "D", CLAIM, "Is combining better than distillation alone?")
    yield _minus("DC", "C", CLAIM, "Is combining better than contrast alone?")
    both = {("DC", WHOLE): 1.0, ("D", WHOLE): -1.0, ("C", WHOLE): -1.0, ("A0", WHOLE): 1.0}
    yield Contrast(
        "DC - D - C + A0", INTERACTION, "Do the two help each other, beyond adding up?", both
    )
    yield _minus(
        "D->DC", "D->D", ORDER, "After distillation, does combining beat more distillation?"
    )
    yield _minus("D->DC", "D->C", ORDER, "After distillation, does combining beat contrast?")
    yield _minus("D->C", "D->D", ORDER, "After distillation, does contrast beat more distillation?")
    yield _minus("D->DC", "DC", ORDER, "Is the paper's order better than combining all the way?")
    yield _minus("D->D", "D", ORDER, "Does a second start of the schedule matter by itself?")
    for arm in ("D", "C", "DC"):
        yield _minus(f"{arm}+gor", arm, GOR, f"Does the regulariser help {arm}?")
    yield _minus(
        "DC+gor", "C+gor", GOR, "With the regulariser on, does distillation still add to contrast?"
    )
    yield _minus(
        "DC+gor", "D+gor", GOR, "With the regulariser on, does contrast still add to distillation?"
    )
    yield _minus(
        "C+gor", "DC", GOR, "Is contrast with the regulariser as good as combining without it?"
    )
    for arm in ("D", "C", "DC"):
        yield Contrast(f"{arm}: binary", BITS, f"What do sign bits cost {arm}?", _loss(arm, BINARY))
    for arm in ("D", "C", "DC"):
        weights = {**_loss(f"{arm}+gor", BINARY), **_loss(arm, BINARY, -1.0)}
        yield Contrast(
            f"regulariser on binary, {arm}",
            BITS,
            f"Does the regulariser change what sign bits cost {arm}?",
            weights,
        )
    for dim in dims:
        size = dim.removeprefix("dim-")
        yield Contrast(
            f"DC: {size}",
            LENGTHS,
            f"What does truncation to {size} dimensions cost DC?",
            _loss("DC", dim),
        )
        weights = {**_loss("DC", dim), **_loss("DC-mrl", dim, -1.0)}
        yield Contrast(
            f"Matryoshka on {size}",
            LENGTHS,
            f"Does Matryoshka change what truncation to {size} costs?",
            weights,
        )
    yield _minus("DC", "DC-mrl", LENGTHS, "What does Matryoshka do to whole vectors?")
    yield _minus(
        "D-shuffled", "A0", CONTROLS, "Negative control: permuted targets must not beat the base."
    )
    for arm in ("D", "C", "DC"):
        yield _minus(arm, "A0", CONTROLS, f"Does {arm} learn anything?")
    yield _minus("C-large", "C", COSTS, "Does a larger batch help contrast?")
    for arm, what in (
        ("C-large", "a larger batch"),
        ("C-flops", "more steps (floating-point work)"),
        ("C-seconds", "more steps (CPU-seconds)"),
    ):
        yield _minus("DC", arm, COSTS, f"Is combining better than contrast with {what}?")
    for arm in ("C-flops", "C-seconds"):
        yield _minus(arm, "C", COSTS, "Do more steps help contrast?")


def _minus(a: str, b: str, family: str, asks: str) -> Contrast:
    return Contrast(f"{a} - {b}", family, asks, {(a, WHOLE): 1.0, (b, WHOLE): -1.0})


def _loss(arm: str, variant: str, sign: float = 1.0) -> dict[tuple[str, str], float]:
    return {(arm, variant): sign, (arm, WHOLE): -sign}


def values(units: Units, weights: Mapping[tuple[str, str], float]) -> Values:
    """Compute a contrast for every seed and query, over the seeds that its arms share.

    `units`: scores; the untrained base has one row, which counts for every seed. `weights`: (arm,
    variant) to weight. Returns set to (seeds, queries). Raises BadInput if an arm was not run.
    """
    for arm, variant in weights:
        if variant not in units.get(arm, {}):
            raise BadInput(f"there are no {variant} scores of arm {arm!r}; run it too")
    counts = [
        len(next(iter(units[arm][variant].values()))) for arm, variant in weights if arm != "A0"
    ]
    seeds = min(counts, default=1)
    sets = next(iter(units[next(iter(weights))[0]].values()))
    return {
        each: np.asarray(
            sum(
                weight * _rows(units[arm][variant][each], seeds)
                for (arm, variant), weight in weights.items()
            )
        )
        for each in sets
    }


def _rows(scores: NDArray[np.float64], seeds: int) -> NDArray[np.float64]:
    return np.repeat(scores, seeds, axis=0) if len(scores) == 1 else scores[:seeds]
