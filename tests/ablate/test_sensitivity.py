"""The claim on fewer sets: by hand, with a verdict that hangs on one set, and said where
it does.
"""

from __future__ import annotations

import numpy as np
import pytest

from taskdistill.ablate.measure import WHOLE
from taskdistill.ablate.sensitivity import on_fewer_sets, sensitivity_warning

SETS = ("retrieval/a", "retrieval/b", "retrieval/c")
SEEN = {
    name: {"texts": 100, "exact": exact, "near": 0}
    for name, exact in zip(SETS, (30, 0, 0), strict=True)
}


def units(gain: dict[str, float], seeds: int = 5, queries: int = 200):
    """DC is above D and C by a gain of its own in each set; D and C are alike."""
    rng = np.random.default_rng(3)
    base = {name: rng.uniform(0.2, 0.6, (1, queries)) for name in SETS}

    def noisy(name: str, more: float) -> np.ndarray:
        return base[name] + more + 0.01 * rng.standard_normal((seeds, queries))

    found = {arm: {WHOLE: {name: noisy(name, 0.0) for name in SETS}} for arm in ("D", "C")}
    found["DC"] = {WHOLE: {name: noisy(name, gain[name]) for name in SETS}}
    return {"A0": {WHOLE: base}, **found}


def test_a_claim_that_hangs_on_a_set_seen_in_training_is_told():
    made = units({"retrieval/a": 0.3, "retrieval/b": -0.02, "retrieval/c": -0.03})
    found = on_fewer_sets(made, SEEN, 0.01, 5)
    assert [each["left_out"] for each in found] == [[name] for name in SETS], (
        "the seen set alone is one of them and counts once"
    )
    assert [each["seen"] for each in found] == [True, False, False]
    assert [each["state"] for each in found] == ["contradicted", "supported", "supported"]
    value, low, high = found[0]["contrasts"]["DC - D"]
    by_hand = np.mean(
        [(made["DC"][WHOLE][name] - made["D"][WHOLE][name]).mean() for name in SETS[1:]]
    )
    assert value == pytest.approx(by_hand) and low < value < high < 0
    (said,) = sensitivity_warning(found, "supported")
    assert (
        "supported on all sets, but contradicted without" in said
        and "(retrieval/a)" in said
        and f"{100 * value:+.2f} points" in said
    )
    assert sensitivity_warning(found, "contradicted") == []


def test_several_seen_sets_go_together_and_a_last_set_stays():
    made = units(dict.fromkeys(SETS, 0.1))
    both = {**SEEN, "retrieval/b": {"texts": 100, "exact": 0, "near": 2}}
    found = on_fewer_sets(made, both, 0.01, 5)
    assert [each["left_out"] for each in found] == [
        ["retrieval/a", "retrieval/b"],
        *([name] for name in SETS),
    ]
    assert (
        all(each["state"] == "supported" for each in found)
        and sensitivity_warning(found, "supported") == []
    )
    every = {name: {"texts": 10, "exact": 5, "near": 0} for name in SETS}
    assert [each["left_out"] for each in on_fewer_sets(made, every, 0.01, 5)] == [
        [name] for name in SETS
    ]
    alone = {
        arm: {WHOLE: {"retrieval/a": by_set[WHOLE]["retrieval/a"]}} for arm, by_set in made.items()
    }
    assert on_fewer_sets(alone, SEEN, 0.01, 5) == []
