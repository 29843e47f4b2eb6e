"""Scores of models on development sets that are read once, and of an adapter beside its base."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.data.rows import Dataset
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.exact_search import rank
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.rankings import score_ranking
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.set_data import RankingData, SetData
from taskdistill.evaluate.task_type import EvalSet, Score, unit_score
from taskdistill.stats.intervals import Units, paired_difference
from taskdistill.tasks import TASKS, Role, Task
from taskdistill.types import RowKind

SOLVER_STEPS = 1000
"""Most iterations of the logistic regression."""


@dataclass(frozen=True, eq=False)
class DevScores:
    """What the development sets say of one model."""

    by_set: dict[str, Score]

    @property
    def mean(self) -> float:
        """The mean of the sets' main metrics, between 0 and 1."""
        return float(np.mean([score.score for score in self.by_set.values()]))

    @property
    def units(self) -> Units:
        """Set and language to units, for paired tests over all sets."""
        return {
            f"{name} {language}": units
            for name, score in self.by_set.items()
            for language, units in score.units.items()
        }


class DevScorer:
    """Scores any number of models on the same development sets, each read once."""

    def __init__(
        self,
        sets: Sequence[EvalSet],
        *,
        limit: int | None,
        seed: int,
        prepare: Callable[[SetData], SetData] = lambda data: data,
    ) -> None:
        self.sets = [(each, prepare(each.load(limit, seed))) for each in sets]

    def __call__(self, embedder: Embedder) -> DevScores:
        """Score a model."""
        return DevScores(
            {
                each.name: evaluate_set(embedder, each.name, each.task, data).score
                for each, data in self.sets
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DevComparison:
    """Scores from 0 to 1 of base and adapter, and the paired difference with its 95 % interval."""

    metric: str
    before: float
    after: float
    difference: tuple[float, float, float]
    rows: int

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return {
            "metric": self.metric,
            "base": self.before,
            "adapter": self.after,
            "difference": list(self.difference),
            "rows": self.rows,
        }


def compare(
    encoder: Encoder, adapter: str, task: Task, data: Dataset, dev: Dataset
) -> DevComparison:
    """Score the base and an adapter on development rows of the same kind as the training rows."""
    metric, before = dev_units(encoder, None, task, data, dev)
    _, after = dev_units(encoder, adapter, task, data, dev)
    result = paired_difference({"": after}, {"": before}).estimate
    return DevComparison(
        metric=metric,
        before=unit_score(before),
        after=unit_score(after),
        difference=(result.value, result.low, result.high),
        rows=len(dev.rows),
    )


def describe(comparison: DevComparison) -> str:
    """Write a comparison as a clause, times 100."""
    value, low, high = (100 * each for each in comparison.difference)
    return (
        f"{comparison.metric} {100 * comparison.before:.1f} of the base,"
        f" {100 * comparison.after:.1f} with the adapter ({value:+.1f}, 95 % {low:+.1f} to"
        f" {high:+.1f}; {comparison.rows:,} rows)"
    )


class TaskEncoder(Protocol):
    """Whatever embeds texts by the name of an adapter."""

    def encode(
        self, texts: Sequence[str], *, task: str | None, prompt_name: str
    ) -> NDArray[np.floating]:
        """Return (n, dim) vectors."""
        ...


def dev_units(
    encoder: TaskEncoder, adapter: str | None, task: Task, data: Dataset, dev: Dataset
) -> tuple[str, NDArray[np.float64]]:
    """Score the base (adapter None) or an adapter of any model with `encode`.

    Returns the metric's name and its units: a number a row, or for STS two columns of ranks.
    """

    def embed(texts: list[str], role: Role = Role.DOCUMENT) -> np.ndarray:
        return encoder.encode(texts, task=adapter, prompt_name=role.value)

    if dev.kind is RowKind.SCORED:
        cosine = metrics.paired_cosine(
            embed([row.text1 for row in dev.rows]), embed([row.text2 for row in dev.rows])
        )
        gold = np.array([row.score for row in dev.rows], dtype=np.float64)
        return "Spearman", np.column_stack([metrics.ranks(gold), metrics.ranks(cosine)])
    if dev.kind is RowKind.PAIRS:
        return "nDCG@10", _ranked(embed, task, dev)
    labels, vectors = [row.label for row in dev.rows], embed([row.text for row in dev.rows])
    if task is Task.CLUSTERING:
        return "V-measure", metrics.v_measures(vectors, labels, rng=random.Random(metrics.SEED))
    train = embed([row.text for row in data.rows])
    predicted = metrics.classify(
        train, [row.label for row in data.rows], vectors, max_iter=SOLVER_STEPS
    )
    return "accuracy", (predicted == np.array(labels)).astype(np.float64)


def _ranked(embed: Callable[..., np.ndarray], task: Task, dev: Dataset) -> NDArray[np.float64]:
    """Rank all positives of the development rows, and their hard negatives, for every query."""
    texts = dict.fromkeys(text for row in dev.rows for text in (row.positive, *row.negatives))
    numbers = {text: f"d{i}" for i, text in enumerate(texts)}
    queries = dict.fromkeys(row.query for row in dev.rows)
    names = {text: f"q{i}" for i, text in enumerate(queries)}
    qrels: dict[str, dict[str, int]] = {}
    for row in dev.rows:
        qrels.setdefault(names[row.query], {})[numbers[row.positive]] = 1
    data = RankingData(
        documents={number: text for text, number in numbers.items()},
        queries={name: text for text, name in names.items()},
        qrels=qrels,
    )
    ranked = rank(data, embed(list(queries), TASKS[task].query_role), embed(list(texts)))
    return score_ranking(data, ranked).units[""]
