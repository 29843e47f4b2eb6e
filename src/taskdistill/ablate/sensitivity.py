"""Whether the claim hangs on a few sets: judged again without each of them, and without those whose
texts are in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskdistill.ablate.contrasts import CLAIM, Units, contrasts, values
from taskdistill.ablate.verdict import judge
from taskdistill.stats.contrasts import analyze_contrasts

SEEN = 0.01
"""A set of which this share of texts is in training, exactly or by 13 words, is left out together
with the others like it.
"""

DRAWS = 2_000
"""Bootstrap samples and sign flips of each choice of sets."""


def on_fewer_sets(
    units: Units, seen: Mapping[str, Mapping[str, int]], margin: float, seeds: int
) -> list[dict[str, Any]]:
    """Judge the claim again on some of its sets; exploratory, whatever comes out.

    `seen`: set to how many of its `texts` are in training (`exact`, `near`). `margin`: smallest
    relevant difference, 0 to 1. Returns for each choice `left_out`, `seen` (whether it leaves out
    what was seen in training), `state` and, by name of a comparison, its estimate; the seen sets
    come first. Empty where no set would be left.
    """
    request = {
        each.name: values(units, each.weights)
        for each in contrasts(list(units), ())
        if each.family == CLAIM
    }
    names = list(next(iter(request.values())))
    known = [name for name in names if _share(seen.get(name)) >= SEEN]
    result = []
    for left_out in dict.fromkeys([tuple(known), *((name,) for name in names)]):
        if not left_out or len(left_out) == len(names):
            continue
        some = {
            name: {each: by_set[each] for each in names if each not in left_out}
            for name, by_set in request.items()
        }
        findings = analyze_contrasts(some, draws=DRAWS)
        result.append(
            {
                "left_out": list(left_out),
                "seen": list(left_out) == known,
                "state": judge(findings, list(request), margin, seeds).state,
                "contrasts": {name: finding.all.to_json() for name, finding in findings.items()},
            }
        )
    return result


def _share(counts: Mapping[str, int] | None) -> float:
    return 0.0 if counts is None else (counts["exact"] + counts["near"]) / counts["texts"]


def sensitivity_warning(fewer: Sequence[Mapping[str, Any]], state: str) -> list[str]:
    """Say if the claim's verdict is another one without the sets whose texts are in training."""
    return [
        f"The claim is {state} on all sets, but {each['state']} without those whose texts are in"
        f" training ({', '.join(each['left_out'])}): "
        + "; ".join(
            f"{name} {100 * value:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
            for name, (value, low, high) in each["contrasts"].items()
        )
        + "."
        for each in fewer
        if each["seen"] and each["state"] != state
    ]
