"""One protocol per kind of set: vectors in, a main score, further scores and one number per query or pair out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.errors import BadInput
from taskdistill.evaluate.encode import (
    EncodedSet,
    encode_set,
    language_training_rows,
    training_rows,
)
from taskdistill.evaluate.exact_search import rank, top_documents
from taskdistill.evaluate.kinds import METRIC, Embedder, Kind
from taskdistill.evaluate.reading import LabeledData, PairData, RankingData, SetData, SummaryData
from taskdistill.quantization import normalize

FULL_TRAIN = "accuracy (full train)"
"""Of a logistic regression on every training row, beside the protocol's few rows a label."""


@dataclass(frozen=True, eq=False)
class Score:
    """What one set gives.

    `units` holds, for each language, one number per query, pair or experiment, whose mean is the language's main score;
    for STS two columns of ranks, whose Pearson correlation is. The main score is the mean over languages (section 8.3).
    """

    score: float
    scores: dict[str, float]
    units: dict[str, NDArray[np.float64]]
    notes: tuple[str, ...] = ()

    def by_language(self) -> dict[str, float]:
        """Return the main score of each language, empty where the set has one only."""
        return (
            {language: unit_score(units) for language, units in self.units.items()}
            if len(self.units) > 1
            else {}
        )


@dataclass(frozen=True, eq=False)
class SetScore:
    """The score of one model on one set, with what it cost."""

    set: str
    kind: Kind
    metric: str
    score: Score
    n: int
    dim: int
    texts: int
    encode_seconds: float
    score_seconds: float
    cut: int = 0


def unit_score(units: NDArray[np.float64]) -> float:
    """Return the score that units stand for.

    Args:
        units: (n,) numbers, or (n, 2) ranks.

    Returns:
        Their mean, or the correlation of the ranks (0 if a column is constant).
    """
    if units.ndim == 1:
        return float(units.mean())
    if (np.ptp(units, axis=0) == 0).any():
        return 0.0
    return float(np.corrcoef(units[:, 0], units[:, 1]).item(1))


def evaluate_set(
    embedder: Embedder, name: str, kind: Kind, data: SetData, *, full_train: bool = False
) -> SetScore:
    """Encode a set with a model and score it.

    Args:
        full_train: Whether classification also reports a linear probe on the whole training split.

    Raises:
        BadInput: If the model returns what cannot be scored.
    """
    return evaluate_encoded(
        name,
        kind,
        data,
        encode_set(embedder, kind, data, full_train=full_train),
        full_train=full_train,
    )


def evaluate_encoded(
    name: str, kind: Kind, data: SetData, encoded: EncodedSet, *, full_train: bool = False
) -> SetScore:
    """Score a set whose vectors are there."""
    start = time.perf_counter()
    score = score_vectors(name, kind, data, encoded, full_train=full_train)
    seconds = time.perf_counter() - start
    n = (
        sum(len(units) for units in score.units.values())
        if kind is not Kind.CLUSTERING
        else len(encoded.sides["texts"])
    )
    if encoded.cut:
        note = f"{encoded.cut:,} of {encoded.texts:,} texts are longer than this model reads; their ends were cut"
        score = replace(score, notes=(*score.notes, note))
    return SetScore(
        name,
        kind,
        METRIC[kind],
        score,
        n,
        encoded.dim,
        encoded.texts,
        encoded.seconds,
        seconds,
        encoded.cut,
    )


def score_vectors(
    name: str, kind: Kind, data: SetData, encoded: EncodedSet, *, full_train: bool = False
) -> Score:
    """Score vectors by the protocol of a kind.

    Args:
        encoded: Its vectors, from `encode_set` or changed since (truncated, rounded).

    Raises:
        BadInput: If the data are not of this kind.
    """
    match kind, data:
        case ((Kind.RETRIEVAL | Kind.RERANKING), RankingData()):
            return score_ranking(
                data, rank(data, encoded.sides["queries"], encoded.sides["documents"]), METRIC[kind]
            )
        case Kind.STS, PairData():
            return _sts(data, encoded)
        case Kind.PAIR_CLASSIFICATION, PairData():
            return _pair_classification(data, encoded)
        case Kind.BITEXT, PairData():
            return _bitext(data, encoded)
        case Kind.SUMMARISATION, SummaryData():
            return _summarisation(data, encoded)
        case Kind.CLUSTERING, LabeledData():
            return _clustering(data, encoded)
        case Kind.CLASSIFICATION, LabeledData():
            return _classification(data, encoded, full_train)
        case Kind.MULTILABEL, LabeledData():
            return _multilabel(data, encoded)
    raise BadInput(
        f"{name}: data of type {type(data).__name__} cannot be scored as {kind}; load the set with its own kind"
    )


def score_ranking(
    data: RankingData, ranking: dict[str, dict[str, float]], metric: str = "nDCG@10"
) -> Score:
    """Score rankings.

    Returns:
        The score, one unit a query.
    """
    result = metrics.retrieval_scores(data.qrels, ranking, list(data.queries))
    scores = {name: float(values.mean()) for name, values in result.items()}
    return Score(scores[metric], scores, {"": result[metric]}, data.notes)


def _by_language(
    languages: Sequence[str],
    score: Callable[[NDArray[np.int64]], tuple[dict[str, float], NDArray[np.float64]]],
) -> Score:
    """Score each language by itself and take means; `score` maps row indices to further scores and units."""
    rows: dict[str, list[int]] = {}
    for i, language in enumerate(languages):
        rows.setdefault(language, []).append(i)
    result = {language: score(np.array(indices)) for language, indices in rows.items()}
    names = next(iter(result.values()))[0]
    means = {name: float(np.mean([each[0][name] for each in result.values()])) for name in names}
    units = {language: each[1] for language, each in result.items()}
    return Score(float(np.mean([unit_score(each) for each in units.values()])), means, units)


def _sts(data: PairData, encoded: EncodedSet) -> Score:
    assert data.scores is not None
    gold, cosine = (
        data.scores,
        metrics.paired_cosine(encoded.sides["first"], encoded.sides["second"]),
    )

    def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        result = {"Spearman": metrics.spearman(gold[rows], cosine[rows])}
        return result, np.column_stack([metrics.ranks(gold[rows]), metrics.ranks(cosine[rows])])

    return _noted(
        _by_language(data.languages, score), data.notes, constant=bool(np.ptp(cosine) == 0)
    )


def _pair_classification(data: PairData, encoded: EncodedSet) -> Score:
    assert data.scores is not None
    labels = data.scores.astype(np.int64)
    similarities = metrics.pair_similarities(encoded.sides["first"], encoded.sides["second"])

    def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        result = {
            name: metrics.average_precision(labels[rows], values[rows])
            for name, values in similarities.items()
        }
        best = max(result, key=lambda name: result[name])
        scores = {"AP": result[best], **{f"AP ({name})": value for name, value in result.items()}}
        return scores, metrics.precision_at_positives(labels[rows], similarities[best][rows])

    return _noted(
        _by_language(data.languages, score),
        data.notes,
        constant=bool(np.ptp(similarities["cosine"]) == 0),
    )


def _bitext(data: PairData, encoded: EncodedSet) -> Score:
    first, second = normalize(encoded.sides["first"]), normalize(encoded.sides["second"])

    def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        nearest = top_documents(first[rows], second[rows], 1)[0][:, 0]
        f1 = metrics.matching_f1(nearest)
        return {
            "F1": float(f1.mean()),
            "accuracy": float((nearest == np.arange(len(rows))).mean()),
        }, f1

    return _noted(_by_language(data.languages, score), data.notes)


def _summarisation(data: SummaryData, encoded: EncodedSet) -> Score:
    human = np.split(encoded.sides["human"], np.cumsum([len(row) for row in data.human])[:-1])
    machine = np.split(encoded.sides["machine"], np.cumsum([len(row) for row in data.machine])[:-1])
    result = [
        metrics.summary_scores(h, m, gold)
        for h, m, gold in zip(human, machine, data.scores, strict=True)
    ]
    units = np.array([value for value in result if value is not None])
    skipped = len(result) - len(units)
    notes = (
        (f"{skipped} texts whose scores or similarities are all equal are left out",)
        if skipped
        else ()
    )
    if len(units) == 0:
        return Score(0.0, {"Spearman": 0.0}, {"": np.zeros(1)}, (*data.notes, *notes))
    return Score(
        float(units.mean()), {"Spearman": float(units.mean())}, {"": units}, (*data.notes, *notes)
    )


def _clustering(data: LabeledData, encoded: EncodedSet) -> Score:
    vectors, rng = encoded.sides["texts"], random.Random(metrics.SEED)

    def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        labels = [data.labels[i] for i in rows]
        units = metrics.v_measures(vectors[rows], labels, rng=rng)
        return {
            "V-measure": float(units.mean()),
            "V-measure (one clustering)": metrics.v_measure_whole(vectors[rows], labels),
        }, units

    return _noted(_by_language(data.languages, score), data.notes)


def _classification(data: LabeledData, encoded: EncodedSet, full_train: bool) -> Score:
    assert data.train is not None
    train_labels = data.train.labels
    rows_of, test, train = (
        language_training_rows(data),
        encoded.sides["texts"],
        encoded.sides["train"],
    )
    place = {row: i for i, row in enumerate(training_rows(data, Kind.CLASSIFICATION, full_train))}

    def fitted(rows: NDArray[np.int64], sample: Sequence[int], max_iter: int) -> NDArray[np.str_]:
        vectors = train[[place[i] for i in sample]]
        return metrics.classify(
            vectors, [train_labels[i] for i in sample], test[rows], max_iter=max_iter
        )

    def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        gold = np.array([data.labels[i] for i in rows])
        train_rows = rows_of[data.languages[rows[0]]]
        samples = metrics.few_per_label([train_labels[i] for i in train_rows])
        predicted = [fitted(rows, [train_rows[i] for i in sample], 100) for sample in samples]
        right = np.mean([each == gold for each in predicted], axis=0)
        scores = {
            "accuracy": float(right.mean()),
            "macro-F1": float(
                np.mean([metrics.macro_f1(gold.tolist(), each) for each in predicted])
            ),
        }
        if full_train:
            scores[FULL_TRAIN] = float((fitted(rows, train_rows, 1000) == gold).mean())
        return scores, right

    return _noted(_by_language(data.languages, score), data.notes)


def _multilabel(data: LabeledData, encoded: EncodedSet) -> Score:
    assert data.train is not None
    labels, train_labels = data.labels, data.train.labels
    rows_of, rng = language_training_rows(data), np.random.default_rng(metrics.SEED)
    test, train = encoded.sides["texts"], encoded.sides["train"]

    def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        train_rows = rows_of[data.languages[rows[0]]]
        result: list[dict[str, float]] = []
        right: list[NDArray[Any]] = []
        for _ in range(10):
            sample = [
                train_rows[i]
                for i in metrics.few_per_label_multi([train_labels[i] for i in train_rows], rng=rng)
            ]
            scores, hits = metrics.classify_multi(
                train[sample],
                [train_labels[i] for i in sample],
                test[rows],
                [labels[i] for i in rows],
            )
            result.append(scores)
            right.append(hits)
        return {
            name: float(np.mean([each[name] for each in result])) for name in result[0]
        }, np.mean(right, axis=0)

    return _noted(_by_language(data.languages, score), data.notes)


def _noted(score: Score, notes: tuple[str, ...], *, constant: bool = False) -> Score:
    more = (
        ("every similarity is the same number: this model does not tell the texts apart",)
        if constant
        else ()
    )
    return Score(score.score, score.scores, score.units, (*notes, *more))
