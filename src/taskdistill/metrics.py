"""Arrays in, numbers out: the metrics of paper section 8.2, from the libraries mteb uses.

Every function returns scores from 0 to 1 (Spearman: -1 to 1). Where mteb draws at random, so do
these, from the same generators in the same order: the same data gives the same score.
"""

from __future__ import annotations

import heapq
import random
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from taskdistill.quantization import normalize

Floats = NDArray[np.floating[Any]]
Label = TypeVar("Label", bound=Hashable)

SEED = 42
"""The seed that mteb gives every task."""

RETRIEVAL_METRICS = {
    "nDCG@10": "ndcg_cut_10",
    "nDCG@1": "ndcg_cut_1",
    "MAP@1000": "map_cut_1000",
    "Recall@100": "recall_100",
}
"""Printed name to trec_eval's name; MRR@10 is added by `retrieval_scores`."""


def paired_cosine(a: Floats, b: Floats) -> Floats:
    """Return the cosine of each row of `a` with the same row of `b`.

    It is computed from the distance of the unit vectors, as scikit-learn and so mteb do: pairs of
    equal vectors then all score exactly 1 and tie, where inner products would rank them by rounding
    errors.
    """
    from sklearn.metrics.pairwise import paired_cosine_distances

    cosine: Floats = 1 - paired_cosine_distances(normalize(a), normalize(b))
    return cosine


def spearman(gold: Floats, predicted: Floats) -> float:
    """Return Spearman's rank correlation; 0 where a side is constant and it is not defined."""
    from scipy.stats import spearmanr

    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(spearmanr(gold, predicted).statistic)


def ranks(x: Floats) -> NDArray[np.float64]:
    """Return ranks from 1, ties sharing their mean; their Pearson correlation is Spearman."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(x), dtype=np.float64)


def retrieval_scores(
    qrels: Mapping[str, Mapping[str, int]],
    ranking: Mapping[str, Mapping[str, float]],
    query_ids: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Score rankings with trec_eval's definitions; ties go to the larger document id, as there.

    `qrels`: query id to document id to relevance (0 is judged and not relevant). `ranking`: query
    id to document id to score, higher is better. Returns metric to (queries,) scores: nDCG@10,
    nDCG@1, MAP@1000, Recall@100, MRR@10.
    """
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(qrels[query]) for query in query_ids},
        {"ndcg_cut.1,10", "map_cut.1000", "recall.100"},
    )
    by_query = evaluator.evaluate({query: dict(ranking[query]) for query in query_ids})
    scores = {
        name: np.array([by_query[query][trec] for query in query_ids])
        for name, trec in RETRIEVAL_METRICS.items()
    }
    scores["MRR@10"] = np.array(
        [_reciprocal_rank(qrels[query], ranking[query], 10) for query in query_ids]
    )
    return scores


def ndcg(gains: Sequence[float], judged: Iterable[float], cutoff: int = 10) -> float:
    """Return nDCG with linear gains, as trec_eval's, of one query.

    `gains`: relevance of the ranked documents, best first, at most `cutoff`; below 0 counts as 0.
    `judged`: relevance of all judged documents, which gives the ideal ranking. Returns 0 to 1; 0
    where nothing is relevant.
    """
    discounts = 1 / np.log2(np.arange(cutoff) + 2)
    ideal = np.sort(np.array([gain for gain in judged if gain > 0], np.float64))[::-1][:cutoff]
    if not len(ideal):
        return 0.0
    best = np.maximum(gains, 0)
    return float((best @ discounts[: len(best)]) / (ideal @ discounts[: len(ideal)]))


def precision_at_positives(labels: NDArray[np.integer[Any]], scores: Floats) -> NDArray[np.float64]:
    """Return, for every positive, the precision among all items scored at least as high.

    The mean of these (positives,) numbers, in the order of `labels`, is average precision.
    """
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(labels[order]), scores[order]
    last = np.searchsorted(-ordered, -ordered, side="right") - 1  # tied items count together
    precision = np.empty(len(labels))
    precision[order] = hits[last] / (last + 1)
    result: NDArray[np.float64] = precision[labels == 1]
    return result


def pair_similarities(a: Floats, b: Floats) -> dict[str, Floats]:
    """Return the (n,) similarities among which pair classification takes the best (section 8.2).

    Distances are negated, so that higher is more similar.
    """
    from sklearn.metrics.pairwise import paired_euclidean_distances, paired_manhattan_distances

    return {
        "cosine": paired_cosine(a, b),
        "dot": np.einsum("ij,ij->i", a, b),
        "euclidean": -paired_euclidean_distances(a, b),
        "manhattan": -paired_manhattan_distances(a, b),
    }


def average_precision(labels: NDArray[np.integer[Any]], scores: Floats) -> float:
    """Return average precision of (n,) labels of 0 and 1, both present."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores))


def matching_f1(nearest: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the F1 of each label in bitext mining, where row i's counterpart is i.

    The mean is mteb's weighted F1: label i has 2 / (times it was retrieved + 1) if row i retrieved
    i, else 0.
    """
    times = np.bincount(nearest, minlength=len(nearest))
    return np.where(nearest == np.arange(len(nearest)), 2 / (times + 1), 0.0)


def v_measures(
    vectors: Floats,
    labels: Sequence[Hashable],
    *,
    rng: random.Random,
    experiments: int = 10,
    sample: int = 16_384,
    batch_size: int = 512,
) -> NDArray[np.float64]:
    """Return V-measures of repeated clusterings of bootstrap samples: mteb's protocol since v2.

    mteb's `rng` is `random.Random(42)`.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    gold = np.unique([str(label) for label in labels], return_inverse=True)[1]
    result = np.empty(experiments)
    for i in range(experiments):
        sampled = rng.choices(range(len(vectors)), k=sample)
        means = MiniBatchKMeans(
            n_clusters=int(gold.max()) + 1,
            batch_size=batch_size,
            init="k-means++",
            n_init=1,
            random_state=SEED,
        )
        result[i] = v_measure_score(gold[sampled], means.fit_predict(vectors[sampled]))
    return result


def v_measure_once(vectors: Floats, labels: Sequence[Hashable]) -> float:
    """Return the V-measure of one clustering of everything: mteb's protocol before v2."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    means = MiniBatchKMeans(
        n_clusters=len(set(labels)), batch_size=500, n_init="auto", random_state=SEED
    )
    return float(v_measure_score([str(label) for label in labels], means.fit(vectors).labels_))


def few_per_label(
    labels: Sequence[Label], *, experiments: int = 10, per_label: int = 8
) -> list[list[int]]:
    """Draw mteb's training samples of a classification set: a few rows of each label.

    Each sample has `per_label` indices of each label, or all where there are fewer.
    """
    order = list(range(len(labels)))
    samples = []
    for _ in range(experiments):
        # mteb seeds anew but shuffles on: the order is not reset between experiments.
        np.random.RandomState(SEED).shuffle(order)
        counts: dict[Label, int] = defaultdict(int)
        sample = []
        for i in order:
            if counts[labels[i]] < per_label:
                sample.append(i)
                counts[labels[i]] += 1
        samples.append(sample)
    return samples


def classify(
    train: Floats, train_labels: Sequence[str], test: Floats, *, max_iter: int = 100
) -> NDArray[np.str_]:
    """Predict the labels of (m, dim) test vectors by logistic regression; mteb allows 100 steps."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(max_iter=max_iter, random_state=SEED).fit(
            train, np.asarray(train_labels)
        )
    return np.asarray(model.predict(test))


def macro_f1(gold: Sequence[str], predicted: NDArray[np.str_]) -> float:
    """Return the unweighted mean of the labels' F1."""
    from sklearn.metrics import f1_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(f1_score(np.asarray(gold), predicted, average="macro"))


def few_per_label_multi(
    labels: Sequence[Sequence[str]], *, rng: np.random.Generator, per_label: int = 8
) -> list[int]:
    """Draw one of mteb's training samples of a multilabel set.

    A row is drawn while any of its labels has been drawn fewer than `per_label` times; mteb's `rng`
    is `numpy.random.default_rng(42)`.
    """
    order = list(range(len(labels)))
    rng.shuffle(order)
    counts: dict[str, int] = defaultdict(int)
    sample = []
    for i in order:
        if any(counts[label] < per_label for label in labels[i]):
            sample.append(i)
            for label in labels[i]:
                counts[label] += 1
    return sample


def classify_multi(
    train: Floats,
    train_labels: Sequence[Sequence[str]],
    test: Floats,
    test_labels: Sequence[Sequence[str]],
) -> tuple[dict[str, float], NDArray[np.bool_]]:
    """Predict label sets with the five nearest neighbours, as mteb does.

    Returns accuracy (all labels right), macro-F1 and LRAP, and (m,) whether each row is all right.
    """
    from sklearn.metrics import f1_score, label_ranking_average_precision_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer()
    gold = binarizer.fit_transform(test_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KNeighborsClassifier(n_neighbors=5).fit(train, binarizer.transform(train_labels))
        predicted = model.predict(test)
        scores = {
            "macro-F1": float(f1_score(gold, predicted, average="macro")),
            "LRAP": float(label_ranking_average_precision_score(gold, predicted)),
        }
    right = np.asarray((gold == predicted).all(axis=1))
    return {"accuracy": float(right.mean()), **scores}, right


def summary_scores(human: Floats, machine: Floats, gold: Sequence[float]) -> float | None:
    """Correlate the similarity of machine summaries with what people thought of them, for one text.

    `human`: (h, dim) vectors of the human summaries. `machine`: (m, dim) vectors of the machine
    summaries. `gold`: (m,) human scores of the machine summaries. Returns Spearman of each machine
    summary's largest cosine with a human one, or None where a side is constant, which mteb leaves
    out of the mean.
    """
    closest = (normalize(machine) @ normalize(human).T).max(axis=1)
    if len(set(gold)) == 1 or len(set(closest.tolist())) == 1:
        return None
    return spearman(np.asarray(gold, dtype=np.float64), closest)


def _reciprocal_rank(
    relevance: Mapping[str, int], scores: Mapping[str, float], cutoff: int
) -> float:
    top = heapq.nlargest(cutoff, scores.items(), key=lambda item: (item[1], item[0]))
    relevant = (i for i, (document, _) in enumerate(top, 1) if relevance.get(document, 0) > 0)
    return 1 / next(relevant, float("inf"))
