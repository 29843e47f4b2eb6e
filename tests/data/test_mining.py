"""Hard negatives by hand-made vectors: windows, margins for negative cosines too, and what is never
a negative of what.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.data import mining
from taskdistill.data.mining import (
    MiningSettings,
    build_relations,
    mine_block,
    query_blocks,
    score_ceilings,
    top_k,
    with_negatives,
)
from taskdistill.data.rows import Pair
from taskdistill.errors import BadInput


class Held:
    """Vectors in an array, that remembers the largest block it was asked for."""

    def __init__(self, rows) -> None:
        self.rows, self.most = np.asarray(rows, np.float32), 0

    def take(self, numbers: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(numbers))
        return self.rows[numbers]


def at(*cosines: float) -> np.ndarray:
    """Unit vectors in the plane, each at a cosine to the query (1, 0)."""
    return np.array([[c, (1 - c * c) ** 0.5] for c in cosines], np.float32)


def mined(
    rows: list[Pair], others: list[str], cosines: list[float], **settings
) -> tuple[list[list[str]], dict[str, int]]:
    """Mine with every query at (1, 0) and the candidates at given cosines, in the order of first
    sight; no margin unless one is given.
    """
    settings = {"relative_margin": None} | settings
    relations = build_relations(rows, others)
    assert len(relations.candidates) == len(cosines), relations.candidates
    queries, found = Held(np.tile([1.0, 0.0], (len(relations.queries), 1))), [[] for _ in rows]
    reasons: dict[str, int] = {}
    for block in query_blocks(len(relations.queries)):
        made = mine_block(relations, queries, Held(at(*cosines)), block, MiningSettings(**settings))
        reasons |= made.reasons
        ends = np.cumsum(made.counts)
        for row, end, count in zip(made.rows, ends, made.counts, strict=True):
            found[row] = [relations.candidates[n] for n in made.negatives[end - count : end]]
    return found, reasons


def test_the_hardest_come_first_and_the_window_counts_what_may_be_a_negative():
    rows = [Pair("q", "p")]
    assert mined(rows, ["a", "b", "c", "d"], [0.9, 0.5, 0.8, 0.95, 0.7], negatives=3)[0] == [
        ["c", "b", "d"]
    ]
    assert mined(
        rows, ["a", "b", "c", "d"], [0.9, 0.5, 0.8, 0.95, 0.7], negatives=2, first=2, last=3
    )[0] == [["b", "d"]]
    assert mined(
        rows, ["a", "b", "c", "d"], [0.9, 0.5, 0.8, 0.95, 0.7], negatives=2, first=4, last=9
    )[0] == [["a"]]


def test_margins_lie_below_the_positive_also_where_cosines_are_negative():
    assert score_ceilings(0.8, MiningSettings(margin=0.1, relative_margin=0.25)) == pytest.approx(
        {"margin": 0.7, "relative margin": 0.6}
    )
    assert score_ceilings(-0.2, MiningSettings(relative_margin=0.5)) == pytest.approx(
        {"relative margin": -0.3}
    )  # not -0.1, above the positive
    rows, others = [Pair("q", "p")], ["a", "b", "c", "d"]
    found, reasons = mined(rows, others, [0.8, 0.79, 0.71, 0.65, 0.5], negatives=4, margin=0.1)
    assert found == [["c", "d"]] and reasons == {"margin": 2}
    found, reasons = mined(
        rows, others, [-0.2, -0.1, -0.25, -0.29, -0.31], negatives=4, relative_margin=0.5
    )
    assert found == [["d"]] and reasons == {"relative margin": 3}
    found, reasons = mined(
        rows, others, [0.8, 0.79, 0.71, 0.65, 0.1], negatives=4, max_score=0.7, min_score=0.2
    )
    assert found == [["c"]] and reasons == {"max score": 2, "min score": 1}


def test_what_scores_above_95_percent_of_the_positive_is_no_negative_unless_that_is_asked_for():
    rows, others, cosines = [Pair("q", "p")], ["a", "b", "c", "d"], [0.8, 0.81, 0.77, 0.75, 0.5]
    usual = {"relative_margin": MiningSettings().relative_margin}
    found, reasons = mined(rows, others, cosines, negatives=4, **usual)
    assert found == [["c", "d"]] and reasons == {"relative margin": 2}
    assert mined(rows, others, [-0.2, -0.205, -0.22, 0.1, -0.3], negatives=4, **usual)[0] == [
        ["b", "d"]
    ]  # the limit is -0.21
    assert mined(rows, others, cosines, negatives=4)[0] == [["a", "b", "c", "d"]]


@given(st.floats(-1, 1, width=32), st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12))
def test_no_negative_lies_above_its_limit_whatever_the_signs(positive, cosines):
    found, reasons = mined(
        [Pair("q", "p")],
        [f"n{i}" for i in range(len(cosines))],
        [positive, *cosines],
        negatives=12,
        relative_margin=0.05,
    )
    true = at(positive, *cosines)[:, 0]
    limit = true[0] - 0.05 * abs(true[0])
    kept = [true[1 + int(name[1:])] for name in found[0]]
    assert all(cosine <= limit + 1e-6 for cosine in kept) and len(kept) + reasons[
        "relative margin"
    ] == len(cosines)


def test_siblings_known_positives_and_duplicates_are_never_negatives():
    rows = [
        Pair("q", "p1"),
        Pair("Q ", "p2"),  # the same query: p1 and p2 are siblings
        Pair("r", "p2"),  # shares p2 with q, so that r's other positive may answer q as well
        Pair("r", "p3"),
        Pair("s", "P1!"),  # the same text as p1
        Pair("t", "far", ("given",)),
    ]
    relations = build_relations(rows, ["q.", "near", "NEAR ", "given"])
    assert relations.queries == ["q", "r", "s", "t"] and relations.query_of.tolist() == [
        0,
        0,
        1,
        1,
        2,
        3,
    ]
    assert (
        relations.candidates == ["p1", "p2", "p3", "far", "given", "q.", "near"]
        and relations.merged == 4
    )
    excluded = [[relations.candidates[n] for n in row] for row in relations.excluded]
    assert excluded == [["p1", "p2", "p3", "q."], ["p1", "p2", "p3"], ["p1", "p2"], ["far"]]
    assert relations.siblings == 2 + 2 + 1
    found, _ = mined(
        rows,
        ["q.", "near", "NEAR ", "given"],
        [0.99, 0.98, 0.97, 0.1, 0.5, 0.96, 0.95],
        negatives=2,
    )
    assert found == [["near", "given"]] * 2 + [["q.", "near"]] * 2 + [
        ["p3", "q."],
        ["p1"],
    ]  # of t's two, one was given


def test_a_row_s_own_negatives_stay_in_front_and_are_not_taken_twice():
    row = Pair("q", "p", ("a", "b"), "en")
    found, _ = mined([row], ["c"], [0.9, 0.8, 0.7, 0.6], negatives=3)
    assert found == [["c"]]
    assert with_negatives(row, found[0]) == {
        "query": "q",
        "positive": "p",
        "negatives": ["a", "b", "c"],
        "lang": "en",
    }
    assert mined([row], ["c"], [0.9, 0.8, 0.7, 0.6], negatives=2)[0] == [[]]
    assert with_negatives(Pair("q", "p"), []) == {"query": "q", "positive": "p"}


def test_a_random_pick_is_the_seed_s_and_stays_in_the_window():
    others, cosines = [f"n{i}" for i in range(50)], [0.9, *np.linspace(0.8, 0.1, 50).tolist()]
    picks = [
        mined(
            [Pair("q", "p")],
            others,
            cosines,
            negatives=5,
            first=11,
            last=40,
            pick="random",
            seed=seed,
        )[0][0]
        for seed in (1, 1, 2)
    ]
    assert picks[0] == picks[1] != picks[2] and len(set(picks[0])) == 5
    assert set(picks[0]) <= {f"n{i}" for i in range(10, 40)} and picks[0] == sorted(
        picks[0], key=lambda name: int(name[1:])
    )


@pytest.mark.parametrize("size", [7, 64, 10_000])
def test_blocked_search_is_the_plain_search(size, monkeypatch):
    monkeypatch.setattr(mining, "CANDIDATES", size)
    rng = np.random.default_rng(0)
    queries, candidates = (rng.normal(size=(n, 8)).astype(np.float32) for n in (20, 300))
    excluded = [np.sort(rng.choice(300, 6, replace=False)) for _ in queries]
    usable = rng.random(300) > 0.1
    held = Held(candidates)
    top, found = top_k(queries, held, 300, excluded, 25, usable)
    plain = queries @ candidates.T
    plain[:, ~usable] = -np.inf
    for row, out in enumerate(excluded):
        plain[row, out] = -np.inf
    wanted = np.argsort(-plain, axis=1, kind="stable")[:, :25]
    assert found.tolist() == wanted.tolist() and np.allclose(
        top, np.take_along_axis(plain, wanted, 1), atol=1e-5
    )
    assert held.most <= size


def test_equal_cosines_go_by_number_and_too_few_candidates_are_minus_infinity():
    top, found = top_k(
        np.ones((1, 1), np.float32), Held(np.ones((5, 1))), 5, [np.array([1])], 6, None
    )
    assert found[0, :4].tolist() == [0, 2, 3, 4] and top[0].tolist() == [1.0] * 4 + [-np.inf] * 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"negatives": 0}, "give at least 1"),
        ({"first": 0}, "ranks 0 to 100 are no window"),
        ({"first": 5, "last": 4}, "ranks 5 to 4 are no window"),
        ({"last": 6}, "hold fewer than the 7 negatives wanted"),
        ({"margin": -0.1}, "--margin is -0.1; it must not be negative"),
        ({"relative_margin": -0.1}, "--relative-margin is -0.1"),
        ({"relative_margin": 5.0}, "it is a share of the positive's cosine: 0.05 stands for 5 %"),
        ({"relative_margin": float("nan")}, "--relative-margin is nan; give a finite number"),
        ({"max_score": float("inf")}, "--max-score is inf; give a finite number"),
        ({"max_score": 0.1, "min_score": 0.2}, "--min-score 0.2 is above --max-score 0.1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        MiningSettings(**settings).fields()
