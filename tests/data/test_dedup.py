"""Exact and near duplicates by numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.data.dedup import (
    RUN,
    exact_key,
    fold_text,
    repeats_within,
    share_of_runs,
    word_runs,
)
from taskdistill.data.overlap import overlap

LONG = " ".join(f"word{i}" for i in range(20))


def test_normalised_form():
    assert fold_text("  Ｆull\u00a0Width\tﬁne\nSTRASSE ß ") == "full width fine strasse ss"
    assert exact_key("Add it. ") == exact_key("add  IT") == "add it"


def test_runs_are_counted_per_text_and_never_cross_two_texts():
    runs, owners = word_runs([LONG, "too short", LONG + " x"])
    assert runs.dtype == np.uint64
    assert np.bincount(owners).tolist() == [20 - RUN + 1, 0, 21 - RUN + 1]
    assert np.array_equal(runs[owners == 0], runs[owners == 2][:8])
    halves = [" ".join(LONG.split()[:10]), " ".join(LONG.split()[10:])]
    assert len(word_runs(halves)[0]) == 0
    assert len(word_runs([])[0]) == 0


def test_hashes_do_not_depend_on_the_other_texts():
    assert np.array_equal(
        word_runs(["alpha beta " * 10])[0],
        word_runs(["gamma delta " * 10, "alpha beta " * 10])[0][8:],
    )


def test_share_of_runs():
    held = np.unique(word_runs([LONG])[0])
    other = " ".join(f"other{i}" for i in range(20))
    assert share_of_runs([LONG, other, f"{other} {LONG}", "short"], held).tolist() == [
        1.0,
        0.0,
        8 / 28,
        0.0,
    ]
    assert share_of_runs([LONG.upper().replace(" ", ", ")], held).tolist() == [1.0]


def test_repeats_within():
    other = " ".join(f"other{i}" for i in range(40))
    texts = [LONG, "a b", LONG + " tail", "A B.", f"{other} {LONG}", other]
    assert repeats_within(texts).tolist() == [False, False, True, True, False, True]


def test_overlap_counts():
    train = ["An exact   Match", f"before {LONG} after", "unrelated"]
    found = overlap(train, ["an exact match", f"{LONG} and more", "new", f"Before {LONG} AFTER"])
    assert found.exact.tolist() == [True, False, False, True]
    assert found.near.tolist() == [False, True, False, True]
    assert found.counts() == {"texts": 4, "exact": 2, "near": 1}


@given(
    st.lists(st.text(alphabet="ab ", max_size=80), max_size=6),
    st.lists(st.text(alphabet="ab ", max_size=80), max_size=6),
)
def test_a_text_shares_a_run_exactly_if_some_run_of_words_is_equal(train, texts):
    def naive(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}

    held = {run for text in train for run in naive(text)}
    assert overlap(train, texts).near.tolist() == [bool(naive(text) & held) for text in texts]
