"""From findings to a verdict: supported, contradicted or undecided, what that rests on, and what
would decide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from taskdistill.stats.contrasts import ContrastResult, PowerAnalysis, required_sample

ALPHA = 0.05

State = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to the claim that combining beats both single regimes.

    Attributes:
        relevant: Whether the differences are relevant in practice: `yes`, `no` or `open`.
        p: Of the intersection-union test: the larger p-value of the two one-sided comparisons.
        deciding: For each comparison that is not decided, what would decide it.
    """

    state: State
    why: tuple[str, ...]
    relevant: Literal["yes", "no", "open"]
    p: float
    deciding: Mapping[str, PowerAnalysis | None]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        result = asdict(self)
        result["deciding"] = {
            name: None if each is None else asdict(each) for name, each in self.deciding.items()
        }
        return result


def judge(
    findings: Mapping[str, ContrastResult], singles: Sequence[str], margin: float, seeds: int
) -> Verdict:
    """Judge "combined beats both" as an intersection-union test: both comparisons must hold, each
    one-sided at 5 %.

    A comparison holds if the randomisation test over queries and the draws over seeds, sets and
    queries both say so; it is refuted if the whole one-sided interval lies at or below 0. The claim
    is supported if both hold, contradicted if one is refuted, and otherwise undecided. A difference
    proved to be within the margin (two one-sided tests) is called irrelevant in practice, whatever
    the state. `margin`: smallest relevant difference, 0 to 1.
    """
    chosen = {name: findings[name] for name in singles}
    p = max(max(each.p_greater, each.p_draws) for each in chosen.values())
    refuted = [name for name, each in chosen.items() if each.bounds[1] <= 0]
    open_ = [
        name
        for name, each in chosen.items()
        if max(each.p_greater, each.p_draws) > ALPHA and name not in refuted
    ]
    state: State = "contradicted" if refuted else "undecided" if open_ else "supported"
    why = [_sentence(name, each, margin) for name, each in chosen.items()]
    if seeds == 1:
        why.append("One seed only: chance in training is not in these intervals.")
    equal = [name for name, each in chosen.items() if each.p_equivalent(margin) <= ALPHA]
    larger = all(each.bounds[0] >= margin for each in chosen.values())
    relevant: Literal["yes", "no", "open"] = (
        "no" if equal or refuted else "yes" if larger else "open"
    )
    deciding = {name: _needed(chosen[name], seeds) for name in open_}
    return Verdict(state=state, why=tuple(why), relevant=relevant, p=p, deciding=deciding)


def _needed(result: ContrastResult, seeds: int) -> PowerAnalysis | None:
    return required_sample(
        result.all.value,
        result.query_error,
        result.seed_sd,
        seeds,
        result.set_sd,
        len(result.per_set),
    )


def _sentence(name: str, result: ContrastResult, margin: float) -> str:
    low, high = 100 * result.all.low, 100 * result.all.high
    message = (
        f"{name}: {100 * result.all.value:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f},"
        f" one-sided p {max(result.p_greater, result.p_draws):.4f}"
    )
    if result.p_equivalent(margin) <= ALPHA:
        return (
            f"{message}; no practically relevant difference (within {100 * margin:.1f} points, p"
            f" {result.p_equivalent(margin):.4f})."
        )
    if result.bounds[1] <= 0:
        return f"{message}; the combination is not better."
    if result.bounds[0] > 0 and result.p_greater <= ALPHA:
        return f"{message}; the combination is better."
    return f"{message}; not decided."


def deciding_sentence(name: str, power: PowerAnalysis | None) -> str:
    """Say in words what would decide a comparison."""
    if power is None:
        return f"{name}: the difference seen is 0, so nothing would show it."
    ways = []
    if power.queries is not None:
        ways.append(f"{power.queries:.1f} times the queries at these seeds")
    if power.seeds is not None:
        ways.append(f"{power.seeds} seeds at these queries")
    if power.both is not None:
        ways.append(f"{power.both:.1f} times both")
    if power.sets is not None:
        ways.append(f"{power.sets} test sets that differ as much as these do")
    if not ways:
        return (
            f"{name}: a difference as small as the one seen would not be shown by a thousand seeds"
            " or sets."
        )
    message = (
        f"{name}: a difference as large as the one seen would probably be shown by"
        f" {', or by '.join(ways)}"
    )
    return (
        f"{message}; more queries or seeds alone would not show it."
        if len(ways) == 1 and power.sets is not None
        else f"{message}."
    )
