"""Which adapter and prompt each kind takes, exact search, means over languages, and models that
misbehave.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from taskdistill.errors import BadInput
from taskdistill.evaluate import exact_search
from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.exact_search import top_documents
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.set_data import LabeledData, PairData, RankingData, SummaryData
from taskdistill.evaluate.task_type import unit_score
from taskdistill.evaluate.tasks.classification import FULL_TRAIN


class Letters:
    """Counts of letters; remembers what it was asked."""

    name = "letters"

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, str, list[str]]] = []

    def encode(self, texts, *, task, prompt_name):
        self.calls.append((task, prompt_name, list(texts)))
        return np.array(
            [[text.count(letter) for letter in "abcdef"] for text in texts], dtype=np.float32
        )

    def fingerprint(self) -> str:
        return "letters"


class Fixed(Letters):
    def __init__(self, *answers) -> None:
        super().__init__()
        self.answers = list(answers)

    def encode(self, texts, *, task, prompt_name):
        return self.answers.pop(0)(len(texts))


PAIRS = PairData(
    first=["ab", "cd", "ab"],
    second=["ab", "ce", "ff"],
    scores=np.array([1, 0.5, 0]),
    languages=[""] * 3,
)
RANKING = RankingData(
    documents={"1": "aab", "2": "ccd", "3": "ccd"},
    queries={"q": "ab"},
    qrels={"q": {"1": 1, "2": 0}},
)
TRAIN = LabeledData(texts=["aa", "bb", "ab", "bc"], labels=["x", "y", "x", "y"], languages=[""] * 4)
LABELLED = LabeledData(
    texts=["a", "bbb", "a"], labels=["x", "y", "x"], languages=[""] * 3, train=TRAIN
)
MULTI = LabeledData(
    texts=["a", "b"],
    labels=[["x"], ["y"]],
    languages=[""] * 2,
    train=LabeledData(texts=["a", "b"] * 6, labels=[["x"], ["y"]] * 6, languages=[""] * 12),
)
SUMMARIES = SummaryData([["ab"]], [["ab", "ac", "cc"]], [[3, 2, 1]])
DATA = {
    TASK_TYPES["retrieval"]: RANKING,
    TASK_TYPES["reranking"]: RankingData(
        documents=RANKING.documents,
        queries=RANKING.queries,
        qrels=RANKING.qrels,
        candidates={"q": ["1", "2"]},
    ),
    TASK_TYPES["sts"]: PAIRS,
    TASK_TYPES["pair-classification"]: PairData(
        first=["ab", "ab"], second=["ab", "ff"], scores=np.array([1.0, 0]), languages=["", ""]
    ),
    TASK_TYPES["bitext"]: PairData(
        first=["ab", "cd"], second=["ab", "cd"], scores=None, languages=["", ""]
    ),
    TASK_TYPES["summarisation"]: SUMMARIES,
    TASK_TYPES["clustering"]: LABELLED,
    TASK_TYPES["classification"]: LABELLED,
    TASK_TYPES["multilabel"]: MULTI,
}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (TASK_TYPES["retrieval"], "retrieval"),
        (TASK_TYPES["reranking"], "retrieval"),
        (TASK_TYPES["sts"], "text-matching"),
        (TASK_TYPES["pair-classification"], "text-matching"),
        (TASK_TYPES["bitext"], "text-matching"),
        (TASK_TYPES["summarisation"], "text-matching"),
        (TASK_TYPES["clustering"], "clustering"),
        (TASK_TYPES["classification"], "classification"),
        (TASK_TYPES["multilabel"], "classification"),
    ],
)
def test_routing_is_that_of_section_8_1_and_texts_are_encoded_once(kind, task):
    model = Letters()
    result = evaluate_set(model, "set", kind, DATA[kind])
    prompts = (
        ["query", "document"]
        if kind in (TASK_TYPES["retrieval"], TASK_TYPES["reranking"])
        else ["document"]
    )
    assert [(call[0], call[1]) for call in model.calls] == [(task, prompt) for prompt in prompts]
    assert all(len(call[2]) == len(set(call[2])) for call in model.calls)
    assert result.score.score == pytest.approx(1) and result.metric == kind.metric
    assert result.texts == sum(len(call[2]) for call in model.calls) and result.dim == 6


@pytest.mark.parametrize("kind", list(TASK_TYPES.values()))
def test_every_metric_of_a_kind_is_listed(kind):
    result = evaluate_set(Letters(), "x", kind, DATA[kind]).score.scores
    assert sorted(result) == sorted(kind.metrics) and kind.metric in kind.metrics


def test_main_score_is_the_mean_of_its_units():
    for kind, data in DATA.items():
        score = evaluate_set(Letters(), "set", kind, data).score
        assert np.mean([unit_score(units) for units in score.units.values()]) == pytest.approx(
            score.score, abs=1e-9
        ), kind


def test_a_set_of_several_languages_scores_their_mean():
    data = PairData(
        first=["a", "b", "c", "d"],
        second=["a", "b", "d", "c"],
        scores=None,
        languages=["fr", "fr", "de", "de"],
    )
    score = evaluate_set(Letters(), "set", TASK_TYPES["bitext"], data).score
    assert score.by_language() == {"fr": 1, "de": 0} and score.score == 0.5


def test_classification_trains_on_the_language_itself_where_it_can():
    train = LabeledData(
        texts=["a", "b", "b", "a"], labels=["x", "y", "x", "y"], languages=["en", "en", "fr", "fr"]
    )
    data = LabeledData(
        texts=["a", "b", "a", "b"],
        labels=["x", "y", "y", "x"],
        languages=["en", "en", "fr", "fr"],
        train=train,
    )
    assert evaluate_set(
        Letters(), "set", TASK_TYPES["classification"], data
    ).score.by_language() == {
        "en": 1,
        "fr": 1,
    }


def test_the_full_train_probe_is_an_additional_score():
    score = evaluate_set(
        Letters(), "set", TASK_TYPES["classification"], replace(LABELLED, full_train=True)
    ).score
    assert score.scores[FULL_TRAIN] == 1 and score.score == 1


def test_few_shot_classification_encodes_only_what_it_draws():
    train = LabeledData(
        texts=[f"{'a' * (i % 2)}b{i}" for i in range(4000)],
        labels=["x", "y"] * 2000,
        languages=[""] * 4000,
    )
    model = Letters()
    evaluate_set(
        model,
        "set",
        TASK_TYPES["classification"],
        LabeledData(texts=["ab", "b"], labels=["y", "x"], languages=["", ""], train=train),
    )
    assert len(model.calls[0][2]) <= 2 + 10 * 2 * 8


def test_search_over_blocks_is_exact(monkeypatch):
    monkeypatch.setattr(exact_search, "_BLOCK", 7)
    monkeypatch.setattr(exact_search, "_COLUMNS", 11)
    rng = np.random.default_rng(0)
    queries, documents = (
        rng.standard_normal((20, 5)).astype(np.float32),
        rng.standard_normal((100, 5)).astype(np.float32),
    )
    places, scores = top_documents(queries, documents, 13)
    every = queries @ documents.T
    assert [set(row) for row in places.tolist()] == [
        set(row) for row in np.argsort(-every, axis=1)[:, :13].tolist()
    ]
    assert np.allclose(scores, np.take_along_axis(every, places, 1))
    assert top_documents(queries, documents, 500)[0].shape == (20, 100)


def test_nan_vectors_are_refused_with_the_text():
    model = Fixed(lambda n: np.full((n, 3), np.nan))
    with pytest.raises(
        BadInput, match=r"model 'letters' returned NaN or infinity for 4 of 4 texts, the first 'ab'"
    ):
        evaluate_set(model, "set", TASK_TYPES["sts"], PAIRS)


def test_a_dimension_that_changes_is_refused():
    model = Fixed(lambda n: np.ones((n, 3)), lambda n: np.ones((n, 4)))
    with pytest.raises(BadInput, match="returned vectors of 3 and then of 4 dimensions"):
        evaluate_set(model, "set", TASK_TYPES["retrieval"], RANKING)


def test_a_wrong_number_of_vectors_is_refused():
    with pytest.raises(BadInput, match=r"shape \(1, 3\) for 4 texts"):
        evaluate_set(Fixed(lambda n: np.ones((1, 3))), "set", TASK_TYPES["sts"], PAIRS)


def test_a_collapsed_model_scores_zero_and_is_told():
    score = evaluate_set(Fixed(lambda n: np.ones((n, 3))), "set", TASK_TYPES["sts"], PAIRS).score
    assert score.score == 0 and "does not tell the texts apart" in score.notes[0]


def test_data_of_another_kind_are_refused():
    with pytest.raises(BadInput, match="cannot be scored as retrieval"):
        evaluate_set(Letters(), "set", TASK_TYPES["retrieval"], PAIRS)
